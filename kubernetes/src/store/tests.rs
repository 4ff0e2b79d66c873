use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Belief, SECOND_LOOK, Store};
use crate::error::Unheard;
use crate::kinds::Kind;
use crate::object::{Object, ObjectId};

fn object(kind: Kind, name: &str, document: &str) -> Object {
    Object {
        id: ObjectId {
            kind,
            namespace: "n".into(),
            name: name.into(),
        },
        api_version: "v1".into(),
        uid: name.into(),
        generation: 1,
        document: document.as_bytes().into(),
        status: None,
    }
}

fn silence(error: &str) -> Unheard {
    Unheard::silence(error.to_owned())
}

fn services(names: &[&str]) -> Vec<Object> {
    let names = names.iter();
    names.map(|name| object(Kind::Service, name, "x")).collect()
}

fn names(store: &Store) -> Vec<String> {
    store
        .objects()
        .keys()
        .map(|id| id.name.to_string())
        .collect()
}

#[test]
fn an_empty_list_is_believed_at_the_second_look() {
    let start = Instant::now();
    let mut store = Store::default();
    store.serves(&[Kind::Service].into());
    assert!(!store.complete());
    let listed = store.listed(Kind::Service, services(&["a", "b"]), start);
    assert_eq!(listed, Belief::Whole);
    assert!(store.complete());

    let restarted = start + Duration::from_secs(60);
    let doubt = store.listed(Kind::Service, Vec::new(), restarted);
    assert_eq!(doubt, Belief::AskAgain(SECOND_LOOK));
    assert_eq!(names(&store), ["a", "b"]);
    let early = restarted + Duration::from_secs(2);
    let doubt = store.listed(Kind::Service, Vec::new(), early);
    assert_eq!(doubt, Belief::AskAgain(Duration::from_secs(3)));
    let late = restarted + SECOND_LOOK;
    assert_eq!(store.listed(Kind::Service, Vec::new(), late), Belief::Whole);
    assert!(names(&store).is_empty());
}

#[test]
fn a_list_that_recovers_leaves_no_doubt_behind() {
    let start = Instant::now();
    let mut store = Store::kept(services(&["a", "b", "c"]));
    let doubt = store.listed(Kind::Service, services(&["c", "d"]), start);
    assert_eq!(doubt, Belief::AskAgain(SECOND_LOOK));
    // What the list has is taken at once.
    assert_eq!(names(&store), ["a", "b", "c", "d"]);
    let whole = services(&["a", "b", "c", "d"]);
    let again = store.listed(Kind::Service, whole, start + SECOND_LOOK);
    assert_eq!(again, Belief::Whole);
    assert_eq!(names(&store), ["a", "b", "c", "d"]);
    // The next doubt waits its own time.
    let later = start + 10 * SECOND_LOOK;
    let doubt = store.listed(Kind::Service, services(&["a"]), later);
    assert_eq!(doubt, Belief::AskAgain(SECOND_LOOK));
}

#[test]
fn a_first_list_in_doubt_is_waited_for_and_not_for_ever() {
    let start = Instant::now();
    let mut store = Store::kept(services(&["a", "b", "c"]));
    store.serves(&[Kind::Service].into());
    assert_eq!(store.doubts_until(start), None);
    store.listed(Kind::Service, services(&["d"]), start);
    let until = store.doubts_until(start).expect("it is in doubt");
    assert!(until > start + SECOND_LOOK);
    assert_eq!(store.doubts_until(until), None);
    // One that cannot be asked again is not waited for.
    store.failed(Kind::Service, silence("refused"), start);
    assert_eq!(store.doubts_until(start), None);
    let later = start + SECOND_LOOK;
    store.listed(Kind::Service, services(&["d"]), later);
    assert_eq!(store.doubts_until(later), None);
    assert!(store.complete());
    // What is served by then is waited for no more.
    store.listed(Kind::Service, Vec::new(), later);
    assert_eq!(store.doubts_until(later), None);
}

