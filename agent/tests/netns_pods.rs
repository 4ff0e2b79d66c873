//! Pods that come and go while the agent runs: no gate is late, and what is known of a pod goes with it. Needs root.
//! `CARDINAL_STARTS`, `CARDINAL_REUSES`, `CARDINAL_PODS` and `CARDINAL_DEATHS` set how often, `cargo xtask test --long` sets all.

#[path = "netns/node.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the node")]
mod node;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use agent_common::{Action, Direction, Identity, Reason, Rule, RuleKey};
use cardinal_agent::datapath::{Datapath, Discovery, Hold, Network, Owner, Pod};
use node::{Agent, Birth, Guest, PORT, Sender, Sink, ip, until};
use world::{World, chain, inside};

/// Rounds of an ordinary run.
const ROUNDS: u32 = 6;
/// Pods at once in an ordinary run.
const AT_ONCE: u32 = 40;

/// The world's first pods: the cell `shop` has one that receives, the cell `bank` too, and the third is nobody's.
const SHOP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BANK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
/// Addresses of pods that come and go.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

/// What a variable says; in an ordinary run it is not there.
fn number(variable: &str, ordinary: u32) -> u32 {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
        Err(_) => ordinary,
    }
}

/// Two cells that are open inside and declare nothing else.
fn documents(shop: &[Ipv4Addr], bank: &[Ipv4Addr]) -> String {
    let cell = |project: &str, addresses: &[Ipv4Addr]| {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| format!("\"{address}\""))
            .collect();
        format!(
            "apiVersion: cardinal.dev/v1alpha1\nkind: Cell\nmetadata: {{ name: {project}, namespace: default }}\n\
             spec:\n  organization: acme\n  project: {project}\n  environment: prod\n  intra: open\n  components:\n    \
             - name: worker\n      type: Service\n      workloads: {{ addresses: [{}] }}\n      endpoints:\n        \
             - {{ name: feed, type: UDP, port: {PORT} }}\n",
            addresses.join(", ")
        )
    };
    format!("{}---\n{}", cell("shop", shop), cell("bank", bank))
}

/// The third octet and the fourth count.
fn guest(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 78, high, low)
}

/// What pods sent whom they must not, before they were held.
struct Starts {
    sent: u64,
    to_the_other_cell: u64,
    to_the_world: u64,
    /// Pods of which something reached the world.
    early: u32,
}

struct Stage {
    world: World,
    shop: Sink,
    bank: Sink,
    outside: Sink,
}

impl Stage {
    fn new() -> Self {
        let world = World::new(3);
        let sink = |pod: usize| Sink::open(&world.pods[pod].netns);
        Self {
            shop: sink(0),
            bank: sink(1),
            outside: sink(2),
            world,
        }
    }

    fn guest(&self, number: u32, ifname: &str) -> Guest {
        let node = &self.world.node;
        Guest::new(node, format!("{node}-g{number}"), ifname)
    }

    /// Starts pods of the shop that send from their first instant to everybody; gives what reached whom it must not.
    fn starts(&self, agent: &Agent, rounds: u32, births: &[Birth], held: bool) -> Starts {
        let (mut sent, mut early) = (0, 0);
        for round in 0..rounds {
            let address = guest(1 + (round % 200) as u16);
            let pod = self.guest(round, &format!("g{round}"));
            let (before, outside) = (self.shop.from(address), self.outside.from(address));
            let sender = Sender::start(&pod.netns, None, vec![OUTSIDE, BANK, SHOP]);
            let birth = births[round as usize % births.len()];
            pod.link(birth, None);
            pod.up(address);
            // Only once its gates let it: until then it is held.
            until("a declared packet of the new pod", agent, || {
                self.shop.from(address) > before
            });
            if !held {
                // Without quarantine declared packets pass from the start, so this says when the gates stand.
                agent.wait("a guarded pod", |status| {
                    enforced(status).contains(&address)
                });
            }
            sent += sender.end();
            pod.unlink();
            early += u32::from(self.outside.from(address) > outside);
        }
        let leaked = |sink: &Sink| {
            sink.all()
                .iter()
                .filter(|(from, _)| from.octets()[1] == GUEST.octets()[1])
                .map(|(_, packets)| packets)
                .sum::<u64>()
        };
        Starts {
            sent,
            to_the_other_cell: leaked(&self.bank),
            to_the_world: leaked(&self.outside),
            early,
        }
    }
}

