use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use serde_json::Value;
use snapshot::model::{KeySource, ObjectName, Placement, PlacementUrl, RoutingTable, UpstreamHost};

use super::{Admitted, FailoverReason, NotAdmitted, Placements, fits};
use crate::resilience::{CircuitState, Thresholds};

const NOW: Duration = Duration::from_secs(1);

fn url(at: u8) -> PlacementUrl {
    PlacementUrl {
        tls: false,
        host: UpstreamHost::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, at))),
        port: NonZeroU16::MIN,
    }
}

/// Placements `a` to `d`, each with a key of its name; `d` is the default.
fn table(change: impl Fn(&str, &mut Placement)) -> Placements {
    let names = ["a", "b", "c", "d"];
    let placements = names.iter().zip(1..).map(|(name, at)| {
        let mut placement = Placement::at(url(at));
        change(name, &mut placement);
        ((*name).to_owned(), placement)
    });
    let source = snapshot::Source::new("t", 1, "");
    Placements::new(&RoutingTable {
        name: ObjectName::new("default", "t").expect("a name"),
        declared: source,
        version: "1".to_owned(),
        key: KeySource::Header("x-routing-key".to_owned()),
        trust: Vec::new(),
        keys: names
            .iter()
            .map(|one| ((*one).to_owned(), (*one).to_owned()))
            .collect(),
        placements: placements.collect::<BTreeMap<_, _>>(),
        default: "d".to_owned(),
        tiers: Default::default(),
    })
    .expect("it compiles")
}

fn falls(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str, &mut Placement) {
    move |name, placement| {
        placement.breaker.failure_threshold = NonZeroU32::MIN;
        let found = pairs.iter().find(|(from, _)| *from == name);
        placement.fallback = found.map(|(_, to)| (*to).to_owned());
    }
}

fn open(placements: &Placements, name: &str) {
    let placement = placements.placement(name).expect("it is there");
    let breaker = &placement.state().breaker;
    let settings = &placement.settings.breaker;
    let one = breaker.allow(Duration::ZERO, settings).expect("closed");
    breaker.count(one, false, Duration::ZERO, settings);
    assert_eq!(breaker.state().0, CircuitState::Open);
}

fn ill(placements: &Placements, name: &str) {
    for one in &placements.placement(name).expect("it is there").endpoints {
        one.health().observe(false, Thresholds::ONE);
    }
}

type Outcome = Result<(&'static str, Option<FailoverReason>), (&'static str, NotAdmitted)>;

