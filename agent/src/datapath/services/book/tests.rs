//! Any sequence of generations, against maps that are played by plain data: what a reader of a live generation sees is
//! looked at after every single write.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use super::super::super::tables::Backend;
use super::super::draft::{seconds, whole};
use super::*;

const SERVICES: usize = 5;
const CHOICES: u32 = 24;
const BACKENDS: u32 = 20;

type Wanted = Table<ServiceAddress, Service>;

/// The three maps.
#[derive(Clone)]
struct Kernel {
    entries: BTreeMap<ServiceKey, Versioned<WireService>>,
    choices: Vec<Choice>,
    backends: Vec<WireBackend>,
}

/// What a reader sees of a service: seconds of affinity, and how many of a hundred numbers per choice lead to each backend.
type Seen = (u32, BTreeMap<([u8; 16], [u8; 2]), u64>);

impl Kernel {
    fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            choices: vec![Choice::new(0, 0, 0); CHOICES as usize],
            backends: vec![WireBackend::new([0; 16], [0; 2], 0); BACKENDS as usize],
        }
    }

    /// Carries out the first `count` writes, and looks after each.
    fn write(&mut self, writes: &Writes, count: usize, mut look: impl FnMut(&Self)) {
        let mut left = count;
        let mut step = |kernel: &mut Self, write: &mut dyn FnMut(&mut Self)| {
            if left > 0 {
                left -= 1;
                write(kernel);
                look(kernel);
            }
        };
        for (index, value) in &writes.backends {
            step(self, &mut |kernel| {
                kernel.backends[*index as usize] = *value
            });
        }
        for (index, value) in &writes.choices {
            step(self, &mut |kernel| kernel.choices[*index as usize] = *value);
        }
        for key in &writes.removed {
            step(self, &mut |kernel| {
                kernel.entries.remove(key);
            });
        }
        for (key, value) in &writes.entries {
            step(self, &mut |kernel| {
                kernel.entries.insert(*key, *value);
            });
            assert!(self.entries.len() <= SERVICES, "the map is not larger");
        }
        let keys: BTreeSet<_> = (writes.entries.iter().map(|(key, _)| key))
            .chain(&writes.removed)
            .collect();
        let all = writes.entries.len() + writes.removed.len();
        assert_eq!(keys.len(), all, "each key once a step");
    }

    fn seen(&self, generation: u32) -> BTreeMap<ServiceKey, Seen> {
        let entries = self.entries.iter();
        entries
            .filter_map(|(key, entry)| {
                let service = entry.at(generation)?;
                let mut shares = BTreeMap::new();
                let range = service.first()..service.first() + service.count();
                for choice in &self.choices[range.start as usize..range.end as usize] {
                    // Numbers in equal steps stand for all of them.
                    for step in 0..100u32 {
                        let index = choice.backend(step * (u32::MAX / 100));
                        let backend = self.backends[index as usize];
                        assert!(backend.serves(backend.since(), generation), "{backend:?}");
                        *shares
                            .entry((backend.address(), backend.port()))
                            .or_default() += 1;
                    }
                }
                Some((*key, (service.affinity_seconds(), shares)))
            })
            .collect()
    }

    /// What a client of `generation` may note of each service: a slot, and what that says of itself.
    fn offered(&self, generation: u32) -> Vec<(ServiceKey, u32, u32)> {
        let mut offered = Vec::new();
        for (key, entry) in &self.entries {
            if let Some(service) = entry.at(generation) {
                for index in service.first()..service.first() + service.count() {
                    let index = self.choices[index as usize].own();
                    offered.push((*key, index, self.backends[index as usize].since()));
                }
            }
        }
        offered
    }

    /// Whether a reader of `generation` finds what was wanted.
    fn shows(&self, generation: u32, wanted: &Wanted) {
        let seen = self.seen(generation);
        let keys: Vec<_> = wanted.keys().map(key).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        assert_eq!(seen.keys().copied().collect::<Vec<_>>(), sorted);
        for (key, service) in keys.iter().zip(wanted.values()) {
            let (affinity, shares) = &seen[key];
            assert_eq!(*affinity, seconds(service.affinity));
            let backends = whole(&service.backends);
            assert_eq!(shares.len(), backends.len());
            let total: u64 = backends.iter().map(|b| u64::from(b.weight)).sum();
            for backend in &backends {
                let at = (address_bytes(backend.address), backend.port.to_be_bytes());
                let count = backends.len() as u64;
                let expected = 100 * count * u64::from(backend.weight) / total;
                let got = shares[&at];
                assert!(got.abs_diff(expected) <= count, "{got} for {expected}");
            }
        }
    }

    /// The book of an agent that starts.
    fn read(&self, active: u32) -> Book {
        let mut book = Book::new(SERVICES, CHOICES, BACKENDS);
        for (key, entry) in &self.entries {
            let service = entry.at(active);
            let choices = service.map_or(Vec::new(), |service| {
                (service.first()..service.first() + service.count())
                    .map(|index| {
                        let choice = self.choices[index as usize];
                        (choice, self.backends[choice.own() as usize])
                    })
                    .collect()
            });
            book.adopt(active, *key, entry, choices)
                .expect("the maps fit together");
        }
        book
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let backend = (1..5u8, 1..3u16, 0..4u32).prop_map(|(host, port, weight)| Backend {
        address: Ipv4Addr::new(10, 0, 0, host).into(),
        port,
        weight,
    });
    let service = (
        proptest::collection::vec(backend, 0..7),
        proptest::option::of((1..3u64).prop_map(Duration::from_secs)),
    )
        .prop_map(|(backends, affinity)| Service { backends, affinity });
    let address = (1..8u8).prop_map(|host| ServiceAddress {
        address: Ipv4Addr::new(10, 96, 0, host).into(),
        port: 80,
        protocol: 6,
    });
    proptest::collection::btree_map(address, service, 0..6).prop_map(Wanted::from)
}

