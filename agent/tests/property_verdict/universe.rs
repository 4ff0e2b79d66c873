//! Random generations: pods, their neighbours near and far, and what each declares about the others.

use std::collections::BTreeMap;

use agent_common::{Action, Direction, Identity, Rule, RuleKey};

use crate::build::icmp_of;
use crate::model::TUNNELS;
use crate::parse::{ICMP, ICMPV6, TCP, UDP, is_mapped, mapped};
use crate::random::Random;
use crate::tables::{Owner, Row, Tables, masked};

/// A pod's home, the same in all generations of a round.
#[derive(Clone, Debug)]
pub(crate) struct Home {
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) identity: Identity,
    pub(crate) addresses: Vec<u128>,
}

/// The addresses and names that a round plays with.
#[derive(Clone, Debug)]
pub(crate) struct Universe {
    pub(crate) homes: Vec<Home>,
    /// Addresses of others, each with who mostly owns it.
    pub(crate) others: Vec<(u128, Owner)>,
    identities: Vec<Identity>,
}

/// The cell of a component, whatever the generation.
fn cell_of(identity: Identity) -> u32 {
    if identity.is_component() {
        1 + identity.raw() % 3
    } else {
        0
    }
}

fn owner(identity: Identity, ifindex: u32) -> Owner {
    Owner {
        identity,
        ifindex,
        cell: cell_of(identity),
    }
}

pub(crate) const PORTS: [u16; 11] = [
    0, 53, 80, 443, TUNNELS[0], TUNNELS[1], TUNNELS[2], //
    // In the middle of a range of every width, its ends, and the next one.
    7777, 7776, 7791, 7792,
];
pub(crate) const OTHER_PROTOCOLS: [u8; 12] = [0, 4, 41, 43, 44, 47, 50, 51, 59, 60, 132, 135];

/// Numbers of the rules about ranges of ports, which are not those of others.
pub(crate) const RANGES: [u32; 4] = [41, 42, 43, 44];

/// In the place of a rule about a port, one about a range that holds it. No range of a policy begins at port 0, which is none.
fn range(key: &RuleKey, random: &mut Random) -> Option<RuleKey> {
    let (port, protocol) = (key.port(), key.protocol());
    let width = random.within(1, 3) as u8;
    let range = RuleKey::range(key.peer(), port, width, protocol, key.direction()?);
    ([TCP, UDP].contains(&protocol) && range.port() > 0).then_some(range)
}

impl Universe {
    /// Pods behind these interfaces.
    pub(crate) fn random(random: &mut Random, interfaces: &[u32]) -> Self {
        let v6 = |high: u16, low: u64| u128::from(high) << 112 | u128::from(low);
        let mut homes: Vec<Home> = Vec::new();
        for (number, ifindex) in (1..).zip(interfaces) {
            let mut addresses = Vec::new();
            for _ in 0..random.within(1, 2) {
                addresses.push(mapped([10, 77, random.byte() & 3, number]));
                addresses.push(v6(
                    0xfd77,
                    u64::from(random.byte() & 3) << 8 | u64::from(number),
                ));
            }
            addresses.sort_unstable();
            addresses.dedup();
            homes.push(Home {
                ifindex: *ifindex,
                mac: [2, 0, 0, random.byte(), 1, number],
                // Two pods may run one component.
                identity: Identity::component(random.within(1, interfaces.len()) as u32),
                addresses,
            });
        }
        let node = owner(Identity::NODE, 1);
        let mut others = vec![
            (mapped([10, 1, 0, 1]), node),
            (v6(0xfd01, 1), node),
            (mapped([10, 1, 0, 2]), owner(Identity::OTHER_NODE, 0)),
            (v6(0xfd01, 2), owner(Identity::OTHER_NODE, 0)),
            (mapped([10, 1, 0, 5]), owner(Identity::NORTH_GATE, 1)),
            (v6(0xfd01, 5), owner(Identity::NORTH_GATE, 1)),
            (mapped([10, 1, 0, 6]), owner(Identity::WEST_GATE, 1)),
            (v6(0xfd01, 6), owner(Identity::WEST_GATE, 0)),
            (mapped([10, 1, 0, 53]), owner(Identity::DNS, 0)),
            (v6(0xfd01, 53), owner(Identity::DNS, 0)),
            (mapped([169, 254, 169, 254]), owner(Identity::METADATA, 0)),
            (mapped([10, 1, 9, 9]), owner(Identity::platform(1), 0)),
            (mapped([203, 0, 113, 7]), owner(Identity::external(1), 0)),
            (mapped([203, 0, 113, 200]), owner(Identity::external(2), 0)),
            (v6(0x2001, 0x113), owner(Identity::external(1), 0)),
            (mapped([198, 51, 100, 9]), owner(Identity::WORLD, 0)),
            (v6(0x2001, 9), owner(Identity::WORLD, 0)),
            (mapped([192, 0, 2, 1]), owner(Identity::NONE, 0)),
        ];
        for number in 6..9 {
            let component = owner(Identity::component(number), 0);
            others.push((mapped([10, 78, 0, number as u8]), component));
            others.push((v6(0xfd78, u64::from(number)), component));
        }
        let mut identities: Vec<Identity> = homes.iter().map(|home| home.identity).collect();
        identities.extend(others.iter().map(|(_, owner)| owner.identity));
        Self {
            homes,
            others,
            identities,
        }
    }

