//! One side of a comparison: a world of its own, with a client pod and a server pod on one node, a host outside, and
//! whatever the node is to do with their packets.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use agent_common::Mark;
use anyhow::{Context as _, Result, anyhow};
use cardinal_agent::datapath::{self, Datapath, DatapathConfig, EventReader, GateHook};
use nix::sched::{CloneFlags, setns};
use tests::world::{Addresses, Place, World};

use crate::{
    load::{Done, Kind, Order},
    peers,
    profile::Profiler,
    proxied::{Legs, Proxied},
    router::Router,
    tables::{self, Shape},
    traffic::Load,
};

/// The pod that calls.
pub(crate) const CLIENT: Addresses = Addresses {
    v4: Ipv4Addr::new(10, 80, 1, 10),
    v6: Ipv6Addr::new(0xfd00, 0x80, 1, 0, 0, 0, 0, 0x10),
};
/// The pod that is called.
pub(crate) const SERVER: Addresses = Addresses {
    v4: Ipv4Addr::new(10, 80, 2, 10),
    v6: Ipv6Addr::new(0xfd00, 0x80, 2, 0, 0, 0, 0, 0x10),
};
/// The host behind the node's uplink.
pub(crate) const OUTSIDE: Addresses = Addresses {
    v4: Ipv4Addr::new(192, 0, 2, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0x10),
};
/// The server pod's end of a pair that leads to the client pod past the node.
pub(crate) const DIRECT: Ipv4Addr = Ipv4Addr::new(10, 82, 0, 2);
const DIRECT_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 82, 0, 1);
/// The address of the service that is called.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 111, 255, 1);
/// A gateway's address on the node.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 0x80);
/// An address outside, calls of which are handed to the router.
pub(crate) const STEERED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);

/// Flows that are opened to fill a flow table: more than the largest table ever had.
const FLOWS: u64 = 200_000;

/// What the node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Setup {
    /// It routes.
    Plain,
    /// It routes, and has a policy rule that no packet matches, as the node of an agent has.
    PolicyRule,
    /// Cardinal's datapath.
    Cardinal(Shape),
    /// The same, and its flow table is full.
    Full(Shape),
    /// The same, with a listener of the router on the node.
    Router(Shape),
    /// It routes, and a proxy stands between the pods; some of its connections skip the stack.
    Proxy(Legs),
    /// An nftables set of declared connections.
    NftSet(u32),
    /// A list of nftables rules.
    NftList(u32),
    /// Connection tracking.
    Conntrack,
    /// Services by nftables.
    NftServices(u32),
    /// Services by iptables over nftables.
    IptablesServices(u32),
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum From {
    /// The client pod.
    Pod,
    /// The host outside.
    Outside,
}

/// A side. Its generator ends first, then its proxy and its datapath, then its world.
pub(crate) struct Side {
    load: Option<(From, Load)>,
    proxied: Option<Proxied>,
    cardinal: Option<Cardinal>,
    places: BTreeMap<From, Place>,
    server: Place,
    core: usize,
    remark: Option<String>,
    world: World,
}

struct Cardinal {
    _router: Option<Router>,
    profiler: Profiler,
    _drain: Drain,
    datapath: Datapath,
}

impl Side {
    /// Makes it. `core` is where everything of it runs.
    pub(crate) fn make(setup: Setup, core: usize) -> Result<Self> {
        let world = World::create()?;
        world.node_addresses(&[Addresses {
            v4: GATEWAY,
            v6: GATEWAY_V6,
        }])?;
        let client = world.pod("client", CLIENT, &[])?;
        let server = world.pod("server", SERVER, &[])?;
        let outside = world.outside("up", OUTSIDE, &[])?;
        let places = BTreeMap::from([(From::Pod, client), (From::Outside, outside)]);
        let mut side = Self {
            load: None,
            proxied: None,
            cardinal: None,
            places,
            server,
            core,
            remark: None,
            world,
        };
        side.settle()?;
        match setup {
            Setup::Plain => side.direct_pair()?,
            Setup::PolicyRule => side.world.node().ip(&format!(
                "rule add fwmark {:#x}/{:#x} lookup {} pref 101\n",
                Mark::Steer.raw(),
                Mark::MASK,
                Mark::STEER_TABLE
            ))?,
            Setup::Cardinal(shape) => side.guard(shape)?,
            Setup::Full(shape) => {
                side.guard(shape)?;
                let to = Order {
                    kind: Kind::Flows,
                    to: (SERVER.v4, 0).into(),
                    amount: FLOWS,
                };
                side.load(From::Pod)?.run(&to, Duration::from_secs(30))?;
                let datapath = side.datapath().context("the side has no datapath")?;
                side.remark = Some(tables::flows(datapath)?);
            }
            Setup::Router(shape) => {
                side.guard(shape)?;
                let node = side.world.node();
                if let Some(cardinal) = &mut side.cardinal {
                    cardinal._router = Some(Router::start(node, &cardinal.datapath, core)?);
                }
            }
            Setup::Proxy(legs) => {
                side.proxied = Some(Proxied::start(&side.world, legs, core)?);
            }
            Setup::NftSet(entries) => side.nft(&peers::nft_set(entries))?,
            Setup::NftList(entries) => side.nft(&peers::nft_list(entries))?,
            Setup::Conntrack => side.nft(&peers::conntrack())?,
            Setup::NftServices(count) => side.nft(&peers::nft_services(count))?,
            Setup::IptablesServices(count) => {
                side.rules("iptables-nft-restore", &peers::iptables_services(count))?;
            }
        }
        Ok(side)
    }

