//! The node: real programs and maps, run frame by frame with `BPF_PROG_TEST_RUN`.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::time::Duration;

use agent_common::{
    Counter, CounterKey, Direction, Endpoint, EndpointKey, FlowKey, FlowState, FlowValue, Path,
    Reason, Tally, Verdict, Wire,
};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuHashMap};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use cardinal_agent::datapath::{Datapath, DatapathConfig, GateHook, KernelTables, Prepared};

use crate::cable::{self, Cable};
use crate::model::{Asked, Ends, Flow, FlowId, Judged, SECOND};
use crate::sockets::Sockets;
use crate::world::{World, chain, inside};

/// A wire type that aya may copy.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Raw<T: Wire>(T);

// SAFETY: `Wire` demands what `Pod` does, and `Raw` is transparent.
unsafe impl<T: Wire> aya::Pod for Raw<T> {}

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) mark: u32,
    pub(crate) control: [u32; 5],
    pub(crate) frame: Vec<u8>,
}

/// What a packet is counted under: cell, way, path, verdict, reason.
pub(crate) type Counted = (u32, Direction, Path, Verdict, Reason);

/// Counted packets by what they were counted under.
pub(crate) type Counters = BTreeMap<Counted, u64>;

/// What the packet of a judgement is counted under.
pub(crate) fn counted(judged: &Judged) -> Counted {
    (
        judged.cell,
        judged.way,
        judged.path,
        judged.verdict,
        judged.reason,
    )
}

type Flows = HashMap<MapData, Raw<FlowKey>, Raw<FlowValue>>;
type Notes = HashMap<MapData, [u8; 40], [u8; 4]>;

/// A node with its datapath.
pub(crate) struct Kernel {
    datapath: Datapath,
    prepared: Option<Prepared>,
    gates: [SchedClassifier; 2],
    explainer: Explainer,
    tallies: PerCpuArray<MapData, Raw<Tally>>,
    counters: PerCpuHashMap<MapData, Raw<CounterKey>, Raw<Counter>>,
    endpoints: HashMap<MapData, Raw<EndpointKey>, Raw<Endpoint>>,
    /// Of assured flows, of others, and of fragments.
    outer: [ArrayOfMaps<MapData>; 3],
    /// The tables of each pod of the active generation.
    flows: BTreeMap<u32, [Flows; 2]>,
    fragments: BTreeMap<u32, Notes>,
    cable: Cable,
    sockets: Sockets,
    ticks_per_second: u64,
    out: Vec<u8>,
}

/// Nanoseconds of a clock that never jumps. It is some days ahead, so that what was long ago has a time too.
pub(crate) fn now() -> u64 {
    let time =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock runs");
    (time.tv_sec() as u64 + 1_000_000) * SECOND + time.tv_nsec() as u64
}

