//! The node: real programs and maps, run frame by frame with `BPF_PROG_TEST_RUN`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use agent_common::{CounterKey, Direction, FlowKey, FlowValue, Wire};
use aya::maps::{HashMap, Map, MapData, PerCpuHashMap};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, loaded_programs};
use cardinal_agent::datapath::{Datapath, KernelTables, Prepared};

use crate::cable::{self, Cable};
use crate::model::{Asked, Ends, Flow, FlowId, Judged, Path};
use crate::sockets::Sockets;
use crate::world::{World, inside};

/// A wire type that aya may copy.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Raw<T: Wire>(T);

// SAFETY: `Wire` demands what `Pod` does, and `Raw` is transparent.
unsafe impl<T: Wire> aya::Pod for Raw<T> {}

/// What a program did with a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// None if the frame went over the wire, where nobody sees it.
    pub(crate) code: Option<i32>,
    pub(crate) mark: u32,
    pub(crate) frame: Vec<u8>,
}

/// Counted packets by what they were counted under.
pub(crate) type Counters = BTreeMap<Counted, u64>;

/// What a packet is counted under: cell, way, path, verdict, reason (the last ones as they are on the wire).
pub(crate) type Counted = (u32, u8, Path, u8, u8);

/// What the packet of a judgement is counted under.
pub(crate) fn counted(judged: &Judged) -> Counted {
    (
        judged.cell,
        judged.way as u8,
        Path::None,
        judged.verdict as u8,
        judged.reason as u8,
    )
}