#[test]
fn a_list_that_lacks_a_few_is_believed() {
    let mut store = Store::kept(services(&["a", "b", "c", "d"]));
    let list = services(&["a", "b"]);
    let listed = store.listed(Kind::Service, list, Instant::now());
    assert_eq!(listed, Belief::Whole);
    assert_eq!(names(&store), ["a", "b"]);
}

#[test]
fn other_kinds_are_left_alone() {
    let mut store = Store::kept(services(&["a"]));
    store.applied(object(Kind::Secret, "s", "x"));
    store.applied(object(Kind::Pod, "p", "x"));
    let now = Instant::now();
    store.listed(Kind::Service, Vec::new(), now);
    store.listed(Kind::Service, Vec::new(), now + SECOND_LOOK);
    assert_eq!(names(&store), ["p", "s"]);
}

#[test]
fn a_deletion_that_is_told_needs_no_second_look() {
    let mut store = Store::kept(services(&["a"]));
    store.deleted(&services(&["a"])[0].id, &"a".into());
    assert!(names(&store).is_empty());
    // A second time it is no news.
    let counts = store.counts();
    store.deleted(&services(&["a"])[0].id, &"a".into());
    assert_eq!(store.counts(), counts);
}

#[test]
fn a_deletion_that_is_told_late_is_not_one_of_the_object_with_the_name_now() {
    let mut store = Store::kept(services(&["a"]));
    let mut reborn = object(Kind::Service, "a", "x");
    reborn.uid = "other".into();
    store.applied(reborn);
    store.deleted(&services(&["a"])[0].id, &"a".into());
    assert_eq!(names(&store), ["a"]);
    store.deleted(&services(&["a"])[0].id, &"other".into());
    assert!(names(&store).is_empty());
}

#[test]
fn what_was_kept_of_a_kind_that_is_not_served_goes_at_the_second_look() {
    let now = Instant::now();
    let mut store = Store::kept(services(&["a"]));
    store.applied(object(Kind::Secret, "s", "x"));
    let served = [Kind::Secret].into();
    store.serves(&served);
    assert_eq!(store.unserved(&served, now), Some(SECOND_LOOK));
    store.listed(Kind::Secret, vec![object(Kind::Secret, "s", "x")], now);
    assert!(!store.complete());
    assert_eq!(names(&store), ["a", "s"]);
    assert_eq!(store.unserved(&served, now + SECOND_LOOK), None);
    assert!(store.complete());
    assert_eq!(names(&store), ["s"]);
    // One that is served by then keeps what its list has.
    let mut store = Store::kept(services(&["a"]));
    store.serves(&served);
    assert_eq!(store.unserved(&served, now), Some(SECOND_LOOK));
    let served = [Kind::Secret, Kind::Service].into();
    assert_eq!(store.unserved(&served, now + SECOND_LOOK), None);
    let listed = store.listed(Kind::Service, services(&["a"]), now + SECOND_LOOK);
    assert_eq!(
        (listed, names(&store)),
        (Belief::Whole, vec!["a".to_owned()])
    );
}