/// Addresses of the pods that the status calls enforced.
fn enforced(status: &serde_json::Value) -> Vec<Ipv4Addr> {
    let pods = status["pods"].as_array().expect("a list of pods");
    pods.iter()
        .filter(|pod| pod["enforced"] == true)
        .filter_map(|pod| pod["addresses"][0].as_str()?.parse().ok())
        .collect()
}

fn nobody_is_held(agent: &Agent) {
    agent.wait("the end of the quarantine", |status| {
        status["datapath"]["quarantine"] == serde_json::json!([])
    });
}

#[test]
fn netns_pods_that_send_from_their_first_instant_reach_no_other_cell() {
    let stage = Stage::new();
    let guests: Vec<_> = (1..=200).map(guest).chain([SHOP]).collect();
    let agent = Agent::start(&stage.world, &documents(&guests, &[BANK]), &[]);
    let begun = Instant::now();
    let rounds = number("CARDINAL_STARTS", ROUNDS);
    let starts = stage.starts(&agent, rounds, &Birth::AT_ONCE, true);
    let held = agent.held_after();
    println!(
        "{rounds} starts in {} s, {} packets sent, {} reached the other cell, {} of {} pods the world; from message to both gates: \
         median {} µs, 99 % {} µs, most {} µs",
        begun.elapsed().as_secs(),
        starts.sent,
        starts.to_the_other_cell,
        starts.to_the_world,
        starts.early,
        held[held.len() / 2],
        held[held.len() * 99 / 100],
        held[held.len() - 1],
    );
    // The other cell's gates stand, whoever sends.
    assert_eq!(starts.to_the_other_cell, 0, "{}", agent.log());
    // The kernel tells of an interface and does not wait: on a machine that is busy with other things, a pod may be first.
    assert!(starts.early <= rounds.div_ceil(20), "{}", agent.log());
    // One that a generation guards before the message about it is read needs no holding.
    assert!(
        held.len() as u32 + rounds.div_ceil(20) >= rounds,
        "{} were held: {}",
        held.len(),
        agent.log()
    );
    nobody_is_held(&agent);
}

#[test]
fn netns_a_pair_that_leads_out_of_the_node_by_a_move_is_held() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.world, &documents(&[SHOP, GUEST], &[BANK]), &[]);
    let pod = stage.guest(1, "moved");
    pod.link(Birth::Moved, None);
    agent.wait("holding the pod", |status| {
        status["datapath"]["quarantine"][0]["interface"] == "moved"
    });
    let sender = Sender::start(&pod.netns, None, vec![OUTSIDE, BANK, SHOP]);
    pod.up(GUEST);
    until("a packet of the pod", &agent, || stage.shop.from(GUEST) > 0);
    drop(sender);
    for sink in [&stage.outside, &stage.bank] {
        assert_eq!(sink.from(GUEST), 0, "{}", agent.log());
    }
    nobody_is_held(&agent);
}

#[test]
fn netns_without_quarantine_a_pod_sends_before_it_is_guarded() {
    // What the test above would see if nothing held new interfaces.
    let stage = Stage::new();
    let guests: Vec<_> = (1..=200).map(guest).chain([SHOP]).collect();
    let agent = Agent::start(
        &stage.world,
        &documents(&guests, &[BANK]),
        &["--quarantine", "0"],
    );
    let starts = stage.starts(&agent, 6, &Birth::ALL, false);
    assert!(
        starts.to_the_world > 0,
        "of {} packets: {}",
        starts.sent,
        agent.log()
    );
    assert_eq!(starts.to_the_other_cell, 0, "{}", agent.log());
}