#[derive(Clone, Copy, Debug)]
enum End {
    Flip,
    FlipAndRetire,
    Abandon,
    /// The kernel refuses after this many writes, and what was written is undone.
    Fail(usize),
    /// So is the undoing.
    FailTwice(usize, usize),
    /// The agent ends after this many writes, and another one starts.
    Crash(usize),
    /// It ends after the flip.
    FlipAndCrash,
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        2 => Just(End::Flip),
        4 => Just(End::FlipAndRetire),
        2 => Just(End::Abandon),
        2 => (0..40usize).prop_map(End::Fail),
        2 => (0..40usize, 0..20usize).prop_map(|(a, b)| End::FailTwice(a, b)),
        2 => (0..40usize).prop_map(End::Crash),
        1 => Just(End::FlipAndCrash),
    ]
}

proptest! {
    #[test]
    fn a_live_generation_is_seen_as_it_was_wanted_whatever_is_written(
        steps in proptest::collection::vec((wanted(), end()), 1..12),
    ) {
        let mut kernel = Kernel::new();
        let mut book = Book::new(SERVICES, CHOICES, BACKENDS);
        let mut active = 1;
        let mut now = Wanted::new();
        // What clients may remember: any backend that they were ever led to.
        let mut remembered = BTreeSet::new();
        for (next, end) in steps {
            let before = kernel.seen(active);
            let used = book.used();
            let writes = match book.stage(active + 1, &next) {
                Ok(writes) => writes,
                Err(Error::Capacity { map, needed, limit, .. }) => {
                    assert!(needed > limit, "{map}: {needed} of {limit}");
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            let count = match end {
                End::Fail(count) | End::FailTwice(count, _) | End::Crash(count) => count,
                _ => usize::MAX,
            };
            kernel.write(&writes, count, |kernel| assert_eq!(kernel.seen(active), before));
            match end {
                End::Flip | End::FlipAndRetire | End::FlipAndCrash => {
                    kernel.shows(active, &now);
                    kernel.shows(active + 1, &next);
                    for (key, index, since) in &remembered {
                        let slot = kernel.backends[*index as usize];
                        if slot.serves(*since, active + 1)
                            && let Some((_, shares)) = kernel.seen(active + 1).get(key)
                        {
                            assert!(
                                shares.contains_key(&(slot.address(), slot.port())),
                                "a client is led out of the generation by what it remembers"
                            );
                        }
                    }
                    active += 1;
                    now = next;
                    remembered.extend(kernel.offered(active));
                    book.commit();
                    if matches!(end, End::FlipAndCrash) {
                        book = kernel.read(active);
                    }
                    if matches!(end, End::FlipAndRetire) {
                        let writes = book.retire();
                        kernel.write(&writes, usize::MAX, |kernel| kernel.shows(active, &now));
                        book.cleaned();
                        let choices: usize = now.values().map(|s| whole(&s.backends).len()).sum();
                        assert_eq!(book.used(), [now.len(), choices, choices]);
                        assert_eq!(kernel.entries.len(), now.len());
                    }
                }
                End::Crash(_) => book = kernel.read(active),
                End::Abandon | End::Fail(_) => {
                    let writes = book.abandon();
                    kernel.write(&writes, usize::MAX, |kernel| {
                        assert_eq!(kernel.seen(active), before);
                    });
                    book.undone();
                    assert!(book.used() <= used);
                    assert_eq!(kernel.entries.len(), now.len());
                }
                End::FailTwice(_, count) => {
                    let writes = book.abandon();
                    kernel.write(&writes, count, |kernel| {
                        assert_eq!(kernel.seen(active), before);
                    });
                }
            }
            kernel.shows(active, &now);
        }
        // An agent that starts knows all of it again, and finds nothing to do.
        let mut book = kernel.read(active);
        let writes = book.stage(active + 1, &now).expect("it is there");
        assert!(writes.choices.is_empty());
        kernel.write(&writes, usize::MAX, |kernel| kernel.shows(active, &now));
        book.commit();
        kernel.shows(active + 1, &now);
        assert_eq!(kernel.entries.len(), now.len());
    }
}

#[test]
fn backends_are_taken_once_and_time_in_whole_seconds() {
    let backend = |host, weight| Backend {
        address: Ipv4Addr::new(10, 0, 0, host).into(),
        port: 1,
        weight,
    };
    let given = [
        backend(2, 1),
        backend(1, 4),
        backend(3, 0),
        backend(2, u32::MAX),
    ];
    assert_eq!(whole(&given), [backend(2, u32::MAX), backend(1, 4)]);
    assert_eq!(seconds(None), 0);
    assert_eq!(seconds(Some(Duration::ZERO)), 1);
    assert_eq!(seconds(Some(Duration::from_millis(1500))), 2);
    assert_eq!(seconds(Some(Duration::MAX)), u32::MAX);
}
