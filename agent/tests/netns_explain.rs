//! `explain` by the real program, against the real kernel. Needs root; fails without it.

#[path = "netns/binary.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod binary;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;

use aya::maps::{HashMap, LpmTrie, Map, MapData};
use binary::{Agent, document, err, out, wait};
use serde_json::Value;
use world::{SURELY, World, echo_udp, inside, tcp};

/// Pod 1 is shop/web, pod 2 shop/orders, pod 3 bank/ledger.
const SHOP: &str = r#"
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
      endpoints: [{ name: site, type: TCP, port: 3000 }]
      connections:
        - { component: orders, endpoint: feed }
        - { component: orders, endpoint: bus }
    - name: orders
      workloads: { addresses: ["10.77.0.2", "fd77::2"] }
      endpoints:
        - { name: feed, type: TCP, port: 7000 }
        - { name: bus, type: UDP, port: 7001 }
  egress:
    south:
      - { name: db, from: [web], cidrs: ["203.0.113.0/24"], port: 5432, protocol: TCP }
      - { name: pay, from: [web], hosts: ["api.pay.test"], port: 443, protocol: TLS }
"#;
const BANK: &str = r#"
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: bank }
spec:
  organization: acme
  project: bank
  environment: prod
  components:
    - name: ledger
      workloads: { addresses: ["10.77.0.3", "fd77::3"] }
      endpoints: [{ name: books, type: TCP, port: 8080 }]
"#;

fn start(world: &World) -> Agent<'_> {
    let agent = Agent::start(world, &[("shop.yaml", SHOP), ("bank.yaml", BANK)]);
    wait("the pods", || {
        let status = agent.status();
        let enforced = status["pods"]
            .as_array()?
            .iter()
            .filter(|pod| pod["enforced"] == true)
            .count();
        (enforced == 3).then_some(())
    });
    agent
}

fn explain(agent: &Agent<'_>, words: &[&str]) -> Value {
    let output = agent.command(&[&["explain", "--json"], words].concat());
    assert!(output.status.success(), "{words:?}: {}", err(&output));
    serde_json::from_str(&out(&output)).expect("JSON")
}

/// Verdict, and reason and direction of each gate.
fn says(answer: &Value) -> (String, Vec<(String, String, String)>) {
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    let gates = answer["gates"].as_array().expect("gates");
    (
        word(&answer["verdict"]),
        gates
            .iter()
            .map(|gate| {
                (
                    word(&gate["gate"]),
                    word(&gate["reason"]),
                    word(&gate["direction"]),
                )
            })
            .collect(),
    )
}

fn expect(answer: &Value, verdict: &str, gates: &[(&str, &str, &str)]) {
    let gates = gates
        .iter()
        .map(|(gate, reason, path)| (gate.to_string(), reason.to_string(), path.to_string()))
        .collect();
    assert_eq!(says(answer), (verdict.to_owned(), gates), "{answer:#}");
}

/// Packets that were dropped because nothing declares them.
fn undeclared(status: &Value) -> u64 {
    let drops = status["drops"].as_array().expect("drops");
    drops
        .iter()
        .filter(|drop| drop["reason"] == "not_declared")
        .filter_map(|drop| drop["packets"].as_u64())
        .sum()
}

/// Keys of identities; endpoints.
type Contents = (Vec<[u8; 20]>, Vec<([u8; 8], [u8; 28])>);

/// The keys of the maps that a generation is written to, and the values that are its own.
fn contents(maps: &Path) -> Contents {
    let open = |name: &str| MapData::from_pin(maps.join(name)).expect("a pinned map");
    let identities: LpmTrie<_, [u8; 16], [u8; 32]> =
        LpmTrie::try_from(Map::LpmTrie(open("identities"))).expect("a trie");
    let mut networks: Vec<_> = identities
        .keys()
        .map(|key| {
            let key = key.expect("a key");
            let mut bytes = [0; 20];
            bytes[..4].copy_from_slice(&key.prefix_len().to_be_bytes());
            bytes[4..].copy_from_slice(&key.data());
            bytes
        })
        .collect();
    networks.sort_unstable();
    let endpoints: HashMap<_, [u8; 8], [u8; 28]> =
        HashMap::try_from(Map::HashMap(open("endpoints"))).expect("a hash");
    let mut pods: Vec<_> = endpoints
        .iter()
        .map(|entry| entry.expect("an entry"))
        .collect();
    pods.sort_unstable();
    (networks, pods)
}

