//! Rounds: a universe, some generations of it, and the frames that come meanwhile, told to the kernel and to the model.
//! A round that ends in a difference is told again with less and less of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use agent_common::{Action, Direction, Reason};

use crate::answer::explains;
use crate::cable;
use crate::frames::Frames;
use crate::kernel::{Counters, Kernel, Ran, counted, hardware, now};
use crate::model::{Asked, Ends, Flow, FlowId, Model, Outcome, REDIRECT, SECOND};
use crate::parse::{Parsed, TCP, parse};
use crate::random::Random;
use crate::tables::Tables;
use crate::universe::{RANGES, Universe};
use crate::world::World;

mod tally;
mod told;

pub(crate) use tally::Tally;
use told::hex;

/// Frames of one round.
const ROUND: usize = 8000;
/// How often a round's generation changes.
const SWITCHES: usize = 4;

/// Something that happens to the node.
#[derive(Clone, Debug)]
enum Step {
    /// A generation is written beside the active one; one that was before and did not become active is undone.
    Prepare(Tables),
    /// What was written is undone.
    Abandon,
    /// What was written becomes active.
    Flip,
    Frame(Asked),
    /// The router's transparent listeners are opened or not, and its connections are closed.
    Listeners(bool, bool),
    /// The router accepted a connection.
    Connection(Ends),
    /// A flow was idle for so much longer, nanoseconds.
    Idle((u32, FlowId), u64),
}

/// The kernel and the model, side by side.
pub(crate) struct Stage {
    kernel: Kernel,
    model: Model,
    names: BTreeMap<u32, String>,
    generation: u32,
    /// What was counted, as the model says.
    expected: Counters,
}

impl Stage {
    pub(crate) fn new(world: &World, picks_up: bool) -> Self {
        let day = Duration::from_secs(86_400);
        let pick_up = if picks_up { day } else { Duration::ZERO };
        Self {
            kernel: Kernel::open(world, pick_up),
            model: Model {
                picks_up,
                hardware: hardware(world),
                ..Model::default()
            },
            names: world
                .pods
                .iter()
                .map(|pod| (pod.ifindex, pod.ifname.clone()))
                .collect(),
            generation: 0,
            expected: Counters::new(),
        }
    }

    fn forget(&mut self) {
        self.kernel.abandon();
        self.model.abandon();
        self.kernel.forget();
        self.model.forget();
        self.model.doubtful = false;
        self.model.hits = self.kernel.hits();
        self.expected = self.kernel.counters();
    }

    /// Plays the round of a seed.
    pub(crate) fn round(&mut self, seed: u64, tally: &mut Tally) {
        let mut random = Random::new(seed);
        let interfaces: Vec<u32> = self.names.keys().copied().collect();
        let universe = Universe::random(&mut random, &interfaces);
        let hardware = self.model.hardware.clone();
        let mut frames = Frames::new(&universe, &hardware);
        let mut tables = universe.tables(&mut random);
        let mut steps = Vec::new();
        self.forget();
        tally.rounds += 1;
        steps.push(Step::Listeners(random.percent(50), random.percent(50)));
        self.take(&steps[0], tally)
            .expect("sockets compare nothing");
        for part in 0..=SWITCHES {
            // The first frames ever come before any generation.
            let begin = part == 0 && self.model.active > 0;
            let next = match part {
                0 => tables.clone(),
                _ => universe.next(&tables, &mut random),
            };
            for at in 0..ROUND / (SWITCHES + 1) {
                let step = match at {
                    0 if part > 0 || begin => Step::Prepare(next.clone()),
                    1 if begin => Step::Flip,
                    60 if part > 0 && random.percent(15) => Step::Abandon,
                    61 if part > 0 => Step::Prepare(next.clone()),
                    120 if part > 0 => Step::Flip,
                    _ => self.step(&mut frames, &mut random),
                };
                if matches!(step, Step::Flip) {
                    tables = next.clone();
                    frames.tables = next.clone();
                }
                steps.push(step);
                let difference = self.take(&steps[steps.len() - 1], tally);
                if self.model.doubtful {
                    tally.doubtful += 1;
                    return;
                }
                if let Err(difference) = difference {
                    self.fail(seed, steps, difference);
                }
            }
        }
        if let Err(difference) = self.compare_all() {
            self.fail(seed, steps, difference);
        }
    }

