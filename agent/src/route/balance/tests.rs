use std::cell::Cell;
use std::net::Ipv4Addr;
use std::time::Duration;

use snapshot::model::{Balance, ConsistentHash, HashCookie, HashKey};

use super::{Balancer, Draw, new_cookie};
use crate::route::Backend;
use crate::route::hash::stable;
use crate::upstream::Place;

const SECOND: Duration = Duration::from_secs(1);

fn endpoints(count: u16) -> Backend {
    let place = |at| Place::Address((Ipv4Addr::LOCALHOST, 8000 + at).into());
    Backend::new("b".into(), (0..count).map(|at| (place(at), None)).collect())
}

/// A source of chance that is always the same (SplitMix64).
fn chance() -> impl FnMut() -> u64 {
    let state = Cell::new(0u64);
    move || {
        state.set(state.get() + 1);
        stable(&[&state.get().to_le_bytes()])
    }
}

/// How often each endpoint is chosen.
fn shares(
    balance: &Balance,
    backend: &Backend,
    usable: &[usize],
    times: usize,
    now: Duration,
    hash: impl Fn(usize) -> Option<u64>,
) -> Vec<usize> {
    let balancer = Balancer::new(balance, backend);
    let mut random = chance();
    let mut turn = 0;
    let mut counts = vec![0; backend.endpoints.len()];
    for time in 0..times {
        let mut order = usable.to_vec();
        let draw = Draw {
            random: &mut random,
            turn: |count| {
                turn += 1;
                turn % count
            },
            hash: hash(time),
            now,
        };
        balancer.choose(backend, &mut order, draw);
        counts[order[0]] += 1;
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, usable, "the others follow");
    }
    counts
}

fn near(count: usize, expected: usize) -> bool {
    count.abs_diff(expected) * 10 <= expected
}

#[test]
fn each_in_turn_and_any_are_even() {
    let backend = endpoints(4);
    let none = |_| None;
    let turn = Balance::RoundRobin { slow_start: None };
    let counts = shares(&turn, &backend, &[0, 1, 2, 3], 400, SECOND, none);
    assert_eq!(counts, [100; 4]);
    let counts = shares(&turn, &backend, &[1, 3], 400, SECOND, none);
    assert_eq!(counts, [0, 200, 0, 200]);
    let counts = shares(
        &Balance::Random,
        &backend,
        &[0, 1, 2, 3],
        8000,
        SECOND,
        none,
    );
    assert!(counts.iter().all(|count| near(*count, 2000)), "{counts:?}");
}

#[test]
fn of_two_the_one_with_fewer_requests_is_chosen() {
    let backend = endpoints(4);
    let none = |_| None;
    let least = Balance::default();
    let counts = shares(&least, &backend, &[0, 1, 2, 3], 8000, SECOND, none);
    assert!(counts.iter().all(|count| near(*count, 2000)), "{counts:?}");
    let _busy = backend.endpoints[2].state().requests.take(None);
    let counts = shares(&least, &backend, &[0, 1, 2, 3], 8000, SECOND, none);
    // Against every other one it loses.
    assert_eq!(counts[2], 0, "{counts:?}");
    let counts = shares(&least, &backend, &[2], 10, SECOND, none);
    assert_eq!(counts[2], 10);
}

#[test]
fn a_new_endpoint_gets_more_and_more() {
    let slow_start = Some(SECOND * 100);
    let none = |_| None;
    for balance in [
        Balance::LeastRequest { slow_start },
        Balance::RoundRobin { slow_start },
    ] {
        let backend = endpoints(2);
        // The first is there for long, the second comes now.
        backend.endpoints[0].state().age(SECOND);
        backend.endpoints[1].state().age(SECOND * 1000);
        let mut before = 0;
        for (now, most) in [(1000, 0.25), (1030, 0.35), (1060, 0.45), (1100, 0.55)] {
            let now = SECOND * now;
            let counts = shares(&balance, &backend, &[0, 1], 8000, now, none);
            assert!(counts[1] > before, "{balance:?} {now:?} {counts:?}");
            assert!(
                counts[1] as f64 <= 8000.0 * most,
                "{balance:?} {now:?} {counts:?}"
            );
            before = counts[1];
        }
        assert!(near(before, 4000), "{before}");
    }
}

#[test]
fn a_hash_leads_to_one_endpoint_as_long_as_it_is_there() {
    let backend = endpoints(5);
    let balance = Balance::ConsistentHash(ConsistentHash {
        key: HashKey::SourceIp,
        table_size: 65_537,
    });
    let all = [0, 1, 2, 3, 4];
    let home = |hash: u64, usable: &[usize]| {
        let counts = shares(&balance, &backend, usable, 3, SECOND, |_| Some(hash));
        let at = counts.iter().position(|count| *count == 3);
        at.expect("always the same one")
    };
    let mut moved = [0; 5];
    for key in 0..200u64 {
        let hash = stable(&[&key.to_le_bytes()]);
        let before = home(hash, &all);
        let after = home(hash, &[0, 1, 3, 4]);
        assert!(before == 2 || before == after, "{key} moved without need");
        if before == 2 {
            moved[after] += 1;
        }
    }
    // Those of the one that left are spread over the others.
    assert_eq!(
        moved.iter().filter(|count| **count > 0).count(),
        4,
        "{moved:?}"
    );
    // Without anything to hash any will do.
    let counts = shares(&balance, &backend, &all, 5000, SECOND, |_| None);
    assert!(counts.iter().all(|count| near(*count, 1000)), "{counts:?}");
}

#[test]
fn cookies_are_made_as_the_policy_says() {
    for (ttl, attributes, expected) in [
        (None, vec![], None),
        (Some(0), vec![], Some("c=v; Path=/; HttpOnly")),
        (
            Some(60),
            vec![("SameSite", "Strict"), ("Secure", "")],
            Some("c=v; Max-Age=60; Path=/; HttpOnly; SameSite=Strict; Secure"),
        ),
        (
            Some(1),
            vec![("path", "/a"), ("HttpOnly", "")],
            Some("c=v; Max-Age=1; path=/a; HttpOnly"),
        ),
    ] {
        let cookie = HashCookie {
            name: "c".into(),
            ttl: ttl.map(Duration::from_secs),
            attributes: attributes
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        };
        let made = new_cookie(&cookie, "v");
        let made = made.as_ref().map(|value| value.to_str().expect("ASCII"));
        assert_eq!(made, expected);
    }
}
