//! Packets while generations are prepared, switched to, undone and retired all the time: each must be judged by one
//! generation, and as if there were no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::answer::explains;
use crate::cable;
use crate::frames::Frames;
use crate::kernel::{Explainer, Kernel, Ran, hardware, now};
use crate::model::{Asked, Model};
use crate::random::Random;
use crate::tables::Tables;
use crate::universe::Universe;
use crate::world::{World, inside};

/// How often the generation changes.
const SWITCHES: u32 = 60;
/// Answers that are kept, of each generation its share; what is asked after that is not looked at.
const ANSWERS: usize = 200_000;

/// What was asked, and what was said.
type Answer = (Asked, Ran);

/// Explanations leave no flows behind, so that an answer depends on the frame and its generation only.
pub(crate) fn play(seed: u64) {
    let world = World::new(4);
    let mut kernel = Kernel::open(&world, Duration::ZERO);
    let mut explainer = Explainer::open(&world);
    let names: BTreeMap<u32, String> = world
        .pods
        .iter()
        .map(|pod| (pod.ifindex, pod.ifname.clone()))
        .collect();
    let hardware = hardware(&world);
    let model = Model {
        hardware: hardware.clone(),
        ..Model::default()
    };
    let (generations, answers) = inside(&world.node, move || {
        let mut random = Random::new(seed);
        let interfaces: Vec<u32> = names.keys().copied().collect();
        let universe = Universe::random(&mut random, &interfaces);
        let mut tables = universe.tables(&mut random);
        let mut frames = Frames::new(&universe, &hardware);
        frames.tables = tables.clone();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = scope.spawn(|| ask(&mut frames, seed, &mut explainer, &done));
            let mut generations = BTreeMap::new();
            for number in 1..=SWITCHES {
                kernel.prepare(&tables.kernel(number, &names));
                generations.insert(number, tables.clone());
                if random.percent(20) {
                    kernel.abandon();
                } else {
                    kernel.flip();
                }
                tables = universe.next(&tables, &mut random);
            }
            done.store(true, Ordering::Relaxed);
            (generations, asking.join().expect("answers came"))
        })
    });
    compare(model, generations, &answers);
}

fn ask(
    frames: &mut Frames<'_>,
    seed: u64,
    explainer: &mut Explainer,
    done: &AtomicBool,
) -> Vec<Answer> {
    let mut random = Random::new(!seed);
    let mut answers = Vec::new();
    // Where switching is slow, the first generations would be all that is looked at.
    let mut taken = BTreeMap::<u32, usize>::new();
    while !done.load(Ordering::Relaxed) {
        let asked = frames.next(&mut random);
        if cable::refused(&asked.frame) {
            continue;
        }
        let ran = explainer.explain(&asked, 0);
        let taken = taken.entry(ran.control[3]).or_default();
        if *taken < ANSWERS / SWITCHES as usize {
            *taken += 1;
            answers.push((asked, ran));
        }
    }
    answers
}

/// The fourth word of an answer is the generation that was read.
fn compare(mut model: Model, generations: BTreeMap<u32, Tables>, answers: &[Answer]) {
    model.generations = generations;
    let mut seen = BTreeSet::new();
    for (asked, ran) in answers {
        model.active = ran.control[3];
        seen.insert(model.active);
        let (judged, _) = model.gate(asked, now());
        model.forget();
        if let Err(difference) = explains(&model, ran, asked, &judged) {
            panic!("generation {}: {difference}", model.active);
        }
    }
    println!("{} answers of {} generations", answers.len(), seen.len());
    assert!(
        seen.len() as u32 > SWITCHES / 2,
        "only {seen:?} were seen: nothing was asked meanwhile"
    );
}