    fn step(&self, frames: &mut Frames<'_>, random: &mut Random) -> Step {
        if random.percent(3) && !self.model.flows.is_empty() {
            let flows = &self.model.flows;
            let at = random.below(flows.len());
            let (key, flow) = flows.iter().nth(at).expect("it is below their number");
            let timeout = flow.timeout(key.1.protocol);
            // Timeouts are multiples of five seconds, and no sum of a few of these is one.
            let half = timeout / 2 / (5 * SECOND) * 5 * SECOND;
            let idle = random.pick(&[0, half, timeout - 5 * SECOND, timeout]);
            return Step::Idle(*key, idle + SECOND);
        }
        if random.percent(1) {
            let governed = |(_, id): &&(u32, FlowId)| {
                id.protocol == TCP
                    && id.local_port != 0
                    && id.remote_port != 0
                    && [id.local, id.remote]
                        .iter()
                        .all(|end| frames.universe.knows(*end))
            };
            let flows = self.model.flows.iter();
            let steered = flows.filter(|(_, flow)| flow.action == Action::Steer);
            if let Some((_, id)) = steered.map(|(key, _)| key).rfind(governed) {
                return Step::Connection(Ends {
                    pod: id.local,
                    pod_port: id.local_port,
                    remote: id.remote,
                    remote_port: id.remote_port,
                });
            }
        }
        Step::Frame(frames.next(random))
    }

    /// One step of both.
    fn take(&mut self, step: &Step, tally: &mut Tally) -> Result<(), String> {
        match step {
            Step::Prepare(tables) => {
                self.generation += 1;
                let kernel = tables.kernel(self.generation, &self.names);
                self.kernel.prepare(&kernel);
                self.model.prepare(self.generation, tables.clone());
                Ok(())
            }
            Step::Abandon => {
                self.kernel.abandon();
                self.model.abandon();
                Ok(())
            }
            Step::Flip => {
                if self.model.waiting().is_some() {
                    self.kernel.flip();
                    self.model.flip();
                }
                Ok(())
            }
            Step::Listeners(v4, v6) => {
                self.kernel.listeners(*v4, *v6);
                self.model.listeners = (*v4, *v6);
                self.model.connections.clear();
                Ok(())
            }
            Step::Connection(ends) => {
                if !self.model.connections.contains(ends) {
                    self.kernel.connect(ends);
                    self.model.connections.push(*ends);
                }
                Ok(())
            }
            Step::Idle(key, idle) => {
                match self.model.flows.get_mut(key) {
                    Some(flow) => {
                        flow.seen -= *idle;
                        // The kernel's entry is written anew, without these.
                        (flow.due, flow.agreement) = (0, None);
                    }
                    None => return Ok(()),
                }
                if self.kernel.age(*key, *idle) {
                    Ok(())
                } else {
                    Err(format!("the kernel has no flow {key:x?}"))
                }
            }
            Step::Frame(asked) => self.frame(asked, tally),
        }
    }

    fn frame(&mut self, asked: &Asked, tally: &mut Tally) -> Result<(), String> {
        let attached = self
            .model
            .generations
            .get(&self.model.active)
            .is_some_and(|tables| tables.pods.contains_key(&asked.gate));
        if !attached && cable::refused(&asked.frame) {
            // No gate is there, and a test run takes no such frame.
            return Ok(());
        }
        tally.frames += 1;
        self.ahead(asked)?;
        let explained = self.explained(asked);
        let before = now();
        let ran = self.kernel.run(asked);
        let after = now();
        if after - before > SECOND / 4 {
            // Whoever was not scheduled for that long knows no time.
            self.model.doubtful = true;
        }
        let outcome = self.model.run(asked, (before, after));
        *tally
            .codes
            .entry(ran.as_ref().map(|ran| ran.code))
            .or_default() += 1;
        for judged in &outcome.judged {
            let key = (judged.reason, judged.verdict);
            *tally.reasons.entry(key).or_default() += 1;
            *tally.paths.entry(judged.path).or_default() += 1;
            let decided = [Reason::Policy, Reason::Denied].contains(&judged.reason);
            if decided && RANGES.contains(&judged.rule) {
                *tally.ranges.entry(judged.verdict).or_default() += 1;
            }
            *self.expected.entry(counted(judged)).or_default() += 1;
        }
        if self.same(ran.as_ref(), &outcome) {
            if explained.len() > outcome.judged.len() {
                return Err(format!(
                    "two gates are explained, but {:x?}",
                    outcome.judged
                ));
            }
            for ((asked, ran), judged) in explained.iter().zip(outcome.said()) {
                explains(&self.model, ran, asked, judged)?;
            }
            return Ok(());
        }
        Err(format!(
            "the model says code {}, mark {:#x}, {:x?}\nthe kernel did {:?}{}, and counted {}",
            outcome.code,
            outcome.mark,
            outcome.judged,
            ran.as_ref().map(|ran| (ran.code, ran.mark)),
            match &ran {
                Some(ran) if ran.frame != outcome.frame => {
                    format!(
                        "\n  {} instead of\n  {}",
                        hex(&ran.frame),
                        hex(&outcome.frame)
                    )
                }
                _ => String::new(),
            },
            self.miscounted()
        ))
    }