#[test]
fn netns_nothing_is_judged_as_the_pod_that_had_the_interface_before() {
    const INDEX: u32 = 7700;
    let stage = Stage::new();
    let of = |shop: bool| match shop {
        true => (&stage.shop, &stage.bank),
        false => (&stage.bank, &stage.shop),
    };
    let text = |guest_is_shops: bool| match guest_is_shops {
        true => documents(&[SHOP, GUEST], &[BANK, OTHER]),
        false => documents(&[SHOP, OTHER], &[BANK, GUEST]),
    };
    let mut shops = true;
    let agent = Agent::start(&stage.world, &text(shops), &[]);
    let (mut sent, rounds) = (0, number("CARDINAL_REUSES", ROUNDS));
    for round in 0..rounds {
        // A pod at the interface, with its own identity.
        let first = stage.guest(2 * round, "reused");
        let (own, _) = of(shops);
        let before = own.from(GUEST);
        let sender = Sender::start(&first.netns, None, vec![SHOP, BANK]);
        first.link(Birth::ALL[round as usize % 3], Some(INDEX));
        first.up(GUEST);
        until("a packet of the first pod", &agent, || {
            own.from(GUEST) > before
        });
        drop(sender);
        // Its address, or its interface alone, becomes the other cell's; name and index stay.
        let second = stage.guest(2 * round + 1, "reused");
        let moves = round % 2 == 0;
        let (address, claim) = match moves {
            true => (GUEST, None),
            false => (OTHER, Some(GUEST)),
        };
        let senders = [
            Sender::start(&second.netns, claim, vec![SHOP, BANK]),
            Sender::start(&second.netns, None, vec![SHOP, BANK]),
        ];
        first.unlink();
        if moves {
            shops = !shops;
            agent.publish(&text(shops));
        }
        let (own, others) = match moves {
            true => of(shops),
            false => of(!shops),
        };
        // Packets of the first pod are all there or lost: its interface is gone.
        let (old, new) = (others.from(GUEST), own.from(address));
        second.link(Birth::ALL[round as usize % 3], Some(INDEX));
        second.up(address);
        until("a packet of the second pod", &agent, || {
            own.from(address) > new
        });
        sent += senders.into_iter().map(Sender::end).sum::<u64>();
        let packets = others.from(GUEST) - old;
        assert_eq!(
            packets,
            0,
            "round {round}: judged as the pod before; {}",
            agent.log()
        );
        second.unlink();
    }
    println!("{rounds} rounds, {sent} packets of second pods");
    nobody_is_held(&agent);
}

#[test]
fn netns_many_pods_at_once_are_all_guarded() {
    let count = number("CARDINAL_PODS", AT_ONCE);
    let count = u16::try_from(count).expect("a number of pods");
    let stage = Stage::new();
    let addresses: Vec<_> = (1..=count).map(guest).collect();
    let all: Vec<_> = addresses.iter().copied().chain([SHOP]).collect();
    let agent = Agent::start(&stage.world, &documents(&all, &[BANK]), &[]);
    let pods: Vec<_> = (1..=count)
        .map(|number| stage.guest(number.into(), &format!("g{number}")))
        .collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        for part in pods.chunks(pods.len().div_ceil(8)) {
            let (pods, addresses) = (&pods, &addresses);
            scope.spawn(move || {
                for pod in part {
                    let number = pods
                        .iter()
                        .position(|other| std::ptr::eq(other, pod))
                        .expect("it is one of them");
                    pod.link(Birth::AT_ONCE[number % 2], None);
                    pod.up(addresses[number]);
                }
            });
        }
    });
    let made = begun.elapsed();
    agent.wait("guarding all pods", |status| {
        let enforced = enforced(status);
        addresses.iter().all(|address| enforced.contains(address))
    });
    let held = agent.held_after();
    println!(
        "{count} pods made in {} ms, guarded and in a generation after {} ms; from message to both gates: median {} µs, most {} µs",
        made.as_millis(),
        begun.elapsed().as_millis(),
        held[held.len() / 2],
        held[held.len() - 1],
    );
    for (pod, address) in pods.iter().zip(&addresses) {
        let sender = Sender::start(&pod.netns, None, vec![OUTSIDE, BANK, SHOP]);
        until("a declared packet of each pod", &agent, || {
            stage.shop.from(*address) > 0
        });
        drop(sender);
    }
    for sink in [&stage.outside, &stage.bank] {
        assert_eq!(sink.all(), Default::default(), "{}", agent.log());
    }
    nobody_is_held(&agent);
}

#[test]
fn netns_a_namespace_that_dies_half_way_stops_nobody() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.world, &documents(&[SHOP, GUEST], &[BANK]), &[]);
    let rounds = number("CARDINAL_DEATHS", ROUNDS);
    let mut early = 0;
    for round in 0..rounds {
        let dying: Vec<_> = (0..4)
            .map(|number| stage.guest(10_000 + 4 * round + number, &format!("d{round}-{number}")))
            .collect();
        let pod = stage.guest(round, "g");
        let before = stage.shop.from(GUEST);
        let outside = stage.outside.from(GUEST);
        let sender = Sender::start(&pod.netns, None, vec![SHOP, OUTSIDE]);
        let death = thread::spawn(move || {
            for pod in dying {
                pod.link(Birth::Node, None);
                // Dropped here: the namespace goes while its interface is looked at.
            }
        });
        pod.link(Birth::AT_ONCE[round as usize % 2], None);
        pod.up(GUEST);
        until("a packet of the pod that lives", &agent, || {
            stage.shop.from(GUEST) > before
        });
        death.join().expect("namespaces can be deleted");
        assert!(sender.end() > 0);
        // Namespaces are taken apart some time after their name is gone.
        agent.wait("the end of the dead pods", |status| {
            let pods = status["pods"].as_array().expect("a list of pods");
            let names: Vec<_> = pods
                .iter()
                .filter_map(|pod| pod["interface"].as_str())
                .collect();
            !names.iter().any(|name| name.starts_with('d'))
        });
        pod.unlink();
        early += u32::from(stage.outside.from(GUEST) > outside);
    }
    println!("{rounds} rounds, {early} pods that live reached the world before their gates stood");
    // On a machine that is busy with other things a pod may be first, beside dead ones or not.
    assert!(early <= rounds.div_ceil(20), "{}", agent.log());
    nobody_is_held(&agent);
}