#[test]
fn duplicates_and_changes_of_the_status_are_no_changes_of_documents() {
    let mut store = Store::kept(services(&["a"]));
    assert_eq!(store.counts(), (0, 0));
    store.applied(object(Kind::Service, "a", "x"));
    assert_eq!(store.counts(), (0, 0));
    let mut answered = object(Kind::Service, "a", "x");
    answered.status = Some(br#"{"parents":[]}"#.as_slice().into());
    store.applied(answered);
    assert_eq!(store.counts(), (0, 1));
    store.applied(object(Kind::Service, "a", "y"));
    assert_eq!(store.counts(), (1, 2));
    // The same name, but another object.
    let mut reborn = object(Kind::Service, "a", "y");
    reborn.uid = "other".into();
    store.applied(reborn);
    assert_eq!(store.counts(), (2, 3));
}

#[test]
fn a_kind_that_disappears_takes_its_objects_along_at_the_second_look() {
    let now = Instant::now();
    let mut store = Store::kept(services(&["a"]));
    store.serves(&[Kind::Service].into());
    assert!(matches!(
        store.gone(Kind::Service, now),
        Belief::AskAgain(_)
    ));
    assert!(!store.complete());
    let later = now + SECOND_LOOK;
    assert_eq!(store.gone(Kind::Service, later), Belief::Whole);
    assert!(store.complete());
    assert!(names(&store).is_empty());
}

#[test]
fn a_kind_of_which_no_version_is_read_keeps_what_is_known_of_it() {
    let now = Instant::now();
    let mut store = Store::kept(services(&["a"]));
    store.applied(object(Kind::Cell, "c", "x"));
    store.serves(&[Kind::Service, Kind::Cell].into());
    store.listed(Kind::Service, services(&["a"]), now);
    store.listed(Kind::Cell, vec![object(Kind::Cell, "c", "x")], now);
    assert!(store.complete());
    // The definition goes on with another version.
    let kinds = [Kind::Service, Kind::Cell].into();
    assert!(store.unreadable(Kind::Cell, "v1", now));
    assert!(!store.unreadable(Kind::Cell, "v1", now));
    for later in [now, now + SECOND_LOOK] {
        assert_eq!(store.unserved(&kinds, later), None);
    }
    assert_eq!(names(&store), ["a", "c"]);
    assert!(store.complete());
    let silences = store.silences(now + SECOND_LOOK);
    assert_eq!(silences.len(), 1);
    assert_eq!(
        (silences[0].kind, silences[0].lasts),
        (Kind::Cell, SECOND_LOOK)
    );
    assert!(
        silences[0].error.contains("v1alpha1"),
        "{}",
        silences[0].error
    );
    // An agent that starts now goes by what was kept.
    let mut store = Store::kept(vec![object(Kind::Cell, "c", "x")]);
    store.serves(&BTreeSet::new());
    assert!(store.unreadable(Kind::Cell, "v1", now));
    assert!(store.complete());
    assert_eq!(names(&store), ["c"]);
}

#[test]
fn nothing_begins_without_what_restricts() {
    let now = Instant::now();
    let mut store = Store::default();
    store.serves(&[Kind::Service].into());
    store.listed(Kind::Service, services(&["a"]), now);
    // Nobody misses routes that nobody here could read.
    assert!(!store.unreadable(Kind::TlsRoute, "v1alpha2", now));
    assert!(store.complete());
    for kind in [
        Kind::BackendTlsPolicy,
        Kind::ClientTrafficPolicy,
        Kind::NetworkPolicy,
    ] {
        assert!(store.complete());
        assert!(store.unreadable(kind, "v2", now));
        assert!(!store.complete());
        store.gone(kind, now);
    }
    assert!(store.unreadable(Kind::NetworkPolicy, "v2", now));
    // It is gone, and had no objects.
    assert_eq!(store.unserved(&[Kind::Service].into(), now), None);
    assert!(store.complete() && store.silences(now).is_empty());
}

#[test]
fn silence_counts_from_its_first_failure_and_ends_with_a_word() {
    let start = Instant::now();
    let hour = Duration::from_secs(3600);
    let mut store = Store::default();
    store.serves(&[Kind::Pod].into());
    assert!(store.failed(Kind::Pod, silence("connection refused"), start));
    assert!(!store.failed(Kind::Pod, silence("timed out"), start + hour / 2));
    let silences = store.silences(start + hour);
    assert_eq!(silences.len(), 1);
    assert_eq!(silences[0].lasts, hour);
    assert_eq!(silences[0].error, "timed out");
    store.heard(Kind::Pod);
    assert!(store.silences(start + hour).is_empty());
    assert!(store.unreachable(silence("refused"), start));
    let (lasts, _) = store.unreachable_for(start + hour).expect("unreachable");
    assert_eq!(lasts, hour);
    store.serves(&[Kind::Pod].into());
    assert_eq!(store.unreachable_for(start + hour), None);
}

#[test]
fn neighbours_have_what_they_say_alike_in_one_place() {
    let route = |name: &str, status: &str| Object {
        status: Some(status.as_bytes().into()),
        ..object(Kind::HttpRoute, name, "x")
    };
    let alike = |store: &Store| {
        let objects = store.objects();
        let texts = objects.values().map(|object| {
            let status = object.status.clone().expect("it has one");
            (Arc::clone(&object.id.namespace), status)
        });
        let texts: Vec<_> = texts.collect();
        texts.windows(2).all(|pair| {
            let [(own, status), (other, beside)] = pair else {
                unreachable!("windows are of two")
            };
            Arc::ptr_eq(own, other) && status.is(beside)
        })
    };
    let mut store = Store::default();
    for name in ["b", "c", "a"] {
        store.applied(route(name, "old"));
    }
    for name in ["a", "b", "c"] {
        store.applied(route(name, "new"));
    }
    assert!(alike(&store));
    let saved = ["a", "b"].map(|name| route(name, "kept"));
    assert!(alike(&Store::kept(saved.into())));
    store.applied(route("b", "other"));
    let status = |name: &str| {
        let objects = store.objects();
        let mut objects = objects.values();
        objects
            .find(|one| &*one.id.name == name)
            .and_then(|one| one.status.clone())
    };
    assert_eq!(status("a"), Some(b"new".as_slice().into()));
    assert_eq!(status("b"), Some(b"other".as_slice().into()));
}

#[test]
fn who_cannot_be_heard_is_not_led_to_where_it_was() {
    const KINDS: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];
    let own = || {
        let document = r#"{"spec":{"clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1","fd00::1"]}}"#;
        let mut own = object(Kind::Service, "kubernetes", document);
        own.id.namespace = "default".into();
        own
    };
    let start = Instant::now();
    let later = start + Duration::from_secs(60);
    let list = |store: &mut Store| {
        store.serves(&KINDS.into());
        store.listed(Kind::Service, vec![own()], start);
        store.listed(Kind::EndpointSlice, Vec::new(), start);
    };
    let mut store = Store::default();
    store.reached_at("fd00::1".parse().ok());
    list(&mut store);
    assert_eq!(store.beware(later), None);
    store.failed(Kind::EndpointSlice, silence("timed out"), start);
    let almost = later - Duration::from_secs(1);
    store.failed(Kind::EndpointSlice, silence("timed out"), almost);
    assert_eq!(store.beware(almost), None);
    let (documents, _) = store.counts();
    assert_eq!(store.beware(later), Some(true));
    assert_eq!(store.beware(later), None);
    assert!(names(&store).is_empty() && store.counts().0 > documents);
    // Perhaps nobody else leads there, and it is where it was.
    assert_eq!(store.beware(later + Duration::from_secs(60)), Some(false));
    assert_eq!(store.beware(later + Duration::from_secs(120)), Some(true));
    // It is asked what it serves before it tells where endpoints are.
    store.serves(&KINDS.into());
    assert_eq!(store.beware(later), None);
    store.heard(Kind::EndpointSlice);
    assert_eq!(store.beware(later), Some(false));
    assert_eq!(names(&store), ["kubernetes"]);
    // One that refuses is where it was.
    store.failed(Kind::EndpointSlice, silence("timed out"), start);
    let refusal = Unheard::refusal("forbidden".to_owned());
    store.failed(Kind::EndpointSlice, refusal.clone(), start);
    assert_eq!(store.beware(later), None);
    // What was kept may be old; who is only slow to list is where it was.
    let mut store = Store::kept(vec![own()]);
    store.reached_at("10.96.0.1".parse().ok());
    assert_eq!(store.beware(start), None);
    store.unreachable(refusal, start);
    assert_eq!(store.beware(start), None);
    store.unreachable(silence("timed out"), start);
    assert_eq!(store.beware(start), Some(true));
    assert!(store.is_astray());
    assert_eq!(store.beware(later), Some(false));
    assert_eq!(store.beware(start), Some(true));
    list(&mut store);
    assert_eq!(store.beware(start), Some(false));
    // Who reaches it elsewhere needs nobody to lead there.
    let mut store = Store::kept(vec![own()]);
    store.reached_at("192.0.2.7".parse().ok());
    assert_eq!(store.beware(later), None);
    assert_eq!(names(&store), ["kubernetes"]);
}