#[test]
fn netns_explain_says_what_the_kernel_does() {
    let world = World::new(3);
    let agent = start(&world);
    let [web, orders, ledger] = [0, 1, 2].map(|n: usize| world.pods[n].clone());
    let (sender, receiver) = ("sender", "receiver");
    let both = [(sender, "policy", "intra"), (receiver, "policy", "intra")];
    for (words, verdict, gates) in [
        (
            &["--from", "shop/web", "--to", "shop/orders:7000/tcp"][..],
            "pass",
            &both[..],
        ),
        (
            &["--from", "web", "--to", "[fd77::2]:7001/udp"],
            "pass",
            &both,
        ),
        (
            &["--from", &web.ifname, "--to", "orders/icmp", "-6"],
            "pass",
            &both,
        ),
        (
            &["--from", "10.77.0.1", "--to", "10.77.0.2:7002"],
            "drop",
            &[
                (sender, "not_declared", "intra"),
                (receiver, "not_declared", "intra"),
            ],
        ),
        (
            &["--from", "shop/web", "--to", "acme/bank/prod/ledger:8080"],
            "drop",
            &[
                (sender, "not_declared", "east"),
                (receiver, "not_declared", "west"),
            ],
        ),
        (
            &["--from", "shop/web", "--to", "203.0.113.9:5432"],
            "pass",
            &[(sender, "policy", "south")],
        ),
        (
            &["--from", "shop/web", "--to", "198.51.100.5:443"],
            "steer",
            &[(sender, "policy", "south")],
        ),
        (
            &["--from", "shop/web", "--to", "203.0.113.9/gre"],
            "drop",
            &[(sender, "protocol", "south")],
        ),
        (
            &["--from", "198.51.100.1", "--to", "shop/web:3000"],
            "drop",
            &[(receiver, "not_declared", "north")],
        ),
        (
            &["--from", "north-gate", "--to", "shop/web:3000"],
            "drop",
            &[(receiver, "not_declared", "north")],
        ),
        (
            &["--from", "198.51.100.1", "--to", "203.0.113.9:5432"],
            "not_judged",
            &[],
        ),
    ] {
        let report = explain(&agent, words);
        assert_eq!(report["agent"], true);
        expect(&report["active"], verdict, gates);
    }

    let report = explain(
        &agent,
        &["--from", "shop/web", "--to", "shop/orders:7000/tcp"],
    );
    let gate = &report["active"]["gates"][0];
    assert_eq!(gate["component"], "acme/shop/prod/web");
    assert_eq!(gate["peer"], "acme/shop/prod/orders");
    assert_eq!(gate["interface"], web.ifname.as_str());
    assert_eq!(gate["opened"], "egress");
    let declared = gate["declared"].as_str().expect("a text");
    assert!(
        declared.contains("acme/shop/prod/web") && declared.contains("orders/feed"),
        "{declared}"
    );
    let document = gate["document"].as_str().expect("a text");
    assert!(
        document.starts_with("shop.yaml:") && document.ends_with("(Cell default/shop)"),
        "{document}"
    );
    assert_eq!(gate["field"], "spec.components[0].connections[0]");
    assert_eq!(report["active"]["gates"][1]["ifindex"], orders.ifindex);
    let status = agent.status();
    assert_eq!(
        report["active"]["generation"],
        status["config"]["generation"]
    );
    // Asking left no trace: nothing was counted or told.
    assert_eq!(undeclared(&status), 0, "{}", status["drops"]);

    // What people read.
    let output = agent.command(&["explain", "--from", "shop/web", "--to", "bank/ledger:8080"]);
    let text = out(&output);
    for part in [
        "acme/shop/prod/web (10.77.0.1 behind ",
        "drop not_declared · east · opened by this pod",
        "no rule decided",
        "(not reached; it would say)",
        "verdict     DROP at the sender's gate: not_declared",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(
        !tcp(&web.netns, SocketAddr::new(ledger.v4, 8080)),
        "and so it is"
    );
    assert!(undeclared(&agent.status()) > 0);
}

#[test]
fn netns_explain_knows_open_connections_frames_and_mistakes() {
    let world = World::new(3);
    let agent = start(&world);
    let [web, orders, _] = [0, 1, 2].map(|n: usize| world.pods[n].clone());

    echo_udp(&orders.netns, SocketAddr::new(orders.v4, 7001));
    let from = SocketAddr::new(web.v4, 41000);
    let to = SocketAddr::new(orders.v4, 7001);
    inside(&web.netns, move || {
        let socket = UdpSocket::bind(from).expect("the pod's own address");
        socket.set_read_timeout(Some(SURELY)).expect("a time");
        socket.send_to(b"x", to).expect("sent");
        socket.recv(&mut [0; 8]).expect("declared");
    });
    let words = ["--from", "shop/web", "--to", "shop/orders:7001/udp"];
    let open = explain(&agent, &[&words[..], &["--sport", "41000"]].concat());
    expect(
        &open["active"],
        "pass",
        &[
            ("sender", "established", "intra"),
            ("receiver", "established", "intra"),
        ],
    );
    let fresh = explain(&agent, &words);
    assert_eq!(fresh["active"]["gates"][0]["reason"], "policy");

    // A frame as somebody captured it: an ARP announcement of an address that is not the pod's.
    let spoofed = "ffffffffffff 020000000002 0806 0001080006040001 020000000002 0a4d0063 000000000000 0a4d0063";
    let frame = explain(&agent, &["--interface", &web.ifname, "--frame", spoofed]);
    expect(
        &frame["active"],
        "drop",
        &[("sender", "arp_spoofed", "none")],
    );
    // The same from a hardware address that is not the pod's.
    let foreign = spoofed.replacen("020000000002 0806", "020000000009 0806", 1);
    let frame = explain(&agent, &["--from", "shop/web", "--frame", &foreign]);
    expect(
        &frame["active"],
        "drop",
        &[("sender", "mac_spoofed", "none")],
    );
    // UDP from orders' port to web, as the receiving pod's gate sees it from a stranger and from the router.
    let udp =
        "020000000002 020000000001 0800 4500001c00000000401100000a4d0063 0a4d0001 1b591b5800080000";
    for (router, reason) in [
        (&[][..], "not_declared"),
        (&["--router", "west-gate"], "not_declared"),
    ] {
        let words = [
            &[
                "--interface",
                web.ifname.as_str(),
                "--received",
                "--frame",
                udp,
            ],
            router,
        ]
        .concat();
        let frame = explain(&agent, &words);
        let gate = &frame["active"]["gates"][0];
        assert_eq!(
            (&gate["gate"], &gate["reason"]),
            (&"receiver".into(), &reason.into())
        );
        let peer = if router.is_empty() {
            "world"
        } else {
            "west-gate"
        };
        assert_eq!(gate["peer"], peer);
    }

    for (words, part) in [
        (
            &["--from", "shop/nobody", "--to", "shop/orders:7000"][..],
            "nothing is called `shop/nobody`; there are the components acme/bank/prod/ledger",
        ),
        (
            &["--from", "acme/shop/prod", "--to", "shop/orders:7000"],
            "is a cell; name one of its components: acme/shop/prod/orders",
        ),
        (
            &["--from", "10.77.0.1", "--to", "[fd77::2]:7000"],
            "no address of the same IP version",
        ),
        (
            &["--from", "shop/web", "--to", "shop/orders"],
            "neither port nor protocol",
        ),
        (
            &["--interface", "lo", "--frame", spoofed],
            "nothing is called `lo`",
        ),
        (
            &["--from", "shop/web", "--frame", "0102"],
            "begins with an Ethernet header",
        ),
    ] {
        let output = agent.command(&[&["explain"], words].concat());
        assert!(!output.status.success(), "{words:?}");
        assert!(err(&output).contains(part), "{words:?}: {}", err(&output));
    }
}

#[test]
fn netns_explain_tries_documents_and_takes_them_back() {
    let world = World::new(3);
    let agent = start(&world);
    let bpf = world.folder.join("bpf");
    let maps = world.maps();
    let contents = || contents(&maps);
    let before = (agent.status()["config"].clone(), contents());

    // The next documents swap who may call whom.
    let next = SHOP.replace("endpoint: feed", "endpoint: bus").replacen(
        "        - { component: orders, endpoint: bus }\n",
        "",
        1,
    );
    document(&world, "next", "shop.yaml", &next);
    document(&world, "next", "bank.yaml", BANK);
    let folder = world.folder.join("next").display().to_string();
    for _ in 0..3 {
        let report = explain(
            &agent,
            &[
                "--from",
                "shop/web",
                "--to",
                "shop/orders:7000",
                "--config",
                &folder,
            ],
        );
        assert_eq!(report["active"]["verdict"], "pass");
        let shadow = &report["next"];
        expect(
            shadow,
            "drop",
            &[
                ("sender", "not_declared", "intra"),
                ("receiver", "not_declared", "intra"),
            ],
        );
        assert_eq!(shadow["active"], false);
        assert_eq!(
            shadow["generation"].as_u64(),
            report["active"]["generation"].as_u64().map(|n| n + 1)
        );
        assert_eq!(shadow["gates"][0]["peer"], "acme/shop/prod/orders");
    }
    let output = agent.command(&[
        "explain",
        "--from",
        "shop/web",
        "--to",
        "shop/orders:7000",
        "--config",
        &folder,
    ]);
    assert!(
        out(&output).contains("difference  another verdict: pass now, drop then"),
        "{}{}",
        out(&output),
        err(&output)
    );
    assert_eq!(
        (agent.status()["config"].clone(), contents()),
        before,
        "nothing of it stays"
    );

    // Documents for a pod that is nobody's yet: it gets no gates by being asked about.
    let stray = world.pods[2].clone();
    let bank = BANK
        .replace("10.77.0.3", "10.77.0.33")
        .replace("fd77::3", "fd77::33");
    document(&world, "config", "bank.yaml", &bank);
    wait("the pod to be nobody's", || {
        (!bpf
            .join(format!("links/cell_egress_{}", stray.ifindex))
            .exists())
        .then_some(())
    });
    let report = explain(
        &agent,
        &[
            "--from",
            &stray.ifname,
            "--to",
            "198.51.100.1:80",
            "--config",
            &folder,
        ],
    );
    expect(&report["active"], "not_judged", &[]);
    expect(
        &report["next"],
        "drop",
        &[("sender", "not_declared", "south")],
    );
    assert!(
        !bpf.join(format!("links/cell_egress_{}", stray.ifindex))
            .exists()
    );

    // Mistakes are told with file and field, and a refused change of the folder is told too.
    document(
        &world,
        "next",
        "shop.yaml",
        &next.replace("intra: declared", "intra: perhaps"),
    );
    let output = agent.command(&[
        "explain",
        "--from",
        "shop/web",
        "--to",
        "shop/orders:7000",
        "--config",
        &folder,
    ]);
    assert!(!output.status.success());
    let said = err(&output);
    assert!(
        said.contains("shop.yaml:") && said.contains("spec.intra"),
        "{said}"
    );
    document(
        &world,
        "config",
        "shop.yaml",
        &next.replace("intra: declared", "intra: perhaps"),
    );
    wait("the refusal", || {
        let report = explain(&agent, &["--from", "shop/web", "--to", "shop/orders:7000"]);
        report["waiting"][0]
            .as_str()
            .map(|text| assert!(text.contains("spec.intra"), "{text}"))
    });

    // And what was tried can still become active.
    document(&world, "config", "shop.yaml", &next);
    wait("the next generation", || {
        let report = explain(&agent, &["--from", "shop/web", "--to", "shop/orders:7000"]);
        (report["active"]["verdict"] == "drop").then_some(())
    });
}

#[test]
fn netns_explain_needs_no_agent_for_what_the_pins_tell() {
    let world = World::new(3);
    let mut agent = start(&world);
    agent.kill();
    let bpffs = world.folder.join("bpf").display().to_string();
    let output = agent.command(&[
        "explain",
        "--json",
        "--from",
        "10.77.0.1",
        "--to",
        "10.77.0.2:7000",
        "--bpffs",
        &bpffs,
    ]);
    assert!(output.status.success(), "{}", err(&output));
    let report: Value = serde_json::from_str(&out(&output)).expect("JSON");
    assert_eq!(report["agent"], false);
    expect(
        &report["active"],
        "pass",
        &[
            ("sender", "policy", "intra"),
            ("receiver", "policy", "intra"),
        ],
    );
    let gate = &report["active"]["gates"][0];
    assert_eq!(gate["interface"], world.pods[0].ifname.as_str());
    assert_eq!(gate["declared"], "");
    assert!(gate["rule"].as_u64().is_some_and(|rule| rule > 0));
    assert!(
        gate["component"]
            .as_str()
            .is_some_and(|name| name.starts_with("component:"))
    );

    let output = agent.command(&[
        "explain",
        "--from",
        &world.pods[0].ifname,
        "--to",
        "10.77.0.3/icmp",
        "--bpffs",
        &bpffs,
    ]);
    assert!(
        out(&output).contains("no agent answers: the kernel judges without it"),
        "{}{}",
        out(&output),
        err(&output)
    );
    for (words, part) in [
        (
            &[
                "--from",
                "shop/web",
                "--to",
                "10.77.0.2:7000",
                "--bpffs",
                &bpffs,
            ][..],
            "without an agent there are only addresses",
        ),
        (
            &[
                "--from",
                "10.77.0.1",
                "--to",
                "10.77.0.2:1",
                "--bpffs",
                &bpffs,
                "--config",
                "x",
            ],
            "only an agent can try documents",
        ),
        (
            &[
                "--from",
                "10.77.0.1",
                "--to",
                "10.77.0.2:1",
                "--bpffs",
                "/run/nothing",
            ],
            "nothing that answers is pinned in /run/nothing",
        ),
    ] {
        let output = agent.command(&[&["explain"], words].concat());
        assert!(!output.status.success(), "{words:?}");
        assert!(err(&output).contains(part), "{words:?}: {}", err(&output));
    }
}
