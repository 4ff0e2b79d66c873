//! What somebody changes behind the agent's back is found and put right. Needs root; fails without it.

#[path = "netns/binary.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod binary;
#[path = "netns/foreign.rs"]
#[allow(dead_code, reason = "each test binary uses its part of what others do")]
mod foreign;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::Instant;

use agent_common::{Action, Direction, Identity, Ports, Rule, RuleKey, SocketKey};
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, lpm_trie::Key};
use binary::{Agent, out, wait};
use cardinal_agent::datapath::{
    Backend, Datapath, GateHook, Hold, Network, Owner, Service, ServiceAddress, TableState,
};
use world::{World, chain, echo_tcp, inside, tcp};

const TCP: u8 = 6;

fn open(maps: &Path, name: &str) -> MapData {
    MapData::from_pin(maps.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

type Hash<const K: usize, const V: usize> = HashMap<MapData, [u8; K], [u8; V]>;

fn hash<const K: usize, const V: usize>(maps: &Path, name: &str) -> Hash<K, V> {
    HashMap::try_from(Map::HashMap(open(maps, name)))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn entries<const K: usize, const V: usize>(map: &Hash<K, V>) -> BTreeMap<[u8; K], [u8; V]> {
    map.iter()
        .collect::<Result<_, _>>()
        .expect("a map can be read")
}

/// Removes an entry, changes one, adds one. Gives what was there.
fn spoil<const K: usize, const V: usize>(maps: &Path, name: &str) -> BTreeMap<[u8; K], [u8; V]> {
    let mut map = hash::<K, V>(maps, name);
    let before = entries(&map);
    let mut keys = before.iter();
    let (removed, _) = keys.next().expect("the table has two entries");
    let (changed, value) = keys.next().expect("the table has two entries");
    map.remove(removed).expect("removed");
    let mut value = *value;
    value[0] ^= 0xff;
    map.insert(changed, value, 0).expect("changed");
    map.insert([0xee; K], [0xee; V], 0).expect("added");
    before
}

fn look(world: &World, datapath: &Datapath, sockets: &[(SocketKey, i32)]) -> Vec<TableState> {
    let (handle, sockets) = (datapath.clone(), sockets.to_vec());
    let care = inside(&world.node, move || handle.look_after(&sockets, true));
    let failed: Vec<_> = care.failed.iter().map(|error| chain(error)).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    care.tables
}

/// Tables with entries that are not as written.
fn drifted(tables: &[TableState]) -> Vec<(&'static str, usize)> {
    tables
        .iter()
        .filter(|table| table.drifted > 0)
        .map(|table| {
            assert!(table.repaired, "{table:?}");
            (table.table, table.drifted)
        })
        .collect()
}

#[test]
fn netns_drift_of_every_table_is_found_and_put_right() {
    for hook in [GateHook::Auto, GateHook::Clsact] {
        let world = World::new(2);
        let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
        let datapath = world
            .try_open(hook)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        let mut tables = world.tables(1, &[10, 20]);
        for (of, peer, direction) in [
            (1, 2, Direction::Egress),
            (2, 1, Direction::Ingress),
            (1, 2, Direction::Ingress),
        ] {
            tables
                .policies
                .get_mut(&Identity::component(of))
                .expect("the component has a pod")
                .insert(
                    RuleKey::new(Identity::component(peer), 8080, TCP, direction),
                    Rule::new(Action::Pass, 7),
                );
        }
        // What is steered needs the policy route.
        tables
            .policies
            .get_mut(&Identity::component(1))
            .expect("the component has a pod")
            .insert(
                RuleKey::new(Identity::WORLD, 443, TCP, Direction::Egress),
                Rule::new(Action::Steer, 8),
            );
        for n in 1..=2 {
            let at = ServiceAddress {
                address: Ipv4Addr::new(10, 96, 0, n).into(),
                port: 80,
                protocol: TCP,
            };
            let backend = |port| Backend {
                address: b.v4,
                port,
                weight: 1,
            };
            let service = Service {
                backends: vec![backend(8080), backend(8081)],
                affinity: None,
            };
            tables.services.insert(at, service);
            tables.listeners.insert(at, Identity::WEST_GATE);
        }
        world.activate(&datapath, tables);
        let listener = inside(&world.node, || TcpListener::bind("127.0.0.1:0")).expect("a port");
        let socket = (SocketKey::TRANSPARENT_V4, listener.as_raw_fd());
        datapath
            .set_socket(socket.0, &listener)
            .expect("a listener is taken");
        let sockets = [socket];
        assert_eq!(drifted(&look(&world, &datapath, &sockets)), []);
        let names: Vec<_> = look(&world, &datapath, &sockets)
            .iter()
            .map(|table| table.table)
            .collect();
        assert_eq!(
            names,
            [
                "pins",
                "control",
                "identities",
                "ports",
                "backends",
                "choices",
                "services",
                "endpoints",
                "policies",
                "flows",
                "unassured",
                "fragments",
                "listeners",
                "sockets",
                "gates",
                "hooks",
                "policy_route"
            ]
        );
        let maps = world.maps();
        let found = |what: &str, expected: &[(&'static str, usize)]| {
            let tables = look(&world, &datapath, &sockets);
            assert_eq!(drifted(&tables), expected, "{hook:?}: {what}");
            let again = look(&world, &datapath, &sockets);
            assert_eq!(drifted(&again), [], "{hook:?}: {what}, put right");
        };

        // Hashes: one entry removed, one changed, one added.
        macro_rules! spoiled {
            ($name:literal, $key:literal, $value:literal) => {
                let before = spoil::<$key, $value>(&maps, $name);
                found($name, &[($name, 3)]);
                assert_eq!(entries(&hash::<$key, $value>(&maps, $name)), before, $name);
            };
        }
        spoiled!("endpoints", 8, 28);
        spoiled!("services", 20, 32);
        spoiled!("listeners", 24, 4);

        // What services lead to: entries of arrays that are in use.
        fn spoil_array<const V: usize>(maps: &Path, name: &str) {
            let mut array: Array<_, [u8; V]> =
                Array::try_from(Map::Array(open(maps, name))).expect("an array");
            let mut index = 0;
            while array.get(&index, 0).expect("an entry") == [0; V] {
                index += 1;
            }
            array.set(index, [0x77; V], 0).expect("changed");
        }
        spoil_array::<28>(&maps, "backends");
        found("backends", &[("backends", 1)]);
        spoil_array::<12>(&maps, "choices");
        found("choices", &[("choices", 1)]);

        let mut ports: Array<_, [u8; 16]> =
            Array::try_from(Map::Array(open(&maps, "ports"))).expect("an array");
        let (index, _) = Ports::place(80u16.to_be_bytes());
        ports.set(index, [0; 16], 0).expect("changed");
        found("ports", &[("ports", 1)]);

        // Identities: a wider prefix and a narrower one.
        let mut trie: LpmTrie<_, [u8; 16], [u8; 32]> =
            LpmTrie::try_from(Map::LpmTrie(open(&maps, "identities"))).expect("a trie");
        let host = |address: IpAddr| Key::new(128, agent_common::address_bytes(address));
        let stranger = trie.get(&host(b.v4), 0).expect("an entry");
        trie.remove(&host(a.v4)).expect("removed");
        trie.insert(
            &host("10.77.0.99".parse().expect("an address")),
            stranger,
            0,
        )
        .expect("added");
        trie.insert(&host(a.v6), stranger, 0).expect("changed");
        // What only a later generation would be told.
        let mut later = trie.get(&host(b.v6), 0).expect("an entry");
        later[..4].copy_from_slice(&2u32.to_ne_bytes());
        later[4..8].copy_from_slice(&3u32.to_ne_bytes());
        let current: [u8; 12] = later[8..20].try_into().expect("twelve bytes");
        later[20..32].copy_from_slice(&current);
        trie.insert(&host(b.v6), later, 0).expect("changed");
        found("identities", &[("identities", 4)]);

        // Rules: one changed inside its table; then the table itself replaced.
        let slots = || -> ArrayOfMaps<MapData> {
            ArrayOfMaps::try_from(Map::ArrayOfMaps(open(&maps, "policies"))).expect("a map of maps")
        };
        let endpoint = entries(&hash::<8, 28>(&maps, "endpoints"));
        let slot = |value: &[u8; 28], at: usize| {
            u32::from_ne_bytes(value[at..at + 4].try_into().expect("four bytes"))
        };
        let values: Vec<_> = endpoint.values().copied().collect();
        let inner = slots().get(&slot(&values[0], 8), 0).expect("a table");
        let mut rules: HashMap<_, [u8; 8], [u8; 8]> =
            HashMap::try_from(Map::HashMap(inner)).expect("a hash");
        let keys: Vec<_> = rules.keys().collect::<Result<_, _>>().expect("keys");
        let mut denied = rules.get(&keys[0], 0).expect("a rule");
        denied[0] = 0;
        rules.insert(keys[0], denied, 0).expect("changed");
        found("a rule", &[("policies", 1)]);
        let other = slots().get(&slot(&values[1], 8), 0).expect("a table");
        slots()
            .set(slot(&values[0], 8), &other, 0)
            .expect("replaced");
        found("a table of rules", &[("policies", keys.len())]);
        for name in ["flows", "unassured", "fragments"] {
            let mut tables: ArrayOfMaps<MapData> =
                ArrayOfMaps::try_from(Map::ArrayOfMaps(open(&maps, name))).expect("a map of maps");
            let other = tables.get(&slot(&values[1], 12), 0).expect("a table");
            tables
                .set(slot(&values[0], 12), &other, 0)
                .expect("replaced");
            found("a pod's table", &[(name, 1)]);
        }

        let mut control: Array<_, [u8; 24]> =
            Array::try_from(Map::Array(open(&maps, "control"))).expect("an array");
        control.set(0, [0; 24], 0).expect("changed");
        found("control", &[("control", 1)]);
        datapath
            .clear_socket(SocketKey::TRANSPARENT_V4)
            .expect("removed");
        found("sockets", &[("sockets", 1)]);
        assert_eq!(
            drifted(&look(&world, &datapath, &[])),
            [("sockets", 1)],
            "one too many"
        );
        found("sockets again", &[("sockets", 1)]);

        // Gates and hooks taken off, or with another's program in them.
        let links = world.folder.join("bpf/links");
        if datapath.facts().hook == "tcx" {
            foreign::detach_pinned(&links.join(format!("cell_egress_{}", a.ifindex)));
            fs::remove_file(links.join(format!("cell_ingress_{}", b.ifindex))).expect("unpinned");
            found("gates", &[("gates", 2)]);
        } else {
            world.on_node(&format!("tc filter del dev {} ingress", a.ifname));
            world.on_node(&format!("tc qdisc del dev {} clsact", b.ifname));
            found("gates", &[("gates", 3)]);
        }
        let hooks = fs::read_dir(&links).expect("links").flatten();
        for entry in hooks.filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("steer_connect4_") || name.starts_with("listen_")
        }) {
            foreign::detach_pinned(&entry.path());
        }
        found("hooks", &[("hooks", 2)]);
        world.on_node("ip rule del pref 101");
        world.on_node("ip -6 route flush table 3237");
        found("the policy route", &[("policy_route", 2)]);

        // Pins: one map, one program, and somebody's object in the place of another.
        fs::remove_file(maps.join("fragments")).expect("unpinned");
        fs::remove_file(maps.join("limits")).expect("unpinned");
        foreign::pin(&foreign::program(), &maps.join("limits"));
        fs::remove_file(world.folder.join("bpf/programs/explain_egress")).expect("unpinned");
        found("pins", &[("pins", 3)]);
        open(&maps, "fragments");
        open(&maps, "limits");

        // And all of it works.
        echo_tcp(&b.netns, SocketAddr::new(b.v4, 8080));
        assert!(tcp(&a.netns, SocketAddr::new(b.v4, 8080)), "{hook:?}");
        assert!(!tcp(&a.netns, SocketAddr::new(b.v4, 8081)), "{hook:?}");
    }
}

#[test]
fn netns_drift_does_not_bring_a_pod_back_whose_interface_went() {
    let world = World::new(2);
    let gone = world.pods[1].ifindex;
    let datapath = world.open();
    let handle = datapath.clone();
    let _watch =
        inside(&world.node, move || handle.watch_pods(Hold::New)).expect("pods are followed");
    world.activate(&datapath, world.tables(1, &[10, 20]));
    let pods = || entries(&hash::<8, 28>(&world.maps(), "endpoints"));
    assert_eq!(pods().len(), 2);
    world.remove_interface(1);
    wait("the pod to be forgotten", || {
        (pods().len() == 1).then_some(())
    });
    for _ in 0..2 {
        assert_eq!(drifted(&look(&world, &datapath, &[])), []);
        assert!(
            pods().keys().all(|key| key[4..] != gone.to_ne_bytes()),
            "its index may be another's by now"
        );
    }
    // What somebody else removes is put back beside it.
    let key = *pods().keys().next().expect("the other pod");
    hash::<8, 28>(&world.maps(), "endpoints")
        .remove(&key)
        .expect("removed");
    assert_eq!(drifted(&look(&world, &datapath, &[])), [("endpoints", 1)]);
    assert_eq!(pods().keys().collect::<Vec<_>>(), [&key]);
}

#[test]
fn netns_drift_is_looked_for_among_a_hundred_thousand_identities() {
    let world = World::new(1);
    let datapath = world.open();
    let mut tables = world.tables(1, &[10]);
    for number in 0..100_000u32 {
        tables.identities.insert(
            Network::host(Ipv4Addr::from(0x0b00_0000 + number).into()),
            Owner {
                identity: Identity::external(number % 1000 + 1),
                ifindex: 0,
                cell: 0,
            },
        );
    }
    world.activate(&datapath, tables);
    for round in ["first, with the wanted side hashed", "then"] {
        let start = Instant::now();
        assert_eq!(drifted(&look(&world, &datapath, &[])), []);
        println!("{round}: {:?}", start.elapsed());
    }
    let mut trie: LpmTrie<_, [u8; 16], [u8; 32]> =
        LpmTrie::try_from(Map::LpmTrie(open(&world.maps(), "identities"))).expect("a trie");
    let key = Key::new(
        128,
        agent_common::address_bytes(Ipv4Addr::new(11, 0, 99, 9).into()),
    );
    trie.remove(&key).expect("removed");
    let start = Instant::now();
    let tables = look(&world, &datapath, &[]);
    println!("with one to put right: {:?}", start.elapsed());
    assert_eq!(drifted(&tables), [("identities", 1)]);
    assert!(trie.get(&key, 0).is_ok());
    assert_eq!(drifted(&look(&world, &datapath, &[])), []);
}

const CELL: &str = r#"
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: shop }
spec:
  organization: acme
  project: shop
  environment: prod
  intra: declared
  components:
    - name: web
      workloads: { addresses: ["10.77.0.1", "fd77::1"] }
    - name: orders
      workloads: { addresses: ["10.77.0.2", "fd77::2"] }
"#;

#[test]
fn netns_drift_is_an_alarm_of_a_running_agent() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let agent = Agent::start(&world, &[("shop.yaml", CELL)]);
    let table = |name: &str| {
        let status = agent.status();
        let tables = status["datapath"]["tables"].as_array()?.clone();
        tables.into_iter().find(|table| table["table"] == name)
    };
    wait("the first look", || {
        table("gates").filter(|gates| gates["entries"] == 4)
    });
    let to = SocketAddr::new(b.v4, 8080);
    echo_tcp(&b.netns, to);
    assert!(!tcp(&a.netns, to), "nobody declares it");

    // All pins at once, as somebody does who cleans up: gates and hooks go with them.
    let bpf = world.folder.join("bpf");
    for folder in fs::read_dir(&bpf).expect("pins").flatten() {
        // The file system has files of its own.
        if folder.path().is_dir() {
            fs::remove_dir_all(folder.path()).expect("somebody removes them");
        }
    }
    let start = Instant::now();
    wait("the gates", || {
        (table("gates")?["repairs"].as_u64()? >= 4 && table("pins")?["repairs"].as_u64()? >= 16)
            .then_some(())
    });
    println!("noticed and put right after {:?}", start.elapsed());
    assert!(!tcp(&a.netns, to), "the gates are back");
    wait("everything to be in sync", || {
        let status = agent.status();
        let tables = status["datapath"]["tables"].as_array()?;
        tables
            .iter()
            .all(|table| table["drifted"] == 0)
            .then_some(())
    });
    let (_, metrics) = agent.ask("/metrics").expect("the agent answers");
    for part in [
        "cardinal_datapath_drift{table=\"gates\"} 0",
        "cardinal_datapath_repairs_total{table=\"gates\"} 4",
        "cardinal_datapath_repairs_total{table=\"identities\"} 0",
    ] {
        assert!(metrics.contains(part), "{part} is missing in\n{metrics}");
    }
    assert!(
        agent
            .log()
            .contains("the kernel does not hold what it was given"),
        "{}",
        agent.log()
    );
    let said = out(&agent.command(&["status"]));
    assert!(said.contains("gates in sync again, 4 put right"), "{said}");
}
