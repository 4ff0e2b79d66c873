use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

use super::{Answer, FORGOTTEN, Nodes, PATIENCE, REMEMBERED, Spread};
use crate::kinds::Kind;
use crate::object::{Object, ObjectId};
use crate::store::Objects;

fn object(kind: Kind, name: &str, generation: i64) -> Arc<Object> {
    Arc::new(Object {
        id: ObjectId {
            kind,
            namespace: "n".into(),
            name: name.into(),
        },
        api_version: "v1".into(),
        uid: name.into(),
        generation,
        document: b"{}".as_slice().into(),
        status: None,
    })
}

fn objects(all: &[&Arc<Object>]) -> Objects {
    let all = all.iter();
    all.map(|object| (object.id.clone(), Arc::clone(object)))
        .collect()
}

fn of(nodes: &Nodes, object: &Object, now: Instant) -> Option<(usize, usize)> {
    match nodes.of(object, now) {
        Answer::Known(spread) => Some((spread.activated, spread.known)),
        Answer::Soon => None,
    }
}

/// Two nodes, of which the other has said what ours goes by at first.
fn pair(first: &Objects, start: Instant) -> Nodes {
    let mut nodes = Nodes::new();
    assert!(nodes.activate(first, start));
    let digest = nodes.digest().0.to_string();
    assert!(nodes.heard("b", &digest, None, start));
    nodes.listed(&["b".into()]);
    nodes
}

#[test]
fn a_node_that_says_what_we_went_by_goes_by_what_has_not_changed_since() {
    let start = Instant::now();
    let (shop, bank) = (object(Kind::Cell, "shop", 1), object(Kind::Cell, "bank", 1));
    let mut nodes = pair(&objects(&[&shop, &bank]), start);
    assert_eq!(of(&nodes, &shop, start), Some((2, 2)));

    let newer = object(Kind::Cell, "shop", 2);
    let now = objects(&[&newer, &bank]);
    assert_eq!(of(&nodes, &newer, start), None, "we don't go by it either");
    assert!(nodes.activate(&now, start));
    assert_eq!(of(&nodes, &bank, start), Some((2, 2)));
    assert_eq!(of(&nodes, &newer, start), None, "the other has time");
    let late = start + PATIENCE;
    assert_eq!(of(&nodes, &newer, late), Some((1, 2)));
    let missing = match nodes.of(&newer, late) {
        Answer::Known(spread) => spread.missing(),
        Answer::Soon => None,
    };
    assert_eq!(missing.as_deref(), Some("b has not activated it yet"));

    let digest = nodes.digest().0.to_string();
    assert!(nodes.heard("b", &digest, None, late));
    assert!(!nodes.heard("b", &digest, None, late), "that is no news");
    assert_eq!(of(&nodes, &newer, late), Some((2, 2)));
}

#[test]
fn what_a_node_says_before_we_go_by_it_counts_when_we_do() {
    let start = Instant::now();
    let shop = object(Kind::Cell, "shop", 1);
    let newer = object(Kind::Cell, "shop", 2);
    let mut nodes = pair(&objects(&[&shop]), start);
    let mut faster = nodes.clone();
    assert!(faster.activate(&objects(&[&newer]), start));
    assert!(nodes.heard("b", &faster.digest().0, None, start));
    assert_eq!(of(&nodes, &shop, start), Some((2, 2)));
    assert!(nodes.activate(&objects(&[&newer]), start));
    assert_eq!(of(&nodes, &newer, start), Some((2, 2)));
}

#[test]
fn what_was_never_ours_tells_nothing() {
    let start = Instant::now();
    let shop = object(Kind::Cell, "shop", 1);
    let mut nodes = Nodes::new();
    assert!(nodes.activate(&objects(&[&shop]), start));
    assert!(nodes.heard("b", "of a time long ago", None, start));
    assert_eq!(of(&nodes, &shop, start + PATIENCE), None, "not listed yet");
    nodes.listed(&["b".into()]);
    assert_eq!(of(&nodes, &shop, start + PATIENCE), Some((1, 2)));
}

