//! The maps of the active generation.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::time::Instant;

use agent_common::{Control, Listener, ListenerKey, Rule, RuleKey, SocketKey};
use aya::maps::MapData;

use super::{Care, Digest, Looked, TableState, restore};
use crate::datapath::{
    Inner,
    error::Error,
    maps,
    slots::Slots,
    tables::Rules,
    wire::{Raw, bytes},
    write,
};

impl Inner {
    /// Which generation is active, and the layout and clock that go with it.
    pub(super) fn check_control(&mut self) -> Looked {
        let found = self.maps.control()?;
        let wanted = Control::new(self.active, self.ticks_per_second)
            .picking_up_until(found.pick_up_until());
        let mut digest = Digest::default();
        digest.add(&[], bytes(&wanted));
        let mut state = TableState::sound("control", digest);
        if found == wanted {
            return Ok((state, Ok(())));
        }
        state.drifted = 1;
        Ok((state, self.maps.set_control(wanted)))
    }

    /// Every map that belongs to a generation.
    pub(super) fn check_tables(&mut self, care: &mut Care, large: bool) {
        if large {
            let started = Instant::now();
            care.note(self.check_identities());
            for looked in self.services.restore(self.active) {
                care.note(looked);
            }
            care.large_took = Some(started.elapsed());
        }
        care.note(self.check_endpoints());
        care.note(self.check_policies());
        care.note(self.check_flows());
        care.note(self.check_unassured());
        care.note(self.check_fragments());
        care.note(self.check_listeners());
    }

    fn check_identities(&mut self) -> Looked {
        // What is left over from the generation before is nobody's any more, and goes first.
        if !self.settled {
            self.settle()?;
        }
        self.maps.identities.sweep()?;
        let size = self.maps.sizes.get("identities").copied().unwrap_or(0);
        self.maps.identities.restore(self.active, size)
    }

    fn check_endpoints(&self) -> Looked {
        let (map, size) = self.map("endpoints")?;
        let wanted = match self.live.get(&self.active) {
            Some(live) => live.endpoints(self.active).collect(),
            None => BTreeMap::new(),
        };
        self.gates.restore_pods(map, size, wanted)
    }

    fn check_listeners(&self) -> Looked {
        let (map, size) = self.map("listeners")?;
        let wanted: BTreeMap<ListenerKey, Listener> = match self.live.get(&self.active) {
            Some(live) => write::listeners(live.tables()).collect(),
            None => BTreeMap::new(),
        };
        restore("listeners", map, size, &wanted)
    }

    /// The rules of each component: whether the slot holds the table that was put there, and the table what was written.
    fn check_policies(&mut self) -> Looked {
        let (mut digest, mut entries, mut drifted, mut repaired) =
            (Digest::default(), 0, 0, Ok(()));
        let Some(live) = self.live.get(&self.active) else {
            return Ok((TableState::sound("policies", digest), repaired));
        };
        self.maps.policies.look();
        for (identity, slot) in live.policy_slots() {
            let Some(rules) = live.tables().policies.get(identity) else {
                continue;
            };
            let wanted = Digest::of(rules.iter());
            digest.add(&identity.raw().to_be_bytes(), &wanted.hash().to_be_bytes());
            entries += wanted.count();
            let differs = differs(&mut self.maps.policies, *slot, rules, wanted)?;
            if differs > 0 {
                drifted += differs;
                // A table of its own takes its place in one step, so that no packet sees it half repaired.
                repaired = repaired.and(
                    self.inner_maps
                        .rules(rules)
                        .and_then(|map| self.maps.policies.replace(*slot, &map)),
                );
            }
        }
        let state = TableState {
            entries,
            drifted,
            ..TableState::sound("policies", digest)
        };
        Ok((state, repaired))
    }

    /// Whether each pod has its table of flows. What is in it is the programs' own.
    fn check_flows(&mut self) -> Looked {
        let slots = self.flow_slots();
        let maker = &self.inner_maps;
        each_has_its_own("flows", &mut self.maps.flows, &slots, || {
            maker.flows(maker.flows_per_pod())
        })
    }

    /// The same for its table of flows that are not assured.
    fn check_unassured(&mut self) -> Looked {
        let slots = self.flow_slots();
        let maker = &self.inner_maps;
        each_has_its_own("unassured", &mut self.maps.unassured, &slots, || {
            maker.unassured(maker.unassured_per_pod())
        })
    }

    /// The same for its table of fragments.
    fn check_fragments(&mut self) -> Looked {
        let slots = self.flow_slots();
        let maker = &self.inner_maps;
        each_has_its_own("fragments", &mut self.maps.fragments, &slots, || {
            maker.fragments(maker.fragments_per_pod())
        })
    }

    /// The router's sockets: whether the kernel has one for each address. It does not say which.
    pub(super) fn check_sockets(&mut self, sockets: &[(SocketKey, RawFd)]) -> Looked {
        let present: Vec<SocketKey> = self
            .maps
            .sockets
            .keys()
            .map(|key| key.map(|Raw(key)| key))
            .collect::<Result<_, _>>()
            .map_err(Error::map("list", "sockets"))?;
        let mut digest = Digest::default();
        for (key, _) in sockets {
            digest.add(bytes(key), &[]);
        }
        let mut state = TableState::sound("sockets", digest);
        let mut repaired = Ok(());
        for (key, socket) in sockets.iter().filter(|(key, _)| !present.contains(key)) {
            state.drifted += 1;
            let written = self.maps.sockets.insert(Raw(*key), socket.as_raw_fd(), 0);
            repaired = repaired.and(written.map_err(Error::map("write", "sockets")));
        }
        for key in present {
            if !sockets.iter().any(|(wanted, _)| *wanted == key) {
                state.drifted += 1;
                let removed = self.maps.sockets.remove(&Raw(key));
                repaired = repaired.and(maps::gone(removed, "sockets"));
            }
        }
        Ok((state, repaired))
    }
}

/// Whether each slot holds the table that was put there; one that does not gets an empty one.
fn each_has_its_own(
    name: &'static str,
    tables: &mut Slots,
    slots: &[u32],
    make: impl Fn() -> Result<MapData, Error>,
) -> Looked {
    let mut state = TableState::sound(name, Digest::default());
    let mut repaired = Ok(());
    tables.look();
    for slot in slots {
        state.entries += 1;
        if !tables.holds_its_own(*slot)? {
            state.drifted += 1;
            repaired = repaired.and(make().and_then(|map| tables.replace(*slot, &map)));
        }
    }
    Ok((state, repaired))
}

/// How many rules of a slot are not as wanted; all of them if the slot holds another table.
fn differs(slots: &mut Slots, slot: u32, rules: &Rules, wanted: Digest) -> Result<usize, Error> {
    let all = rules.len().max(1);
    if !slots.holds_its_own(slot)? {
        return Ok(all);
    }
    let Some(map) = slots.own(slot) else {
        return Ok(all);
    };
    let map = map.fd().as_fd();
    let failed = || Error::kernel("read a table of rules");
    let found = super::digest::<RuleKey, Rule>(map, all, |rule| *rule).map_err(failed())?;
    if found == wanted {
        return Ok(0);
    }
    let rules = rules.iter().map(|(key, rule)| (*key, *rule)).collect();
    let difference = super::compare(map, all, &rules, wanted, |rule| *rule).map_err(failed())?;
    Ok(difference.map_or(0, |difference| difference.len()))
}