#[test]
fn netns_interfaces_of_nobody_are_released_and_work() {
    let stage = Stage::new();
    let agent = Agent::start(
        &stage.world,
        &documents(&[SHOP], &[BANK]),
        &["--quarantine", "1"],
    );
    let filters = |ifname: &str| {
        stage
            .world
            .on_node(&format!("tc filter show dev {ifname} ingress"))
            + &stage
                .world
                .on_node(&format!("tc filter show dev {ifname} egress"))
    };
    // With an address that no component has: as long as it takes to see that.
    let stranger = stage.guest(1, "stranger");
    stranger.link(Birth::Node, None);
    assert!(
        agent.held_after().len() == 1 || !agent.status()["datapath"]["quarantine"].is_null(),
        "{}",
        agent.log()
    );
    stranger.up(GUEST);
    let sender = Sender::start(&stranger.netns, None, vec![OUTSIDE]);
    until("a packet of nobody's pod", &agent, || {
        stage.outside.from(GUEST) > 0
    });
    drop(sender);
    assert_eq!(filters("stranger"), "");
    // Without one: until the time is over.
    let silent = stage.guest(2, "silent");
    silent.link(Birth::Node, None);
    agent.wait("holding the silent one", |status| {
        status["datapath"]["quarantine"][0]["interface"] == "silent"
    });
    assert!(
        agent
            .metrics()
            .contains("cardinal_datapath_quarantined_interfaces 1")
    );
    assert!(
        filters("silent").contains("cell_egress"),
        "{}",
        filters("silent")
    );
    nobody_is_held(&agent);
    assert_eq!(filters("silent"), "");
    assert!(
        agent
            .metrics()
            .contains("cardinal_datapath_quarantine_expired_total 1")
    );
    silent.up(OTHER);
    let sender = Sender::start(&silent.netns, None, vec![OUTSIDE]);
    until("a packet of the silent one", &agent, || {
        stage.outside.from(OTHER) > 0
    });
    drop(sender);
    // What was there before the agent is not held.
    let here = stage.world.pods[2].netns.clone();
    let there = std::net::SocketAddr::from((GUEST, PORT));
    let to = Sink::open(&stranger.netns);
    inside(&here, move || {
        std::net::UdpSocket::bind("0.0.0.0:0")
            .and_then(|socket| socket.send_to(b"x", there))
            .expect("there is a route")
    });
    until("a packet to nobody's pod", &agent, || to.from(OUTSIDE) > 0);
    ip(Some(&stage.world.node), &["link del silent".to_owned()]);
}

/// Counted drops of what interfaces without a pod sent.
fn dropped(datapath: &Datapath) -> u64 {
    let rows = datapath.counters().expect("counters can be read");
    rows.iter()
        .filter(|row| row.way == Direction::Egress && row.reason == Reason::NoEndpoint)
        .map(|row| row.packets)
        .sum()
}