/// A node with its datapath.
pub(crate) struct Kernel {
    datapath: Datapath,
    prepared: Option<Prepared>,
    egress: SchedClassifier,
    ingress: SchedClassifier,
    counters: PerCpuHashMap<MapData, Raw<CounterKey>, Raw<agent_common::Counter>>,
    flows: HashMap<MapData, Raw<FlowKey>, Raw<FlowValue>>,
    fragments: HashMap<MapData, [u8; 44], [u8; 4]>,
    cable: Cable,
    sockets: Sockets,
    out: Vec<u8>,
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub(crate) fn now() -> u64 {
    let time =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("the clock runs");
    Duration::from(time).as_nanos() as u64
}

impl Kernel {
    /// Opens the datapath on the node.
    pub(crate) fn open(world: &World) -> Self {
        let cable = Cable::open(world);
        let datapath = world.open();
        let pins = world.folder.join("bpf");
        let pinned = |name: &str| {
            MapData::from_pin(pins.join(name)).unwrap_or_else(|error| panic!("map {name}: {error}"))
        };
        let control = pinned("control").info().expect("its own map").id();
        let counters = PerCpuHashMap::try_from(Map::PerCpuHashMap(pinned("counters")));
        Self {
            datapath,
            prepared: None,
            egress: program("cell_egress", control),
            ingress: program("cell_ingress", control),
            counters: counters.expect("a hash of each CPU"),
            flows: HashMap::try_from(Map::LruHashMap(pinned("flows"))).expect("an LRU hash"),
            fragments: HashMap::try_from(Map::LruHashMap(pinned("fragments")))
                .expect("an LRU hash"),
            cable,
            sockets: Sockets::default(),
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
        prepared.flip().expect("the gates can be attached");
        if before != 0 {
            self.datapath.retire(before).expect("it is not active");
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

    /// Runs the program of a gate. Belongs into the node's namespace, where interface numbers are the pods'.
    pub(crate) fn run(&mut self, asked: &Asked) -> Ran {
        if cable::refused(&asked.frame) {
            self.cable.send(asked);
            return Ran {
                code: None,
                mark: asked.mark,
                frame: asked.frame.clone(),
            };
        }
        let program = match asked.way {
            Direction::Egress => &self.egress,
            Direction::Ingress => &self.ingress,
        };
        let mut context = [0_u8; CONTEXT];
        put(&mut context, MARK, asked.mark);
        put(&mut context, IFINDEX, asked.gate);
        let mut after = [0_u8; CONTEXT];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&asked.frame);
        options.data_out = Some(&mut self.out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut after);
        let result = program
            .test_run(options)
            .unwrap_or_else(|error| panic!("the kernel runs no program on {asked:x?}: {error:?}"));
        Ran {
            code: Some(result.return_value as i32),
            mark: get(&after, MARK),
            frame: self.out[..result.data_size_out as usize].to_vec(),
        }
    }

    /// Packets counted under a key, all CPUs together.
    pub(crate) fn count(&self, (cell, way, _, verdict, reason): Counted) -> u64 {
        let key = CounterKey::new(
            cell,
            Direction::from_raw(way).expect("a way"),
            agent_common::Verdict::from_raw(verdict).expect("a verdict"),
            agent_common::Reason::from_raw(reason).expect("a reason"),
        );
        match self.counters.get(&Raw(key), 0) {
            Ok(values) => values.iter().map(|value| value.0.packets()).sum(),
            Err(aya::maps::MapError::KeyNotFound) => 0,
            Err(error) => panic!("counters can be read: {error}"),
        }
    }

    /// All counters.
    pub(crate) fn counters(&self) -> Counters {
        self.counters
            .iter()
            .map(|entry| {
                let (key, values) = entry.expect("counters can be listed");
                let key = (
                    key.0.cell(),
                    key.0.direction().expect("a way") as u8,
                    Path::None,
                    key.0.verdict().expect("a verdict") as u8,
                    key.0.reason().expect("a reason") as u8,
                );
                (key, values.iter().map(|value| value.0.packets()).sum())
            })
            .collect()
    }

    /// What the programs remember of connections.
    pub(crate) fn flows(&self) -> BTreeMap<(u32, FlowId), Flow> {
        self.flows
            .iter()
            .map(|entry| {
                let (key, value) = entry.expect("flows can be listed");
                let (key, value) = (key.0, value.0);
                let id = FlowId {
                    local: u128::from_be_bytes(key.local()),
                    remote: u128::from_be_bytes(key.remote()),
                    local_port: key.local_port(),
                    remote_port: key.remote_port(),
                    protocol: key.protocol(),
                };
                ((key.ifindex(), id), flow(&value))
            })
            .collect()
    }

    /// Makes a flow look as if its last packet had passed at `seen`. False if the kernel does not know it.
    pub(crate) fn age(&mut self, (ifindex, id): (u32, FlowId), seen: u64) -> bool {
        let key = Raw(FlowKey::new(
            ifindex,
            id.local.to_be_bytes(),
            id.remote.to_be_bytes(),
            id.local_port.to_be_bytes(),
            id.remote_port.to_be_bytes(),
            id.protocol,
        ));
        let Ok(mut value) = self.flows.get(&key, 0) else {
            return false;
        };
        value.0.touch(seen);
        self.flows.insert(key, value, 0).expect("it is there");
        true
    }

    /// Removes what packets left behind.
    pub(crate) fn forget(&mut self) {
        let flows: Vec<_> = self.flows.keys().map(|key| key.expect("a flow")).collect();
        for key in flows {
            self.flows.remove(&key).expect("nobody else removes it");
        }
        let notes: Vec<_> = self
            .fragments
            .keys()
            .map(|key| key.expect("a note"))
            .collect();
        for key in notes {
            self.fragments.remove(&key).expect("nobody else removes it");
        }
    }
}

fn flow(value: &FlowValue) -> Flow {
    Flow {
        seen: value.seen(),
        generation: value.generation(),
        direction: value.direction(),
        action: value.action(),
        rule: value.rule(),
        peer: value.peer(),
        marked: value.marked(),
        path: Path::None,
        replied: false,
        fin_opener: false,
        fin_answerer: false,
        reset: false,
    }
}

/// What of a flow is compared: all but the instant of its last packet.
pub(crate) fn comparable(flow: &Flow) -> Flow {
    Flow {
        seen: 0,
        path: Path::None,
        replied: false,
        ..*flow
    }
}

/// The loaded program of this name that uses the map.
fn program(name: &'static str, map: u32) -> SchedClassifier {
    let found = loaded_programs().find_map(|info| {
        // Programs of others come and go while they are listed.
        let info = info.ok()?;
        let uses = info.map_ids().ok()??.contains(&map);
        (uses && info.name_as_str() == Some(name)).then_some(info)
    });
    let info = found.unwrap_or_else(|| panic!("program {name} is loaded"));
    SchedClassifier::from_program_info(info, Cow::Borrowed(name)).expect("a program for tc")
}

/// `struct __sk_buff` of the kernel's `linux/bpf.h`, as far as a test run takes and gives it.
const CONTEXT: usize = 192;
const MARK: usize = 8;
const IFINDEX: usize = 40;

fn put(context: &mut [u8; CONTEXT], at: usize, value: u32) {
    context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn get(context: &[u8; CONTEXT], at: usize) -> u32 {
    u32::from_ne_bytes(context[at..at + 4].try_into().expect("four bytes"))
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
