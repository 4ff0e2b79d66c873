//! Pods that appear while one agent takes the place of another are held as at any other time. Needs root.
//! `CARDINAL_HANDOVERS` says how often agents are replaced, `cargo xtask test --long` fifty times.

#[path = "netns/node.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the node")]
mod node;
#[path = "netns/witness.rs"]
mod witness;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use node::{Agent, Birth, Guest, PORT, SURELY, Sender, Sink, until};
use witness::Witness;
use world::World;

/// Handovers of an ordinary run.
const HANDOVERS: u32 = 4;
/// Pods without a handover, for comparison.
const ORDINARY: u32 = 60;
/// How many make pods at the same time: about every 20 ms somebody makes one.
const MAKERS: u32 = 6;
/// How long a pod lives at least.
const LIFE: Duration = Duration::from_millis(60);
/// Between two packets of a pod to everybody whom it must not reach.
const PACE: Duration = Duration::from_millis(1);
const OPTIONS: [&str; 3] = ["--take-over", "--drain", "0"];

/// The world's first pods: each cell has one that receives, and the third is nobody's.
const SHOP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BANK: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
/// Addresses of pods that come and go; they are used again.
const GUESTS: u16 = 400;

fn guest(number: u32) -> Ipv4Addr {
    let [high, low] = (1 + (number % u32::from(GUESTS)) as u16).to_be_bytes();
    Ipv4Addr::new(10, 78, high, low)
}

/// The guests are pods of the cell `shop`, which may not call the world or the cell `bank`.
fn documents() -> String {
    let cell = |project: &str, addresses: &[Ipv4Addr]| {
        let addresses: Vec<_> = addresses.iter().map(|one| format!("\"{one}\"")).collect();
        format!(
            "apiVersion: cardinal.dev/v1alpha1\nkind: Cell\nmetadata: {{ name: {project}, namespace: default }}\n\
             spec:\n  organization: acme\n  project: {project}\n  environment: prod\n  intra: open\n  components:\n    \
             - name: worker\n      type: Service\n      workloads: {{ addresses: [{}] }}\n      endpoints:\n        \
             - {{ name: feed, type: UDP, port: {PORT} }}\n",
            addresses.join(", ")
        )
    };
    let shop: Vec<_> = (0..GUESTS.into()).map(guest).chain([SHOP]).collect();
    format!("{}---\n{}", cell("shop", &shop), cell("bank", &[BANK]))
}

/// What became of a pod.
struct Pod {
    ifname: String,
    born: Instant,
    /// Whether it had both gates in the end.
    guarded: bool,
    /// From its interface to both of them; none if they came with a generation, as links.
    guarded_after: Option<Duration>,
    /// From its interface to the last packet that reached the world.
    leaked_for: Option<Duration>,
    to_the_other_cell: u64,
}

struct Stage {
    world: World,
    bank: Sink,
    outside: Sink,
    witness: Witness,
}

impl Stage {
    fn new() -> Self {
        let world = World::new(3);
        Self {
            bank: Sink::open(&world.pods[1].netns),
            outside: Sink::open(&world.pods[2].netns),
            witness: Witness::open(&world.node),
            world,
        }
    }

    /// Makes a pod in a namespace in which somebody sends all the time, and takes it away again once it has gates. Every third gets
    /// no address: nothing but its interface tells of it.
    fn pod(&self, maker: &mut Guest, number: u32) -> Pod {
        let ifname = format!("g{number}");
        maker.ifname.clone_from(&ifname);
        let address = guest(number);
        let (before, to_bank) = (Instant::now(), self.bank.from(address));
        maker.link(Birth::AT_ONCE[number as usize % 2], None);
        if !number.is_multiple_of(3) {
            maker.up(address);
        }
        thread::sleep(LIFE);
        let seen = loop {
            let seen = self.witness.seen(&ifname);
            let seen = seen.expect("the kernel tells of every interface");
            let link = format!("bpf/links/cell_ingress_{}", seen.ifindex);
            let guarded = seen.guarded_after().is_some() || self.world.folder.join(link).exists();
            if guarded || before.elapsed() > SURELY {
                break seen;
            }
            thread::sleep(PACE);
        };
        let guarded_after = seen.guarded_after();
        let guarded = before.elapsed() <= SURELY;
        maker.unlink();
        let leaked = self.outside.last_from(address);
        let leaked = leaked.filter(|last| *last > before);
        Pod {
            ifname,
            born: seen.born,
            guarded,
            guarded_after,
            leaked_for: leaked.map(|last| last.saturating_duration_since(seen.born)),
            to_the_other_cell: self.bank.from(address) - to_bank,
        }
    }