#[test]
fn netns_an_index_that_comes_back_is_nobodys_in_every_generation() {
    const INDEX: u32 = 7701;
    const UDP: u8 = 17;
    let world = World::new(1);
    let sink = Sink::open(&world.pods[0].netns);
    let datapath = world.open();
    let handle = datapath.clone();
    let mut pods = inside(&world.node, move || handle.watch_pods(Hold::New))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let tables = |generation, found: &Discovery| {
        let mut tables = world.tables(generation, &[10]);
        let (receiver, guest) = (Identity::component(1), Identity::component(2));
        let owner = Owner {
            identity: guest,
            ifindex: INDEX,
            cell: 10,
        };
        tables.identities.insert(Network::host(GUEST.into()), owner);
        let pod = Pod {
            ifname: "reused".to_owned(),
            identity: guest,
            cell: 10,
            whole: None,
            lookups: agent_common::Lookups::default(),
            mac: found
                .pods
                .iter()
                .find(|pod| pod.ifindex == INDEX)
                .expect("it was found")
                .mac,
        };
        tables.endpoints.insert(INDEX, pod);
        for (of, to, way) in [
            (guest, receiver, Direction::Egress),
            (receiver, guest, Direction::Ingress),
        ] {
            let rules = tables.policies.entry(of).or_default();
            rules.insert(RuleKey::new(to, PORT, UDP, way), Rule::new(Action::Pass, 1));
        }
        tables
    };
    let activate = |generation, found: &Discovery| {
        let (datapath, tables, found) =
            (datapath.clone(), tables(generation, found), found.clone());
        inside(&world.node, move || {
            let prepared = datapath.prepare(&tables)?;
            datapath.withdraw(generation, &found)?;
            prepared.flip().map(drop)
        })
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    };
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let end = Instant::now() + node::SURELY;
        while !holds() {
            assert!(Instant::now() < end, "{what} does not happen");
            thread::sleep(Duration::from_millis(1));
        }
    };
    let held = || datapath.held().iter().any(|held| held.ifindex == INDEX);
    let number = |found: &Discovery| {
        let pod = found.pods.iter().find(|pod| pod.ifindex == INDEX);
        pod.map_or(0, |pod| pod.number)
    };

    let first = Guest::new(&world.node, format!("{}-g1", world.node), "reused");
    first.link(Birth::Node, Some(INDEX));
    wait("holding the first pod", &held);
    first.up(GUEST);
    let stale = pods.look(true).expect("the node can be looked at");
    activate(1, &stale);
    assert!(!held(), "it is a pod now");
    let sender = Sender::start(&first.netns, None, vec![SHOP]);
    wait("a packet of the first pod", &|| sink.from(GUEST) > 0);
    drop(sender);

    first.unlink();
    let second = Guest::new(&world.node, format!("{}-g2", world.node), "reused");
    second.link(Birth::Node, Some(INDEX));
    wait("holding the second pod", &held);
    let (passed, before) = (sink.from(GUEST), dropped(&datapath));
    second.up(GUEST);
    let sender = Sender::start(&second.netns, None, vec![SHOP]);
    wait("a drop under the old generation", &|| {
        dropped(&datapath) > before
    });
    // Made of what was there before; so is its table.
    activate(2, &stale);
    let before = dropped(&datapath);
    wait("a drop under the generation that came late", &|| {
        dropped(&datapath) > before
    });
    assert!(held(), "nobody has classified it");
    assert_eq!(sink.from(GUEST), passed, "judged as the pod before");

    let fresh = pods.look(true).expect("the node can be looked at");
    assert_ne!(number(&fresh), number(&stale));
    activate(3, &fresh);
    wait("a packet of the second pod", &|| sink.from(GUEST) > passed);
    drop(sender);
}

#[test]
fn netns_gates_of_a_new_pod_become_links_and_outlive_the_agent() {
    let stage = Stage::new();
    let text = documents(&[SHOP, GUEST], &[BANK]);
    let agent = Agent::start(&stage.world, &text, &["--quarantine", "3600"]);
    let pod = stage.guest(1, "settled");
    let sender = Sender::start(&pod.netns, None, vec![OUTSIDE, BANK, SHOP]);
    pod.link(Birth::Pod, None);
    let status = agent.wait("holding the pod", |status| {
        status["datapath"]["quarantine"][0]["interface"] == "settled"
    });
    let held = &status["datapath"]["quarantine"][0]["ifindex"];
    let link = stage
        .world
        .folder
        .join(format!("bpf/links/cell_ingress_{held}"));
    // The next agent finds it in quarantine, and keeps it there.
    drop(agent);
    let agent = Agent::start(&stage.world, &text, &["--quarantine", "3600"]);
    let status = agent.status();
    assert_eq!(&status["datapath"]["quarantine"][0]["ifindex"], held);
    assert!(!link.exists(), "it is no pod yet");
    pod.up(GUEST);
    until("a packet of the pod", &agent, || stage.shop.from(GUEST) > 0);
    if status["datapath"]["hook"] == "tcx" {
        until("links in the place of filters", &agent, || link.exists());
        let filters = || stage.world.on_node("tc filter show dev settled egress");
        until("the end of the filters", &agent, || filters().is_empty());
    }
    let before = stage.shop.from(GUEST);
    until("another packet of the pod", &agent, || {
        stage.shop.from(GUEST) > before
    });
    drop(sender);
    for sink in [&stage.outside, &stage.bank] {
        assert_eq!(sink.from(GUEST), 0, "{}", agent.log());
    }
}