    /// Settings that let a client open connections for minutes, the same on every side.
    fn settle(&self) -> Result<()> {
        for place in self.places.values().chain([&self.server]) {
            place.shell(
                "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range
                 echo 4096 > /proc/sys/net/ipv4/tcp_max_tw_buckets",
            )?;
        }
        Ok(())
    }

    /// A pair of interfaces from pod to pod, to see what the node itself costs.
    fn direct_pair(&self) -> Result<()> {
        let client = &self.places[&From::Pod];
        client.ip(&format!(
            "link add direct type veth peer name direct netns {}\n\
             addr add {DIRECT_CLIENT}/30 dev direct\n\
             link set direct up\n",
            self.server.netns()
        ))?;
        self.server.ip(&format!(
            "addr add {DIRECT}/30 dev direct\nlink set direct up\n"
        ))
    }

    /// Opens the datapath on the node and activates a generation of this shape.
    fn guard(&mut self, shape: Shape) -> Result<()> {
        let config = DatapathConfig {
            bpffs: self.world.bpffs(),
            cgroup: Some(self.world.node_cgroup()),
            gate_hook: GateHook::Auto,
            object: None,
            pick_up: Duration::ZERO,
        };
        let before = Profiler::programs()?;
        let datapath = on(self.world.node(), move || {
            let datapath = Datapath::open(&config)?;
            let discovery = datapath::scan()?;
            let generation = datapath.active_generation() + 1;
            let tables = tables::tables(generation, &discovery, shape)?;
            datapath.prepare(&tables)?.flip()?;
            Ok(datapath)
        })
        .context("failed to guard the pods")?;
        let events = datapath
            .take_events()
            .context("somebody else reads the events")?;
        self.cardinal = Some(Cardinal {
            _router: None,
            profiler: Profiler::since(&before)?,
            _drain: Drain::start(events),
            datapath,
        });
        Ok(())
    }

    fn nft(&self, rules: &str) -> Result<()> {
        self.rules("nft", rules)
    }

    /// Gives the node rules of one of the peers' programs, which reads them from a file.
    fn rules(&self, program: &str, rules: &str) -> Result<()> {
        let file = self.world.dir().join("rules");
        fs::write(&file, rules)?;
        let option = if program == "nft" { "-f" } else { "" };
        self.world
            .node()
            .shell(&format!("{program} {option} {}", file.display()))?;
        // A translated connection is remembered after its end; with the default of two minutes the table would fill
        // within seconds, and connections be refused.
        self.world.node().shell(
            "cd /proc/sys/net/netfilter
             if [ -e nf_conntrack_tcp_timeout_time_wait ]; then
               echo 1 > nf_conntrack_tcp_timeout_time_wait
               echo 1 > nf_conntrack_tcp_timeout_last_ack
               echo 1 > nf_conntrack_tcp_timeout_close
             fi",
        )
    }

    /// The generator of `from`. There is one at a time, since the servers' ports are in its process.
    fn load(&mut self, from: From) -> Result<&mut Load> {
        if self.load.as_ref().is_none_or(|(place, _)| *place != from) {
            self.load = None;
            let load = Load::start(&self.places[&from], &self.server, self.core)?;
            self.load = Some((from, load));
        }
        self.load
            .as_mut()
            .map(|(_, load)| load)
            .context("the generator was just started")
    }

    /// Has the side send for a while.
    pub(crate) fn send(
        &mut self,
        from: From,
        kind: Kind,
        to: (IpAddr, u16),
        time: Duration,
    ) -> Result<Done> {
        let order = Order {
            kind,
            to: to.into(),
            amount: u64::try_from(time.as_micros())?,
        };
        let before = self.proxied.as_ref().map(Proxied::before).transpose()?;
        let mut done = self.load(from)?.run(&order, time)?;
        if let (Some(proxied), Some(before)) = (&mut self.proxied, before) {
            proxied.after(&before, &mut done)?;
        }
        Ok(done)
    }

    /// What the programs of this side do; nothing where there are none.
    pub(crate) fn profiler(&self) -> Option<&Profiler> {
        match (&self.cardinal, &self.proxied) {
            (Some(cardinal), _) => Some(&cardinal.profiler),
            (None, Some(proxied)) => proxied.profiler(),
            (None, None) => None,
        }
    }

    /// What is to be said of the side beside its figures.
    pub(crate) fn remark(&self) -> Result<Option<String>> {
        match &self.proxied {
            Some(proxied) => proxied.remark().map(Some),
            None => Ok(self.remark.clone()),
        }
    }

    /// The datapath, where there is one.
    pub(crate) fn datapath(&self) -> Option<&Datapath> {
        self.cardinal.as_ref().map(|cardinal| &cardinal.datapath)
    }

    /// The world.
    pub(crate) fn world(&self) -> &World {
        &self.world
    }
}

/// Does something in a place's network namespace, on a thread of its own.
pub(crate) fn on<T: Send + 'static>(
    place: &Place,
    what: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let path = format!("/run/netns/{}", place.netns());
    let namespace = File::open(&path).with_context(|| format!("failed to open {path}"))?;
    thread::spawn(move || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .context("failed to enter a namespace")?;
        what()
    })
    .join()
    .map_err(|_| anyhow!("a thread in a namespace panicked"))?
}

/// Reads events as the agent would, so that the programs always find room for the next one.
struct Drain {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    fn start(mut events: EventReader) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                while events.try_next().is_some() {}
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _panicked = thread.join();
        }
    }
}