    /// Makes pods from `first` on, one after the other and several at a time, until `enough` of what is made says so.
    fn pods(&self, next: &AtomicU32, enough: impl Fn(u32) -> bool + Sync) -> Vec<Pod> {
        let first = next.load(Ordering::Relaxed);
        thread::scope(|scope| {
            let enough = &enough;
            let makers: Vec<_> = (0..MAKERS)
                .map(|maker| {
                    scope.spawn(move || {
                        let node = &self.world.node;
                        let mut maker = Guest::new(node, format!("{node}-m{first}-{maker}"), "");
                        let _sender = Sender::paced(&maker.netns, None, vec![OUTSIDE, BANK], PACE);
                        let mut made = Vec::new();
                        loop {
                            let number = next.fetch_add(1, Ordering::Relaxed);
                            if enough(number - first) {
                                return made;
                            }
                            made.push(self.pod(&mut maker, number));
                        }
                    })
                })
                .collect();
            let made = makers.into_iter();
            made.flat_map(|maker| maker.join().expect("a pod can be made"))
                .collect()
        })
    }
}

/// What became of many.
struct Figures {
    pods: usize,
    without: Vec<String>,
    to_the_other_cell: u64,
    /// From the interface to both gates, sorted.
    guarded_after: Vec<Duration>,
    /// Pods of which something reached the world, and for how long at most.
    early: usize,
    leaked_for: Duration,
}

impl Figures {
    fn of(pods: &[&Pod]) -> Self {
        let mut guarded_after: Vec<_> = pods.iter().filter_map(|pod| pod.guarded_after).collect();
        guarded_after.sort_unstable();
        let without = pods.iter().filter(|pod| !pod.guarded);
        let leaked = pods.iter().filter_map(|pod| pod.leaked_for);
        Self {
            pods: pods.len(),
            without: without.map(|pod| pod.ifname.clone()).collect(),
            to_the_other_cell: pods.iter().map(|pod| pod.to_the_other_cell).sum(),
            guarded_after,
            early: leaked.clone().count(),
            leaked_for: leaked.max().unwrap_or_default(),
        }
    }

    fn at(&self, percent: usize) -> u128 {
        let place = (self.guarded_after.len() * percent / 100).min(self.guarded_after.len() - 1);
        self.guarded_after[place].as_micros()
    }

    fn print(&self, when: &str) {
        println!(
            "{when}: {} pods; from interface to both gates: median {} µs, 99 % {} µs, most {} µs; {} reached the world, at most for {} µs",
            self.pods,
            self.at(50),
            self.at(99),
            self.at(100),
            self.early,
            self.leaked_for.as_micros(),
        );
    }
}

#[test]
fn netns_pods_that_appear_during_a_handover_are_held_as_ever() {
    let rounds = match std::env::var("CARDINAL_HANDOVERS") {
        Ok(text) => text.parse().expect("CARDINAL_HANDOVERS is a number"),
        Err(_) => HANDOVERS,
    };
    let stage = Stage::new();
    let first = Agent::start(&stage.world, &documents(), &OPTIONS);
    let next = AtomicU32::new(1);
    let ordinary = stage.pods(&next, |made| made >= ORDINARY);
    let (end, mut windows) = (AtomicBool::new(false), Vec::new());
    let (agent, made) = thread::scope(|scope| {
        let mut agent = first;
        let makers = scope.spawn(|| stage.pods(&next, |_| end.load(Ordering::Relaxed)));
        for _ in 0..rounds {
            let (next, window) = agent.replaced(&stage.world, &OPTIONS);
            agent = next;
            windows.push(window);
        }
        end.store(true, Ordering::Relaxed);
        (agent, makers.join().expect("pods can be made"))
    });
    let meanwhile = |pod: &&Pod| {
        let mut windows = windows.iter();
        windows.any(|[from, to]| (*from..=*to).contains(&pod.born))
    };
    let during: Vec<_> = made.iter().filter(meanwhile).collect();
    let ordinary = Figures::of(&ordinary.iter().collect::<Vec<_>>());
    let all = Figures::of(&made.iter().collect::<Vec<_>>());
    assert!(
        during.len() > 2,
        "of {} pods: that proves nothing",
        made.len()
    );
    let during = Figures::of(&during);
    ordinary.print("without a handover");
    all.print(&format!("{rounds} handovers, whole"));
    let longest = windows.iter().map(|[from, to]| *to - *from).max();
    during.print(&format!(
        "while nobody reigned, at most {} ms",
        longest.unwrap_or_default().as_millis()
    ));
    for figures in [&ordinary, &all] {
        assert_eq!(figures.without, Vec::<String>::new(), "{}", agent.log());
        // The other cell's gates stand, whoever sends.
        assert_eq!(figures.to_the_other_cell, 0, "{}", agent.log());
    }
    for figures in [&ordinary, &all, &during] {
        // The kernel tells of an interface and does not wait: on a machine that is busy with other things, a pod may be first. If
        // nobody held new interfaces, all of those that have an address would be: two thirds.
        assert!(figures.early * 4 <= figures.pods, "{}", agent.log());
    }
    // What was held in between is judged by whoever reigns now.
    agent.wait("the end of the quarantine", |status| {
        status["datapath"]["quarantine"] == serde_json::json!([])
    });
    let node = &stage.world.node;
    let pod = Guest::new(node, format!("{node}-last"), "last");
    pod.link(Birth::Node, None);
    pod.up(guest(0));
    let shop = Sink::open(&stage.world.pods[0].netns);
    let _sender = Sender::start(&pod.netns, None, vec![SHOP]);
    until("a declared packet", &agent, || shop.from(guest(0)) > 0);
}