impl Kernel {
    /// Opens the datapath on the node. Connections that are older than it are picked up for this long.
    pub(crate) fn open(world: &World, pick_up: Duration) -> Self {
        let cable = Cable::open(world);
        let config = DatapathConfig {
            pick_up,
            ..world.config(GateHook::Auto)
        };
        let datapath = inside(&world.node, move || Datapath::open(&config))
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let pins = world.folder.join("bpf");
        let maps = std::fs::read_dir(&pins)
            .expect("the pins have a folder")
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.join("control").exists())
            .expect("the maps are pinned");
        let pinned = |name: &str| {
            MapData::from_pin(maps.join(name)).unwrap_or_else(|error| panic!("map {name}: {error}"))
        };
        let program = |name: &str| program(&pins, name);
        let step = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
            .expect("the clock has steps");
        Self {
            prepared: None,
            gates: ["cell_egress", "cell_ingress"].map(program),
            explainer: Explainer::open(world),
            tallies: PerCpuArray::try_from(Map::PerCpuArray(pinned("tallies")))
                .expect("an array of each CPU"),
            counters: PerCpuHashMap::try_from(Map::PerCpuHashMap(pinned("counters")))
                .expect("a hash of each CPU"),
            endpoints: HashMap::try_from(Map::HashMap(pinned("endpoints"))).expect("a hash"),
            outer: ["flows", "unassured", "fragments"].map(|name| {
                ArrayOfMaps::try_from(Map::ArrayOfMaps(pinned(name))).expect("an array of maps")
            }),
            flows: BTreeMap::new(),
            fragments: BTreeMap::new(),
            datapath,
            cable,
            sockets: Sockets::default(),
            ticks_per_second: SECOND / step.tv_nsec() as u64,
            out: vec![0; 16384],
        }
    }

    /// Writes a generation beside the active one; what was prepared before is undone.
    pub(crate) fn prepare(&mut self, tables: &KernelTables) {
        self.abandon();
        self.prepared = Some(self.datapath.prepare(tables).expect("it fits"));
    }

    /// Undoes what was prepared.
    pub(crate) fn abandon(&mut self) {
        drop(self.prepared.take());
    }

    /// Switches to the generation that was prepared, and removes the one before.
    pub(crate) fn flip(&mut self) {
        let before = self.datapath.active_generation();
        let prepared = self.prepared.take().expect("something is prepared");
        let active = prepared.generation();
        prepared.flip().expect("the gates can be attached");
        if before != 0 {
            self.datapath.retire(before).expect("it is not active");
        }
        self.flows.clear();
        self.fragments.clear();
        for entry in self.endpoints.iter() {
            let (Raw(key), Raw(endpoint)) = entry.expect("endpoints can be listed");
            if key.generation() == active {
                let [assured, others, notes] = self.outer.each_ref().map(|outer| {
                    let table = outer.get(&endpoint.flows(), 0);
                    Map::LruHashMap(table.expect("it has one of each"))
                });
                let flows = [assured, others].map(|map| Flows::try_from(map).expect("an LRU hash"));
                self.flows.insert(key.ifindex(), flows);
                let notes = Notes::try_from(notes).expect("an LRU hash");
                self.fragments.insert(key.ifindex(), notes);
            }
        }
    }

    /// Opens or closes the router's transparent listeners, and closes its connections.
    pub(crate) fn listeners(&mut self, v4: bool, v6: bool) {
        self.sockets.reset(&self.datapath, v4, v6);
    }

    /// Gives the router a connection.
    pub(crate) fn connect(&mut self, ends: &Ends) {
        self.sockets.connect(ends);
    }

    /// Runs the program of a gate; `None` if the frame had to go over the wire, where nobody sees what became of it. Belongs
    /// into the node's namespace, where interface numbers are the pods'.
    pub(crate) fn run(&mut self, asked: &Asked) -> Option<Ran> {
        if cable::refused(&asked.frame) {
            self.cable.send(asked);
            return None;
        }
        Some(test(
            &self.gates[asked.way as usize],
            asked,
            0,
            &mut self.out,
        ))
    }

    /// Asks what a gate would say, in a generation (0: the active one).
    pub(crate) fn explain(&mut self, asked: &Asked, generation: u32) -> Ran {
        self.explainer.explain(asked, generation)
    }

    /// Packets counted under a key, all CPUs together.
    pub(crate) fn count(&self, (cell, way, path, verdict, reason): Counted) -> u64 {
        let key = CounterKey::new(cell, way, path, verdict, reason);
        let places = self
            .tallies
            .get(&Tally::place(&key), 0)
            .expect("tallies can be read");
        let own = |(of, counter): (CounterKey, Counter)| (of == key).then(|| counter.packets());
        let tallied: u64 = places
            .iter()
            .filter_map(|place| place.0.read().and_then(own))
            .sum();
        tallied
            + match self.counters.get(&Raw(key), 0) {
                Ok(values) => values.iter().map(|value| value.0.packets()).sum(),
                Err(MapError::KeyNotFound) => 0,
                Err(error) => panic!("counters can be read: {error}"),
            }
    }

    /// All counters.
    pub(crate) fn counters(&self) -> Counters {
        let rows = self.datapath.counters().expect("counters can be listed");
        rows.into_iter()
            .map(|row| {
                let key = (row.cell, row.way, row.path, row.verdict, row.reason);
                (key, row.packets)
            })
            .collect()
    }

    /// How many connections each rule decided.
    pub(crate) fn hits(&self) -> BTreeMap<u32, u64> {
        self.datapath.hits().expect("hits can be listed")
    }

    /// What the programs remember of connections.
    pub(crate) fn flows(&self) -> BTreeMap<(u32, FlowId), Flow> {
        let mut all = BTreeMap::new();
        let tables = self.flows.iter().flat_map(|(ifindex, [assured, others])| {
            [(ifindex, assured, true), (ifindex, others, false)]
        });
        for (ifindex, table, assured) in tables {
            for entry in table.iter() {
                let (Raw(key), Raw(value)) = entry.expect("flows can be listed");
                let id = FlowId {
                    local: u128::from_be_bytes(key.local()),
                    remote: u128::from_be_bytes(key.remote()),
                    local_port: key.local_port(),
                    remote_port: key.remote_port(),
                    protocol: key.protocol(),
                };
                let before = all.insert((*ifindex, id), flow(&value, assured));
                assert!(before.is_none(), "{id:x?} is in both tables");
            }
        }
        all
    }

    /// Makes a flow look as if its last packet had passed `idle` nanoseconds earlier. False if the kernel does not know it.
    pub(crate) fn age(&mut self, (ifindex, id): (u32, FlowId), idle: u64) -> bool {
        let ticks = idle / (SECOND / self.ticks_per_second);
        let key = Raw(FlowKey::new(
            id.local.to_be_bytes(),
            id.remote.to_be_bytes(),
            id.local_port.to_be_bytes(),
            id.remote_port.to_be_bytes(),
            id.protocol,
        ));
        let tables = self.flows.get_mut(&ifindex).into_iter().flatten();
        let found = tables
            .filter_map(|table| Some((table.get(&key, 0).ok()?, table)))
            .next();
        let Some((Raw(flow), flows)) = found else {
            return false;
        };
        let aged = FlowValue::new(
            flow.generation(),
            flow.direction(),
            flow.action(),
            flow.rule(),
            flow.peer(),
            flow.marked(),
            flow.receiver(),
            flow.path(),
            flow.state(),
            flow.seen() - ticks,
        );
        flows.insert(key, Raw(aged), 0).expect("it is there");
        true
    }

    /// Removes what packets left behind.
    pub(crate) fn forget(&mut self) {
        for flows in self.flows.values_mut().flatten() {
            let keys: Vec<_> = flows.keys().map(|key| key.expect("a flow")).collect();
            for key in keys {
                flows.remove(&key).expect("nobody else removes it");
            }
        }
        for notes in self.fragments.values_mut() {
            let keys: Vec<_> = notes.keys().map(|key| key.expect("a note")).collect();
            for key in keys {
                notes.remove(&key).expect("nobody else removes it");
            }
        }
    }
}