#[test]
fn another_serves_for_two_causes_and_one_hop_each() {
    use FailoverReason::{CircuitOpen as Circuit, UpstreamUnhealthy as Ill};
    use NotAdmitted::CircuitOpen;
    // Fallbacks, open breakers, unhealthy placements, and who serves key `a`.
    let rows: [(&'static [_], &[&str], &[&str], Outcome); 14] = [
        (&[("a", "b")], &[], &[], Ok(("a", None))),
        (&[("a", "b")], &["a"], &[], Ok(("b", Some(Circuit)))),
        (&[], &["a"], &[], Err(("a", CircuitOpen))),
        (&[("a", "b")], &[], &["a"], Ok(("b", Some(Ill)))),
        // Without a fallback the default serves what is unhealthy.
        (&[], &[], &["a"], Ok(("d", Some(Ill)))),
        // Refused by the breaker, then looked at its health: the fallback's, then the default.
        (&[("a", "b")], &["a"], &["b"], Ok(("d", Some(Ill)))),
        (
            &[("a", "b"), ("b", "c")],
            &["a"],
            &["b"],
            Ok(("c", Some(Ill))),
        ),
        // One hop per cause.
        (
            &[("a", "b"), ("b", "c")],
            &["a", "b"],
            &[],
            Err(("b", CircuitOpen)),
        ),
        (
            &[("a", "b"), ("b", "c")],
            &[],
            &["a", "b"],
            Ok(("b", Some(Ill))),
        ),
        (
            &[("a", "b"), ("b", "c")],
            &["a"],
            &["b", "c"],
            Ok(("c", Some(Ill))),
        ),
        // A target's breaker holds as well.
        (
            &[("a", "b"), ("b", "c")],
            &["b"],
            &["a"],
            Err(("b", CircuitOpen)),
        ),
        (&[("a", "b")], &["a", "d"], &["b"], Err(("d", CircuitOpen))),
        // Both causes at once: the breaker is asked first.
        (&[("a", "b")], &["a"], &["a"], Ok(("b", Some(Circuit)))),
        (&[], &["a"], &["a"], Err(("a", CircuitOpen))),
    ];
    for (at, (fallbacks, opened, unhealthy, want)) in rows.into_iter().enumerate() {
        let placements = table(falls(fallbacks));
        opened.iter().for_each(|name| open(&placements, name));
        unhealthy.iter().for_each(|name| ill(&placements, name));
        {
            let got = placements.admit("a", None, NOW);
            let got = match &got {
                Ok(one) => Ok((&*one.placement.name, one.failover)),
                Err((_, name, why)) => Err((&**name, *why)),
            };
            assert_eq!(got, want, "row {at}");
        }
        // Nobody keeps a slot behind.
        for placement in placements.all() {
            assert_eq!(placement.state().slots.taken(), 0, "row {at}");
        }
    }
}

#[test]
fn the_default_serves_although_it_is_unhealthy() {
    let placements = table(|_, _| {});
    ill(&placements, "d");
    for key in ["d", "nobody"] {
        let one = placements.admit(key, None, NOW).expect("it serves");
        assert_eq!((&*one.placement.name, one.failover), ("d", None), "{key}");
    }
}

#[test]
fn a_probe_that_an_unhealthy_placement_does_not_serve_is_no_probe() {
    let placements = table(falls(&[]));
    open(&placements, "a");
    ill(&placements, "a");
    let later = Duration::from_secs(3600);
    for _ in 0..2 {
        let one = placements
            .admit("a", None, later)
            .expect("the default serves");
        assert_eq!(&*one.placement.name, "d");
        assert_eq!(one.permit.count(true, later), Some(CircuitState::Closed));
        let (state, _) = placements
            .placement("a")
            .expect("there")
            .state()
            .breaker
            .state();
        assert_eq!(
            state,
            CircuitState::HalfOpen,
            "closed by answers of its own only"
        );
    }
}

#[test]
fn requests_that_end_without_a_result_do_not_count() {
    let placements = table(falls(&[]));
    for _ in 0..3 {
        drop(placements.admit("a", None, NOW).expect("admitted"));
    }
    open(&placements, "a");
    let later = Duration::from_secs(3600);
    let probe = placements.admit("a", None, later).expect("a probe");
    assert!(placements.admit("a", None, later).is_err());
    drop(probe);
    let probe = placements.admit("a", None, later).expect("the next probe");
    assert_eq!(
        probe.permit.count(true, later),
        Some(CircuitState::HalfOpen)
    );
    assert!(placements.admit("a", None, later).is_ok());
}

/// Rows LM of the contract.
#[test]
fn limits_of_the_contract_hold() {
    let text = include_str!("../../../../tests/vectors/cell-routing.json");
    let file: Value = serde_json::from_str(text).expect("the vectors are JSON");
    let rows = file["limits"].as_array().expect("a group");
    assert_eq!(file["counts"]["limits"], rows.len());
    for row in rows {
        let id = &row["id"];
        assert_eq!(row["class"], "contract", "{id}");
        let limit = |field: &str| row["limits"][field].as_u64().filter(|limit| *limit > 0);
        let body = limit("max_request_body_bytes");
        let placements = table(|_, placement| {
            let slots = limit("concurrency_limit").and_then(|one| u32::try_from(one).ok());
            placement.concurrency_limit = slots.and_then(NonZeroU32::new);
            placement.max_request_body_bytes = body;
        });
        let mut held: Vec<Admitted> = Vec::new();
        for (at, step) in row["steps"].as_array().expect("steps").iter().enumerate() {
            if let Some(bytes) = step["body_bytes"].as_u64() {
                let ok = placements.admit("a", Some(bytes), NOW).is_ok();
                assert_eq!(step["ok"], ok, "{id} step {at}");
                assert_eq!(step["ok"], fits(body, bytes), "{id} step {at}");
            } else if let Some(count) = step["release"].as_u64() {
                held.drain(..count as usize);
            } else {
                let taken = placements.admit("a", None, NOW);
                assert_eq!(step["acquire"], taken.is_ok(), "{id} step {at}");
                match taken {
                    Ok(one) => held.push(one),
                    Err((_, _, why)) => assert_eq!(why, NotAdmitted::Full, "{id} step {at}"),
                }
            }
        }
    }
}

#[test]
fn limits_and_states_are_those_of_who_serves() {
    let placements = table(|name, placement| {
        if name == "b" {
            placement.concurrency_limit = Some(NonZeroU32::MIN);
            placement.max_request_body_bytes = Some(10);
        } else if name == "a" {
            placement.fallback = Some("b".to_owned());
        }
    });
    let why = |result: Result<Admitted, (_, std::sync::Arc<str>, _)>| {
        let (_, name, why) = result.expect_err("it is refused");
        (name.to_string(), why)
    };
    ill(&placements, "a");
    assert_eq!(
        why(placements.admit("a", Some(11), NOW)),
        ("b".to_owned(), NotAdmitted::BodyTooLarge)
    );
    let one = placements.admit("a", Some(10), NOW).expect("it fits");
    assert_eq!(
        why(placements.admit("a", None, NOW)),
        ("b".to_owned(), NotAdmitted::Full)
    );
    drop(one);
    assert!(placements.admit("a", None, NOW).is_ok());
}

#[test]
fn what_is_remembered_goes_over_by_name_and_endpoint() {
    let before = table(falls(&[]));
    open(&before, "a");
    ill(&before, "a");
    ill(&before, "b");
    let held = before.admit("c", None, NOW).expect("it serves");
    let after = table(|name, placement| {
        if name == "b" {
            placement.endpoints = vec![url(9), url(2)];
        } else if name == "a" {
            placement.endpoints = vec![url(9)];
        }
    });
    after.adopt(&before);
    let named = |name| after.placement(name).expect("it is there");
    assert_eq!(named("a").state().breaker.state().0, CircuitState::Open);
    assert!(
        named("a").endpoints[0].health().healthy(),
        "another endpoint"
    );
    let health: Vec<bool> = named("b")
        .endpoints
        .iter()
        .map(|one| one.health().healthy())
        .collect();
    assert_eq!(health, [true, false]);
    assert_eq!(named("c").state().slots.taken(), 1);
    drop(held);
    assert_eq!(named("c").state().slots.taken(), 0);
}

#[test]
fn a_key_keeps_to_its_shard() {
    let placements = table(|_, placement| {
        placement.endpoints = (1..=8).map(url).collect();
        placement.shard_size = NonZeroU32::new(2);
    });
    let placement = placements.placement("a").expect("it is there");
    let shard = |key: &str| -> Vec<_> {
        let shard = placement.shard(key);
        shard.iter().map(|one| one.host.clone()).collect()
    };
    assert_eq!(shard("acme").len(), 2);
    assert_eq!(shard("acme"), shard("acme"));
    assert!(
        ["b", "c", "e", "f"]
            .iter()
            .any(|key| shard(key) != shard("acme"))
    );
    // Its own endpoints decide, not those of others.
    for one in placement.shard("acme") {
        one.health().observe(false, Thresholds::ONE);
    }
    assert!(!placement.healthy("acme"));
    let other = (0..100)
        .map(|at| at.to_string())
        .find(|key| placement.healthy(key));
    assert!(other.is_some());
}