    /// A generation that knows most of the universe.
    pub(crate) fn tables(&self, random: &mut Random) -> Tables {
        let mut tables = Tables::default();
        let default = mapped([0, 0, 0, 0]);
        for (network, bits, percent) in [(default, 96, 90), (0, 0, 60), (0x2001 << 112, 16, 60)] {
            if random.percent(percent) {
                let world = owner(Identity::WORLD, 0);
                tables.networks.insert((network, bits), world);
            }
        }
        for (address, owner) in &self.others {
            if random.percent(90) {
                tables.networks.insert((*address, 128), *owner);
            }
        }
        for home in &self.homes {
            self.place(&mut tables, home, random);
        }
        for _ in 0..random.below(20) {
            self.network(&mut tables, random);
        }
        for _ in 0..random.below(40) {
            self.agreement(&mut tables, random);
        }
        tables
    }

    /// Two components with pods here declare the same connection, each its side of it.
    fn agreement(&self, tables: &mut Tables, random: &mut Random) {
        let pod = |random: &mut Random| self.homes[random.below(self.homes.len())].identity;
        let (from, to) = (pod(random), pod(random));
        let protocol = random.pick(&[TCP, TCP, TCP, UDP, UDP, ICMP, ICMPV6, 47, 132]);
        let port = match protocol {
            TCP | UDP => random.pick(&PORTS),
            _ => 0,
        };
        let sides = [
            (from, to, Direction::Egress),
            (to, from, Direction::Ingress),
        ];
        for (of, peer, direction) in sides {
            let key = RuleKey::new(peer, port, protocol, direction);
            let rule = Rule::new(Action::Pass, random.within(1, 40) as u32);
            if let Some(rules) = tables.rules.get_mut(&of) {
                rules.insert(key, rule);
            }
        }
    }

    /// A pod with its addresses and rules.
    fn place(&self, tables: &mut Tables, home: &Home, random: &mut Random) {
        if random.percent(97) {
            let row = Row {
                identity: home.identity,
                cell: cell_of(home.identity),
                mac: home.mac,
            };
            tables.pods.insert(home.ifindex, row);
        }
        for address in &home.addresses {
            if random.percent(95) {
                let owner = owner(home.identity, home.ifindex);
                tables.networks.insert((*address, 128), owner);
            }
        }
        if random.percent(93) {
            let mut rules = BTreeMap::new();
            for _ in 0..random.within(20, 150) {
                let (key, rule) = self.rule(random);
                rules.insert(key, rule);
            }
            tables.rules.insert(home.identity, rules);
        }
    }

    fn rule(&self, random: &mut Random) -> (RuleKey, Rule) {
        let peer = random.pick(&self.identities);
        let anybody = random.percent(4);
        let transport = random.pick(&[TCP, TCP, TCP, UDP, UDP]);
        let (port, protocol) = match random.below(10) {
            0 => (0, 0),
            1 => (0, transport),
            2 | 3 => (0, random.pick(&[ICMP, ICMPV6])),
            4 => (0, random.pick(&OTHER_PROTOCOLS)),
            5 => (random.pick(&PORTS), random.pick(&[ICMP, ICMPV6, 132])),
            _ => (random.pick(&PORTS), transport),
        };
        let direction = random.pick(&[Direction::Egress, Direction::Ingress]);
        let action =
            random.weighted(&[(75, Action::Pass), (13, Action::Deny), (12, Action::Steer)]);
        let id = random.within(1, 40) as u32;
        let (peer, port, protocol) = match (anybody, random.percent(50)) {
            (true, true) => (RuleKey::ANYBODY, 0, 0),
            (true, false) => (RuleKey::ANYBODY, port, protocol),
            (false, _) => (peer, port, protocol),
        };
        let key = RuleKey::new(peer, port, protocol, direction);
        match random.percent(25).then(|| self::range(&key, random)) {
            Some(Some(range)) => (range, Rule::new(action, random.pick(&RANGES))),
            _ => (key, Rule::new(action, id)),
        }
    }

