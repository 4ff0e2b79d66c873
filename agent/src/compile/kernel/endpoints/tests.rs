use snapshot::model::{Platform, ServiceEndpoint};

use super::Here;

/// An endpoint: `address`, then `~` if it ends, `@node`, `+zone` and `*node` of hints.
fn endpoint(text: &str) -> ServiceEndpoint {
    let mut one = ServiceEndpoint {
        address: "127.0.0.1".parse().expect("an address"),
        port: std::num::NonZeroU16::MIN,
        ending: false,
        node: None,
        zones: Vec::new(),
        nodes: Vec::new(),
    };
    for (number, word) in text.split_inclusive([' ']).enumerate() {
        let word = word.trim();
        match (number, word.split_at(1)) {
            (0, _) => one.address = word.parse().expect("an address"),
            (_, ("~", _)) => one.ending = true,
            (_, ("@", name)) => one.node = Some(name.into()),
            (_, ("+", name)) => one.zones.push(name.into()),
            (_, ("*", name)) => one.nodes.push(name.into()),
            _ => panic!("{text}"),
        }
    }
    one
}

fn chosen(here: &Here, all: &[&str], node_only: bool) -> Vec<String> {
    let all: Vec<_> = all.iter().map(|text| endpoint(text)).collect();
    let service = "10.96.0.1".parse().expect("an address");
    let chosen = here.choose(&all, &service, node_only);
    chosen.iter().map(|one| one.address.to_string()).collect()
}

fn here(node: Option<&str>, zone: Option<&str>) -> Here {
    Here {
        node: node.map(str::to_owned),
        zone: zone.map(str::to_owned),
    }
}

#[test]
fn the_ready_come_first_and_hints_count_if_everybody_has_one() {
    let n1 = here(Some("n1"), Some("a"));
    let rows: [(&str, &[&str], &[&str]); 9] = [
        (
            "all that are ready",
            &["10.0.0.1", "10.0.0.2"],
            &["10.0.0.1", "10.0.0.2"],
        ),
        (
            "of the address' family",
            &["10.0.0.1", "fd00::1"],
            &["10.0.0.1"],
        ),
        (
            "those that end last",
            &["10.0.0.1 ~", "10.0.0.2"],
            &["10.0.0.2"],
        ),
        (
            "if nobody else is there",
            &["10.0.0.1 ~", "10.0.0.2 ~"],
            &["10.0.0.1", "10.0.0.2"],
        ),
        (
            "of the zone",
            &["10.0.0.1 +a +b", "10.0.0.2 +b"],
            &["10.0.0.1"],
        ),
        (
            "one without a hint",
            &["10.0.0.1 +a", "10.0.0.2"],
            &["10.0.0.1", "10.0.0.2"],
        ),
        (
            "none for this zone",
            &["10.0.0.1 +c", "10.0.0.2 +b"],
            &["10.0.0.1", "10.0.0.2"],
        ),
        (
            "of the node before the zone",
            &["10.0.0.1 +a *n2", "10.0.0.2 +a *n1"],
            &["10.0.0.2"],
        ),
        (
            "hints of one that ends do not count",
            &["10.0.0.1 +a", "10.0.0.2 ~", "10.0.0.3 +b"],
            &["10.0.0.1"],
        ),
    ];
    for (what, all, expected) in rows {
        assert_eq!(chosen(&n1, all, false), expected, "{what}");
    }
    let nowhere = here(None, None);
    let all = ["10.0.0.1 +a *n1", "10.0.0.2 +b *n2"];
    assert_eq!(chosen(&nowhere, &all, false).len(), 2);
}

#[test]
fn a_local_policy_takes_the_node_s_own_or_none() {
    let n1 = here(Some("n1"), Some("a"));
    let rows: [(&[&str], &[&str]); 4] = [
        (
            &["10.0.0.1 @n1 +b", "10.0.0.2 @n2 +a", "10.0.0.3"],
            &["10.0.0.1"],
        ),
        (&["10.0.0.1 ~ @n1", "10.0.0.2 @n2"], &["10.0.0.1"]),
        (&["10.0.0.1 ~ @n1", "10.0.0.2 @n1"], &["10.0.0.2"]),
        (&["10.0.0.2 @n2"], &[]),
    ];
    for (all, expected) in rows {
        assert_eq!(chosen(&n1, all, true), expected, "{all:?}");
    }
    assert!(chosen(&here(None, None), &["10.0.0.1", "10.0.0.2 @n1"], true).is_empty());
}

#[test]
fn this_node_is_the_one_that_has_its_addresses() {
    let node = |name: &str, address: &str| snapshot::model::Node {
        name: name.into(),
        addresses: vec![address.parse().expect("an address")],
        zone: Some(format!("zone of {name}")),
        pod_networks: Vec::new(),
    };
    let platform = Platform {
        nodes: vec![node("n1", "192.0.2.1"), node("n2", "192.0.2.2")],
        ..Platform::default()
    };
    let address = |text: &str| [text.parse().expect("an address")];
    assert_eq!(
        Here::of(&platform, &address("192.0.2.2")),
        here(Some("n2"), Some("zone of n2"))
    );
    assert_eq!(Here::of(&platform, &address("192.0.2.3")), here(None, None));
}
