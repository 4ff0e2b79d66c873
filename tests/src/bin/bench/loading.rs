//! How long it takes until many services and policies are in force, from a validated snapshot to the flip; and until one
//! changed service is.

use std::{
    fs,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result};
use cardinal_agent::{
    compile::kernel::{self, Compiled},
    datapath::{self, Datapath, Discovery},
};
use snapshot::model::Snapshot;
use tests::{interrupt, world::World};

use crate::{
    measure::{self, Plan},
    peers,
    rows::{Bar, Row, Spread},
    side::{Setup, Side, on},
    snapshots,
    tables::Shape,
};

/// How many services and how many rules.
const SERVICES: u32 = 10_000;
const RULES: u32 = 10_000;

const ALL: &str = "load of 10k services and 10k policies";
const ONE: &str = "load of one changed service over all";
/// Rounds of what takes seconds.
const SLOW: usize = 3;

/// A peer's load.
struct Peer {
    scenario: &'static str,
    /// The program that takes the rules, with its options.
    program: &'static str,
    /// The rules for a number of services.
    rules: fn(u32) -> String,
}

const PEERS: [Peer; 3] = [
    Peer {
        scenario: "load of 10k services: nftables",
        program: "nft -f",
        rules: peers::nft_services,
    },
    Peer {
        scenario: "load of 10k services: iptables over nftables",
        program: "iptables-nft-restore",
        rules: peers::iptables_services,
    },
    Peer {
        scenario: "load of 10k services: iptables-legacy",
        program: "iptables-legacy-restore",
        rules: peers::iptables_services,
    },
];

/// Measures the rows that are wanted.
pub(crate) fn play(wants: &dyn Fn(&str) -> bool, plan: &Plan, core: usize) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if wants(ALL) || wants(ONE) {
        rows.extend(
            own(plan, core)?
                .into_iter()
                .filter(|row| wants(&row.scenario)),
        );
    }
    for peer in PEERS {
        if wants(peer.scenario) {
            rows.push(peer.play(plan)?);
        }
    }
    Ok(rows)
}

/// Time of each step of a switch, in seconds.
#[derive(Clone, Copy, Debug)]
struct Steps {
    compile: f64,
    prepare: f64,
    flip: f64,
    /// Comes after the switch and counts for nothing.
    retire: f64,
}

impl Steps {
    fn active(&self) -> f64 {
        self.compile + self.prepare + self.flip
    }

    fn words(all: &[Self]) -> String {
        let median = |of: fn(&Self) -> f64| {
            1000.0 * Spread::of(&all.iter().map(of).collect::<Vec<_>>()).median
        };
        format!(
            "compile {:.2} ms, prepare {:.2} ms, flip {:.2} ms; retiring the one before {:.1} ms",
            median(|steps| steps.compile),
            median(|steps| steps.prepare),
            median(|steps| steps.flip),
            median(|steps| steps.retire),
        )
    }
}

fn own(plan: &Plan, core: usize) -> Result<Vec<Row>> {
    let side = Side::make(Setup::Cardinal(Shape::EMPTY), core)?;
    let datapath = side.datapath().context("the side has no datapath")?;
    let node = side.world().node();
    let discovery = Arc::new(on(node, || Ok(datapath::scan()?))?);
    let none = Arc::new(snapshots::snapshot(1, 0, 0)?);
    let all = Arc::new(snapshots::snapshot(SERVICES, RULES, 0)?);
    let size = size(&all, &discovery);
    let rounds = plan.rounds.unwrap_or_else(|| Bar::None.rounds());
    let (mut full, mut one, mut takes) = (Vec::new(), Vec::new(), Vec::new());
    let active = Arc::new(Mutex::new(Compiled::default()));
    for round in 0..rounds {
        measure::progress(ALL, round, rounds)?;
        let switch = |to: &Arc<Snapshot>| -> Result<Steps> {
            interrupt::check()?;
            let (datapath, discovery, to) =
                (datapath.clone(), Arc::clone(&discovery), Arc::clone(to));
            let active = Arc::clone(&active);
            on(node, move || {
                let mut active = active.lock().unwrap_or_else(PoisonError::into_inner);
                activate(&datapath, &mut active, &to, &discovery)
            })
        };
        switch(&none)?;
        full.push(switch(&all)?);
        // Documents are read anew for each change; what of them is as before is found when they are.
        let changed = snapshots::snapshot(SERVICES, RULES, 1)?;
        let start = Instant::now();
        let changed = Arc::new(changed.sharing(&all));
        takes.push(1000.0 * start.elapsed().as_secs_f64());
        one.push(switch(&changed)?);
    }
    measure::progress(ALL, rounds, rounds)?;
    let seconds: Vec<f64> = full.iter().map(Steps::active).collect();
    let parts: Vec<f64> = one
        .iter()
        .zip(&seconds)
        .map(|(one, all)| one.active() / all)
        .collect();
    Ok(vec![
        Row::new(
            ALL,
            &seconds,
            Bar::AtMost(0.2),
            format!("{size}; {}", Steps::words(&full)),
        )
        .seconds(),
        Row::new(
            ONE,
            &parts,
            Bar::AtMost(0.01),
            format!(
                "{}; before, finding what is as it was {:.1} ms",
                Steps::words(&one),
                Spread::of(&takes).median
            ),
        ),
    ])
}

/// What a snapshot means to the kernel, counted.
fn size(snapshot: &Arc<Snapshot>, discovery: &Discovery) -> String {
    let tables = kernel::compile(snapshot, discovery, 1);
    format!(
        "{} services, {} rules, {} identities",
        tables.services.len(),
        tables
            .policies
            .values()
            .map(|rules| rules.len())
            .sum::<usize>(),
        tables.identities.len()
    )
}

/// The way of a snapshot into the kernel, as the agent goes it; then the generation before is retired. `active` is what
/// is compiled already.
fn activate(
    datapath: &Datapath,
    active: &mut Compiled,
    snapshot: &Arc<Snapshot>,
    discovery: &Discovery,
) -> Result<Steps> {
    let before = datapath.active_generation();
    let mut last = Instant::now();
    let mut lap = || {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut last, now))
            .as_secs_f64()
    };
    let compiled = active.next(snapshot, discovery, before + 1);
    let compile = lap();
    let prepared = datapath.prepare(compiled.tables())?;
    let prepare = lap();
    prepared.flip()?;
    let flip = lap();
    *active = compiled;
    datapath.retire(before)?;
    Ok(Steps {
        compile,
        prepare,
        flip,
        retire: lap(),
    })
}

impl Peer {
    /// Seconds that its own program takes for its file, with its start; each time on a node that has no rules.
    fn play(&self, plan: &Plan) -> Result<Row> {
        let rules = (self.rules)(SERVICES);
        let rounds = plan.rounds.unwrap_or(SLOW).min(SLOW);
        let mut seconds = Vec::new();
        for round in 0..rounds {
            measure::progress(self.scenario, round, rounds)?;
            interrupt::check()?;
            let world = World::create()?;
            let file = world.dir().join("rules");
            fs::write(&file, &rules)?;
            let line = format!("{} {}", self.program, file.display());
            let start = Instant::now();
            world.node().shell(&line)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        measure::progress(self.scenario, rounds, rounds)?;
        Ok(Row::new(self.scenario, &seconds, Bar::None, String::new()).seconds())
    }
}
