use std::num::NonZeroU32;
use std::time::Duration;

use serde_json::Value;
use snapshot::model::BreakerSettings;

use super::{Admission, Breaker, Change, CircuitState, Counted, MAX_FAILURES};

fn settings(threshold: u32, timeout: Duration) -> BreakerSettings {
    BreakerSettings {
        failure_threshold: NonZeroU32::new(threshold).expect("above zero"),
        timeout,
    }
}

const SECOND: Duration = Duration::from_secs(1);

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/vectors/cell-routing.json"))
        .expect("the vectors are JSON")
}

/// Rows CB01 to CB03; the others of the group need a router and run in `proxy_router`.
#[test]
fn traces_of_the_contract_hold() {
    let file = vectors();
    let mut ran = 0;
    for row in file["circuit_breaker"].as_array().expect("a group") {
        let id = row["id"].as_str().expect("an id");
        let Some(threshold) = row["failure_threshold"].as_u64() else {
            continue;
        };
        // CB03: a document with threshold 0 is refused, as the row suggests.
        let Some(threshold) = NonZeroU32::new(threshold as u32) else {
            assert_eq!(id, "CB03");
            continue;
        };
        let settings = BreakerSettings {
            failure_threshold: threshold,
            timeout: Duration::from_millis(row["open_timeout_ms"].as_u64().expect("a time")),
        };
        let steps = match row["class"].as_str() {
            Some("defect") => &row["instead"]["steps"],
            _ => &row["steps"],
        };
        let breaker = Breaker::default();
        let mut now = SECOND;
        let mut last: Option<Admission> = None;
        for (at, step) in steps.as_array().expect("steps").iter().enumerate() {
            let told = |field: &str| match &step["instead"][field] {
                Value::Null => step[field].clone(),
                instead => instead.clone(),
            };
            // A result without a request before it is that of one that is still under way.
            let mut take = || {
                last.take().unwrap_or(Admission {
                    probe: false,
                    opened_half: false,
                })
            };
            match step["op"].as_str() {
                Some("allow") => {
                    let allowed = breaker.allow(now, &settings);
                    assert_eq!(told("allowed"), allowed.is_some(), "{id} step {at}");
                    last = allowed.or(last);
                }
                Some("success") => {
                    breaker.count(take(), true, now, &settings);
                }
                Some("failure") => {
                    breaker.count(take(), false, now, &settings);
                }
                Some("wait") => {
                    now += Duration::from_millis(step["ms"].as_u64().expect("a time"));
                }
                other => panic!("{id}: unknown step {other:?}"),
            }
            let (state, failures) = breaker.state();
            assert_eq!(told("state"), state.as_str(), "{id} step {at}");
            if let Some(want) = told("failures").as_u64() {
                assert_eq!(want, u64::from(failures), "{id} step {at}");
            }
        }
        ran += 1;
    }
    assert!(ran >= 2, "{ran} traces");
}

fn open() -> (Breaker, BreakerSettings) {
    let settings = settings(1, SECOND);
    let breaker = Breaker::default();
    let one = breaker.allow(Duration::ZERO, &settings).expect("closed");
    let counted = breaker.count(one, false, Duration::ZERO, &settings);
    assert_eq!(
        counted,
        Counted {
            before: CircuitState::Closed,
            change: Some(Change::Opened)
        }
    );
    (breaker, settings)
}

#[test]
fn a_probe_without_result_leaves_the_place_to_the_next() {
    let (breaker, settings) = open();
    assert_eq!(breaker.allow(SECOND / 2, &settings), None);
    let probe = breaker.allow(SECOND, &settings).expect("time is over");
    assert!(probe.opened_half);
    assert_eq!(breaker.allow(SECOND, &settings), None);
    breaker.cancel(probe);
    assert_eq!(breaker.state().0, CircuitState::HalfOpen);
    let probe = breaker.allow(SECOND, &settings).expect("the place is free");
    assert!(!probe.opened_half);
    let counted = breaker.count(probe, true, SECOND, &settings);
    assert_eq!(counted.change, Some(Change::Closed));
    assert_eq!(breaker.state(), (CircuitState::Closed, 0));
}

#[test]
fn results_from_before_it_opened_decide_nothing_while_it_probes() {
    let settings = settings(1, SECOND);
    let breaker = Breaker::default();
    let slow = || breaker.allow(Duration::ZERO, &settings).expect("closed");
    let (good, bad, first) = (slow(), slow(), slow());
    breaker.count(first, false, Duration::ZERO, &settings);
    let probe = breaker.allow(SECOND, &settings).expect("time is over");
    for (late, success) in [(good, true), (bad, false)] {
        let counted = breaker.count(late, success, SECOND, &settings);
        let nothing = Counted {
            before: CircuitState::HalfOpen,
            change: None,
        };
        assert_eq!(counted, nothing, "{success}");
    }
    let counted = breaker.count(probe, false, SECOND, &settings);
    assert_eq!(counted.change, Some(Change::Reopened));
    // Open for the full time again.
    assert_eq!(breaker.allow(SECOND * 3 / 2, &settings), None);
    assert!(breaker.allow(SECOND * 2, &settings).is_some());
}

#[test]
fn counts_and_thresholds_stay_in_their_bits() {
    let never = settings(u32::MAX, SECOND);
    let breaker = Breaker::default();
    for _ in 0..MAX_FAILURES - 1 {
        let one = breaker.allow(Duration::ZERO, &never).expect("closed");
        breaker.count(one, false, Duration::ZERO, &never);
    }
    assert_eq!(breaker.state(), (CircuitState::Closed, MAX_FAILURES - 1));
    let one = breaker.allow(Duration::ZERO, &never).expect("closed");
    let year = Duration::from_secs(365 * 24 * 3600);
    breaker.count(one, false, year, &never);
    assert_eq!(breaker.state(), (CircuitState::Open, MAX_FAILURES));
    let late = Admission {
        probe: false,
        opened_half: false,
    };
    breaker.count(late, false, year, &never);
    assert_eq!(breaker.state(), (CircuitState::Open, MAX_FAILURES));
    assert_eq!(breaker.allow(year, &never), None);
    assert!(breaker.allow(year + SECOND, &never).is_some());
}

#[test]
fn many_cores_admit_one_probe() {
    let (breaker, settings) = open();
    let admitted: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| breaker.allow(SECOND, &settings).is_some()))
            .collect();
        let joined = threads.into_iter().map(|one| one.join().expect("no panic"));
        joined.filter(|admitted| *admitted).count()
    });
    assert_eq!(admitted, 1);
}
