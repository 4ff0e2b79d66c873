use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use snapshot::Source;
use snapshot::model::{
    ActiveCheck, CircuitBreaker, LocalFailures, ObjectName, PassiveCheck, Question, RetryLimit,
    TrafficPolicy,
};

use super::{Backend, Managed};
use crate::resilience::{Outcome, Thresholds};
use crate::upstream::Place;

const NOW: Duration = Duration::from_secs(1000);

fn place(at: u16) -> Place {
    Place::Address((Ipv4Addr::LOCALHOST, 8000 + at).into())
}

fn policy() -> TrafficPolicy {
    let name = ObjectName::new("default", "p").expect("a name");
    let declared = Source::new("a.yaml", 1, "");
    TrafficPolicy::new(name, declared)
}

fn passive(max_ejected: u8, always_one: bool) -> PassiveCheck {
    PassiveCheck {
        server_errors: NonZeroU32::new(2),
        gateway_errors: None,
        local_failures: LocalFailures::GatewayErrors,
        base_ejection: Duration::from_secs(30),
        interval: Duration::from_secs(3),
        max_ejected,
        always_one,
    }
}

fn active() -> ActiveCheck {
    ActiveCheck {
        timeout: Duration::from_secs(1),
        interval: Duration::from_secs(3),
        unhealthy_threshold: NonZeroU32::MIN,
        healthy_threshold: NonZeroU32::MIN,
        question: Question::Tcp {
            send: Vec::new(),
            receive: Vec::new(),
        },
    }
}

fn managed(policy: TrafficPolicy, places: &[u16]) -> Managed {
    let places = places.iter().map(|at| (place(*at), None)).collect();
    Managed::new(
        policy.into(),
        Arc::new(Backend::new("b".into(), places)),
        None,
    )
}

fn fail(managed: &Managed, at: usize) {
    for _ in 0..2 {
        managed.count(at, Outcome::ServerError, NOW);
    }
}

fn probed(managed: &Managed, at: usize, good: bool) {
    let (_, _, health) = managed.probes().nth(at).expect("it is probed");
    health.observe(good, Thresholds::ONE);
}

#[test]
fn endpoints_are_left_out_up_to_a_share() {
    for (max_ejected, always_one, ejected) in [
        (100, false, 4),
        (50, false, 2),
        (25, false, 1),
        (10, false, 0),
        (10, true, 1),
        (0, true, 1),
        (0, false, 0),
    ] {
        let policy = TrafficPolicy {
            passive: Some(passive(max_ejected, always_one)),
            panic_threshold: 0,
            ..policy()
        };
        let managed = managed(policy, &[0, 1, 2, 3]);
        (0..4).for_each(|at| fail(&managed, at));
        let case = (max_ejected, always_one);
        assert_eq!(managed.usable(NOW).len(), 4 - ejected, "{case:?}");
        // They come back when their time is over.
        let later = NOW + Duration::from_secs(30);
        assert_eq!(managed.usable(later), [0, 1, 2, 3], "{case:?}");
    }
}

#[test]
fn with_too_few_healthy_endpoints_all_are_used() {
    for (threshold, bad, usable) in [
        (50, 1, 3),
        (50, 2, 2),
        (50, 3, 4),
        (0, 3, 1),
        (0, 4, 0),
        (100, 1, 4),
        (100, 0, 4),
    ] {
        let policy = TrafficPolicy {
            active: Some(active()),
            panic_threshold: threshold,
            ..policy()
        };
        let managed = managed(policy, &[0, 1, 2, 3]);
        (0..bad).for_each(|at| probed(&managed, at, false));
        let found = managed.usable(NOW);
        assert_eq!(found.len(), usable, "{threshold} {bad}");
        if usable < 4 {
            assert!(found.iter().all(|at| *at >= bad), "{threshold} {bad}");
        }
    }
}

#[test]
fn requests_and_retries_have_places() {
    let breaker = |max_retries| TrafficPolicy {
        circuit_breaker: Some(CircuitBreaker {
            max_connections: 1,
            max_endpoint_connections: None,
            max_connection_requests: None,
            max_pending: 1,
            max_requests: 3,
            max_retries,
        }),
        ..policy()
    };
    let limited = managed(breaker(RetryLimit::Number(1)), &[0]);
    let mut held: Vec<_> = (0..3).map(|_| limited.request()).collect();
    assert!(held.iter().all(Option::is_some));
    assert!(limited.request().is_none());
    held.pop();
    assert!(limited.request().is_some());
    let retry = limited.retry();
    assert!(retry.is_some() && limited.retry().is_none());

    let share = RetryLimit::Share {
        numerator: 1,
        denominator: NonZeroU32::new(2).expect("two"),
        least: 1,
    };
    let shared = managed(breaker(share), &[0]);
    let first = shared.retry();
    assert!(first.is_some() && shared.retry().is_none());
    // Half of three is one, and of four two.
    let _more: Vec<_> = (0..4)
        .map(|_| shared.backend.state().requests.take(None))
        .collect();
    assert!(shared.retry().is_some());
    let nobody = managed(
        TrafficPolicy {
            circuit_breaker: Some(CircuitBreaker {
                max_connections: 0,
                max_endpoint_connections: None,
                max_connection_requests: None,
                max_pending: 0,
                max_requests: 0,
                max_retries: RetryLimit::Number(0),
            }),
            ..policy()
        },
        &[0],
    );
    assert!(nobody.request().is_none() && nobody.retry().is_none());
    let unlimited = managed(policy(), &[0]);
    assert!(unlimited.request().is_some() && unlimited.retry().is_some());
}

#[test]
fn what_is_remembered_goes_over_to_the_next_table() {
    let with = |threshold| TrafficPolicy {
        passive: Some(passive(100, false)),
        active: Some(ActiveCheck {
            unhealthy_threshold: NonZeroU32::new(threshold).expect("not zero"),
            ..active()
        }),
        panic_threshold: 0,
        ..policy()
    };
    let before = managed(with(1), &[0, 1, 2]);
    fail(&before, 0);
    probed(&before, 1, false);
    let slot = before.request();
    assert_eq!(before.usable(NOW), [2]);

    // In another order, with another endpoint and without one.
    let after = managed(with(1), &[3, 1, 0]);
    after.backend.adopt(&before.backend);
    after.adopt(&before);
    assert_eq!(after.usable(NOW), [0]);
    assert_eq!(after.backend.state().requests.taken(), 1);
    drop(slot);
    assert_eq!(after.backend.state().requests.taken(), 0);

    // What another question found out says nothing.
    let other = managed(with(2), &[0, 1]);
    other.backend.adopt(&before.backend);
    other.adopt(&before);
    assert_eq!(other.usable(NOW), [1]);
}