    /// What the gates that the packet meets would say, asked before they are.
    fn explained(&mut self, asked: &Asked) -> Vec<(Asked, Ran)> {
        if cable::refused(&asked.frame) {
            return Vec::new();
        }
        let sender = self.kernel.explain(asked, 0);
        let code = sender.code;
        let mut all = vec![(asked.clone(), sender)];
        if code == REDIRECT
            && let Ok(Parsed::Ip(packet)) = parse(&asked.frame)
            && let Some(owner) =
                self.model.generations[&self.model.active].owner(packet.destination)
        {
            let receiver = Asked {
                gate: owner.ifindex,
                way: Direction::Ingress,
                mark: 0,
                frame: asked.frame.clone(),
            };
            let ran = self.kernel.explain(&receiver, 0);
            all.push((receiver, ran));
        }
        all
    }

    /// Whether a run ended as the model says.
    fn same(&self, ran: Option<&Ran>, outcome: &Outcome) -> bool {
        let end = now() + 60 * SECOND;
        let counts = |judged| {
            let key = counted(judged);
            while self.kernel.count(key) != self.expected[&key] {
                // What went over the wire arrives some time.
                if ran.is_some() || now() > end {
                    return false;
                }
                std::thread::yield_now();
            }
            true
        };
        let like = |ran: &Ran| {
            (ran.code, ran.mark) == (outcome.code, outcome.mark) && ran.frame == outcome.frame
        };
        ran.is_none_or(like) && outcome.judged.iter().all(counts)
    }

    /// What the generation that waits would say.
    fn ahead(&mut self, asked: &Asked) -> Result<(), String> {
        let Some(waiting) = self.model.waiting() else {
            return Ok(());
        };
        // One of eight is enough for a copy of all that the model knows.
        let one = asked
            .frame
            .iter()
            .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
            & 7
            == 0;
        if !one || cable::refused(&asked.frame) {
            return Ok(());
        }
        let explained = self.kernel.explain(asked, waiting);
        let mut model = self.model.clone();
        model.active = waiting;
        let (judged, _) = model.gate(asked, now());
        if model.doubtful {
            return Ok(());
        }
        explains(&self.model, &explained, asked, &judged)
    }

    fn miscounted(&self) -> String {
        let mut text = String::new();
        let counters = self.kernel.counters();
        let keys: std::collections::BTreeSet<_> =
            counters.keys().chain(self.expected.keys()).collect();
        for key in keys {
            let count = |of: &Counters| of.get(key).copied().unwrap_or(0);
            let (is, should) = (count(&counters), count(&self.expected));
            if is != should {
                let (cell, way, path, verdict, reason) = key;
                let _ = write!(
                    text,
                    "\n  cell {cell} {way} {path} {verdict} {reason}: {is} instead of {should}"
                );
            }
        }
        text
    }

    /// Everything that was counted and remembered.
    fn compare_all(&self) -> Result<(), String> {
        let counters = self.kernel.counters();
        if counters != self.expected {
            return Err(format!("the counters differ:{}", self.miscounted()));
        }
        let (is, should) = (self.kernel.hits(), &self.model.hits);
        if is != *should {
            return Err(format!("rules decided {is:?} instead of {should:?}"));
        }
        let kernel = self.kernel.flows();
        for key in kernel.keys().chain(self.model.flows.keys()) {
            let timeless = |flow: &Flow| Flow {
                seen: 0,
                due: 0,
                agreement: None,
                ..*flow
            };
            let is = kernel.get(key).map(timeless);
            let should = self.model.flows.get(key).map(timeless);
            if is != should {
                return Err(format!("flow {key:x?} is\n{is:#?} instead of\n{should:#?}"));
            }
        }
        Ok(())
    }
}