fn program(pins: &FilePath, name: &str) -> SchedClassifier {
    SchedClassifier::from_pin(pins.join("programs").join(name))
        .unwrap_or_else(|error| panic!("program {name}: {error}"))
}

/// The programs that explain, of a node whose datapath is open.
pub(crate) struct Explainer {
    programs: [SchedClassifier; 2],
    out: Vec<u8>,
}

impl Explainer {
    pub(crate) fn open(world: &World) -> Self {
        let pins = world.folder.join("bpf");
        Self {
            programs: ["explain_egress", "explain_ingress"].map(|name| program(&pins, name)),
            out: vec![0; 16384],
        }
    }

    /// Asks what a gate would say, in a generation (0: the active one).
    pub(crate) fn explain(&mut self, asked: &Asked, generation: u32) -> Ran {
        let program = &self.programs[asked.way as usize];
        test(program, asked, generation, &mut self.out)
    }
}

fn flow(value: &FlowValue, assured: bool) -> Flow {
    let has = |state| value.state().has(state);
    Flow {
        seen: 0,
        generation: value.generation(),
        direction: value.direction(),
        action: value.action(),
        rule: value.rule(),
        peer: value.peer(),
        marked: value.marked(),
        path: value.path(),
        replied: has(FlowState::REPLIED),
        fin_opener: has(FlowState::FIN_OPENER),
        fin_answerer: has(FlowState::FIN_ANSWERER),
        reset: has(FlowState::RESET),
        last: has(FlowState::LAST),
        assured,
        due: 0,
        agreement: None,
    }
}

/// `struct __sk_buff` of the kernel's `linux/bpf.h`, as far as a test run takes and gives it.
const CONTEXT: usize = 192;
const MARK: usize = 8;
const IFINDEX: usize = 40;
const CONTROL: usize = 48;

fn test(program: &SchedClassifier, asked: &Asked, control: u32, out: &mut [u8]) -> Ran {
    let mut context = [0_u8; CONTEXT];
    for (at, value) in [
        (MARK, asked.mark),
        (IFINDEX, asked.gate),
        (CONTROL, control),
    ] {
        context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    let mut after = [0_u8; CONTEXT];
    let mut options = TestRunOptions::new();
    options.data_in = Some(&asked.frame);
    options.data_out = Some(out);
    options.ctx_in = Some(&context);
    options.ctx_out = Some(&mut after);
    let result = program
        .test_run(options)
        .unwrap_or_else(|error| panic!("the kernel runs no program on {asked:x?}: {error:?}"));
    let word = |at: usize| {
        let bytes = after[at..at + 4].try_into().expect("four bytes");
        u32::from_ne_bytes(bytes)
    };
    Ran {
        code: result.return_value as i32,
        mark: word(MARK),
        control: [0, 1, 2, 3, 4].map(|index| word(CONTROL + index * 4)),
        frame: out[..result.data_size_out as usize].to_vec(),
    }
}

/// The hardware addresses of interfaces of the node.
pub(crate) fn hardware(world: &World) -> BTreeMap<u32, [u8; 6]> {
    let names: Vec<_> = world
        .pods
        .iter()
        .map(|pod| (pod.ifindex, pod.ifname.clone()))
        .collect();
    inside(&world.node, move || {
        names
            .into_iter()
            .map(|(ifindex, name)| (ifindex, address(&name)))
            .collect()
    })
}

fn address(interface: &str) -> [u8; 6] {
    let addresses = nix::ifaddrs::getifaddrs().expect("interfaces can be listed");
    addresses
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr()?.addr())
        .expect("a veth has a hardware address")
}