#[test]
fn objects_of_other_kinds_and_their_status_play_no_part() {
    let start = Instant::now();
    let shop = object(Kind::Cell, "shop", 1);
    let mut nodes = pair(&objects(&[&shop]), start);
    let mut told = Object::clone(&shop);
    told.status = Some(b"{}".as_slice().into());
    let route = object(Kind::HttpRoute, "route", 1);
    assert!(!nodes.activate(&objects(&[&Arc::new(told), &route]), start));
    assert_eq!(of(&nodes, &shop, start), Some((2, 2)));
}

#[test]
fn an_object_of_the_same_name_is_another_one() {
    let start = Instant::now();
    let shop = object(Kind::Cell, "shop", 1);
    let mut nodes = pair(&objects(&[&shop]), start);
    let mut again = Object::clone(&shop);
    again.uid = "another".into();
    let again = Arc::new(again);
    assert_eq!(of(&nodes, &again, start), None);
    assert!(nodes.activate(&objects(&[&again]), start));
    assert_eq!(of(&nodes, &again, start + PATIENCE), Some((1, 2)));
}

#[test]
fn a_node_that_goes_back_is_counted_anew() {
    let start = Instant::now();
    let shop = object(Kind::Cell, "shop", 1);
    let newer = object(Kind::Cell, "shop", 2);
    let mut nodes = pair(&objects(&[&shop]), start);
    let old = nodes.digest().0.to_string();
    nodes.activate(&objects(&[&newer]), start);
    let digest = nodes.digest().0.to_string();
    nodes.heard("b", &digest, None, start);
    let turn = nodes.turn();
    nodes.heard("b", &old, None, start);
    assert_ne!(nodes.turn(), turn);
    assert_eq!(of(&nodes, &newer, start + PATIENCE), Some((1, 2)));
}

#[test]
fn states_are_remembered_in_bounds() {
    let start = Instant::now();
    let mut nodes = pair(&objects(&[&object(Kind::Cell, "shop", 1)]), start);
    for generation in 2..1_000 {
        nodes.activate(&objects(&[&object(Kind::Cell, "shop", generation)]), start);
    }
    assert_eq!(nodes.before.len(), REMEMBERED);
    let last = object(Kind::Cell, "shop", 999);
    assert_eq!(of(&nodes, &last, start + PATIENCE), Some((1, 2)));
}

#[test]
fn nodes_that_are_gone_or_silent_are_not_counted() {
    let start = Instant::now();
    let shop = object(Kind::Cell, "shop", 1);
    let mut nodes = pair(&objects(&[&shop]), start);
    let digest = nodes.digest().0.to_string();
    nodes.heard("c", &digest, None, start);
    assert_eq!(of(&nodes, &shop, start), Some((3, 3)));

    // It says the same again at another time of its clock, and is heard.
    let later = start + FORGOTTEN - Duration::from_secs(1);
    let renewed = MicroTime(Timestamp::from_second(1).expect("a moment"));
    assert!(!nodes.heard("c", &digest, Some(renewed), later));
    assert!(nodes.expire(start + FORGOTTEN));
    assert_eq!(of(&nodes, &shop, later), Some((2, 2)));
    assert!(!nodes.expire(start + FORGOTTEN));

    let turn = nodes.turn();
    nodes.gone("c");
    assert_ne!(nodes.turn(), turn);
    assert_eq!(of(&nodes, &shop, later), Some((1, 1)));
}

#[test]
fn a_list_says_who_is_left_and_deafness_ends_the_waiting() {
    let start = Instant::now();
    let shop = object(Kind::Cell, "shop", 1);
    let mut nodes = pair(&objects(&[&shop]), start);
    nodes.listed(&[]);
    assert_eq!(of(&nodes, &shop, start), Some((1, 1)));
    nodes.forget();
    assert_eq!(of(&nodes, &shop, start), None);
    nodes.deaf();
    assert_eq!(of(&nodes, &shop, start), Some((1, 1)));
}

#[test]
fn some_of_many_that_are_behind_are_named() {
    let missing = |known, behind: &[&str]| {
        let behind = behind.iter().map(|name| Arc::from(*name)).collect();
        let spread = Spread {
            activated: 1,
            known,
            behind,
        };
        spread.missing()
    };
    assert_eq!(missing(1, &[]), None);
    assert_eq!(
        missing(3, &["b", "c"]).as_deref(),
        Some("b, c have not activated it yet")
    );
    assert_eq!(
        missing(9, &["b", "c", "d"]).as_deref(),
        Some("8 nodes have not activated it yet, among them b, c, d")
    );
}