    /// A network around some address, of anybody.
    fn network(&self, tables: &mut Tables, random: &mut Random) {
        let address = self.address(random);
        let bits = if is_mapped(address) {
            96 + random.below(33) as u32
        } else {
            random.below(129) as u32
        };
        let home = &self.homes[random.below(self.homes.len())];
        let owner = match random.below(10) {
            0 => owner(home.identity, home.ifindex),
            1 => owner(Identity::NONE, 0),
            2 => owner(random.pick(&self.identities), 1),
            _ => owner(random.pick(&self.identities), 0),
        };
        tables.networks.insert((masked(address, bits), bits), owner);
    }

    /// Any address of the universe.
    pub(crate) fn address(&self, random: &mut Random) -> u128 {
        if random.percent(60) {
            let home = &self.homes[random.below(self.homes.len())];
            random.pick(&home.addresses)
        } else {
            self.others[random.below(self.others.len())].0
        }
    }

    /// Whether an address is one of the universe's.
    pub(crate) fn knows(&self, address: u128) -> bool {
        self.home(address).is_some() || self.others.iter().any(|(other, _)| *other == address)
    }

    /// The pod that mostly owns an address.
    pub(crate) fn home(&self, address: u128) -> Option<&Home> {
        self.homes
            .iter()
            .find(|home| home.addresses.contains(&address))
    }

    /// A connection that some rule of the generation is about: who opens it, to whom, to which port, by which protocol.
    pub(crate) fn declared(
        &self,
        tables: &Tables,
        random: &mut Random,
    ) -> Option<(u128, u128, u16, u8)> {
        let home = &self.homes[random.below(self.homes.len())];
        let rules = tables.rules.get(&home.identity)?;
        let mut key = nth(rules.keys(), random)?;
        for _ in 0..3 {
            // Most rules are about somebody far away.
            if self.homes.iter().any(|home| home.identity == key.peer()) {
                break;
            }
            key = nth(rules.keys(), random)?;
        }
        let own = random.pick(&home.addresses);
        let homes = self.homes.iter().filter(|home| home.identity == key.peer());
        // Connections between two pods here meet two gates.
        let local = random.percent(60) && homes.clone().next().is_some();
        let others = self
            .others
            .iter()
            .take(if local { 0 } else { self.others.len() });
        let others = others.filter(|(_, owner)| owner.identity == key.peer());
        let peers: Vec<u128> = homes
            .flat_map(|home| home.addresses.iter().copied())
            .chain(others.map(|(address, _)| *address))
            .filter(|address| is_mapped(*address) == is_mapped(own))
            .collect();
        let peer = *peers.get(random.below(peers.len().max(1)))?;
        let protocol = match key.protocol() {
            0 => random.pick(&[TCP, UDP]),
            ICMP | ICMPV6 => icmp_of(own),
            protocol => protocol,
        };
        let port = match (key.port(), key.width()) {
            (0, _) => random.pick(&PORTS),
            (port, 0) => port,
            (first, width) => first + random.below(1 << (4 * width)) as u16,
        };
        Some(match key.direction() {
            Some(Direction::Ingress) => (peer, own, port, protocol),
            _ => (own, peer, port, protocol),
        })
    }

    /// What comes after a generation: the same, a little different, or another.
    pub(crate) fn next(&self, before: &Tables, random: &mut Random) -> Tables {
        let mut tables = before.clone();
        match random.below(8) {
            0 => return self.tables(random),
            1 => return tables,
            _ => {}
        }
        for _ in 0..random.within(1, 6) {
            match random.below(7) {
                6 => self.agreement(&mut tables, random),
                0 => self.network(&mut tables, random),
                1 => {
                    if let Some(key) = nth(tables.networks.keys(), random) {
                        tables.networks.remove(&key);
                    }
                }
                2 => {
                    let home = &self.homes[random.below(self.homes.len())];
                    tables.pods.remove(&home.ifindex);
                    self.place(&mut tables, home, random);
                }
                _ => {
                    let Some(of) = nth(tables.rules.keys(), random) else {
                        continue;
                    };
                    let rules = tables.rules.entry(of).or_default();
                    for _ in 0..random.within(1, 12) {
                        let (key, rule) = self.rule(random);
                        rules.insert(key, rule);
                        if let Some(key) = nth(rules.keys(), random) {
                            rules.remove(&key);
                        }
                    }
                }
            }
        }
        tables
    }
}

fn nth<'a, T: Copy + 'a>(
    of: impl ExactSizeIterator<Item = &'a T>,
    random: &mut Random,
) -> Option<T> {
    let mut of = of;
    match of.len() {
        0 => None,
        length => of.nth(random.below(length)).copied(),
    }
}
