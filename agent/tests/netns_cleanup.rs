//! `cleanup` by the real program: all of ours goes, nothing of others. Needs root; fails without it.

#[path = "netns/binary.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod binary;
#[path = "netns/foreign.rs"]
#[allow(dead_code, reason = "each test binary uses its part of what others do")]
mod foreign;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::fs;
use std::net::SocketAddr;

use binary::{Agent, err, out, run, wait};
use cardinal_agent::datapath::GateHook;
use world::{World, echo_tcp, inside, tcp};

/// Two pods of one cell that may not speak to each other. What they say to the world is steered.
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
  egress:
    south: [{ name: pay, hosts: ["api.pay.test"], port: 443, protocol: TLS }]
"#;

fn cleanup(world: &World, more: &[&str]) -> (bool, String) {
    let path = |name: &str| world.folder.join(name).display().to_string();
    let (bpffs, state, admin) = (path("bpf"), path("state"), path("admin.sock"));
    let places = ["--bpffs", &bpffs, "--state", &state, "--admin", &admin];
    let words = [&["cleanup"], &places[..], more].concat();
    let output = run(world, &words);
    (output.status.success(), out(&output) + &err(&output))
}

#[test]
fn netns_cleanup_removes_what_an_agent_left_and_nothing_else() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let mut agent = Agent::start(&world, &[("shop.yaml", CELL)]);
    wait("the pods' gates", || {
        let status = agent.status();
        let pods = status["pods"].as_array()?;
        (pods.len() == 2 && pods.iter().all(|pod| pod["enforced"] == true)).then_some(())
    });
    let to = SocketAddr::new(b.v4, 8080);
    echo_tcp(&b.netns, to);

    // What others have: programs, pins in each of our folders, rules and routes that look like ours.
    let ifindex = a.ifindex;
    let others = inside(&world.node, move || foreign::lets_all_pass(ifindex));
    let bpf = world.folder.join("bpf");
    let maps = world.maps();
    let pins = [&bpf, &maps, &bpf.join("programs"), &bpf.join("links")]
        .map(|folder| folder.join("theirs"));
    for pin in &pins {
        foreign::pin(&foreign::program(), pin);
    }
    for line in [
        "ip rule add pref 101 fwmark 0x7/0xff table 3237",
        "ip rule add pref 102 fwmark 0xca510000/0xffff0000 table 77",
        "ip route add 203.0.113.0/24 dev lo table 3237",
        "ip -6 rule add pref 101 fwmark 0x7/0xff table 3237",
    ] {
        world.on_node(line);
    }

    let (good, said) = cleanup(&world, &["--yes"]);
    assert!(!good, "{said}");
    assert!(
        said.contains("nothing is removed under a running agent")
            && said.contains("another agent (process "),
        "{said}"
    );
    agent.kill();
    assert!(!tcp(&a.netns, to), "nobody declares it");

    let (good, said) = cleanup(&world, &[]);
    assert!(good, "{said}");
    for part in [
        &format!("found    gate cell_egress_{} at {}", a.ifindex, a.ifname),
        "found    hook listen_",
        "found    hook steer_connect4_",
        "found    IPv4 rule 101: mark 0xca510000/0xffff0000 to table 0xca5",
        "found    IPv6 local route of table 0xca5",
        &format!("found    pin {}", maps.join("identities").display()),
        &format!(
            "found    file {}",
            world.folder.join("state/agent.lock").display()
        ),
        "found    socket ",
        "nothing was removed",
    ] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    for pin in &pins {
        let line = format!("stays    {} is no agent's", pin.display());
        assert!(said.contains(&line), "{line} is missing in\n{said}");
    }
    assert!(!tcp(&a.netns, to), "it was only shown");

    let (good, said) = cleanup(&world, &["--yes"]);
    assert!(good, "{said}");
    assert!(
        said.contains(&format!("removed  gate cell_ingress_{}", b.ifindex))
            && !said.contains("FAILED"),
        "{said}"
    );
    assert!(tcp(&a.netns, to), "nothing is enforced any more");

    assert_eq!(foreign::attached_to(&others), a.ifindex);
    for pin in &pins {
        assert!(pin.exists(), "{}", pin.display());
    }
    let left = |folder: &std::path::Path| {
        let mut names: Vec<_> = fs::read_dir(folder)
            .expect("somebody's pin keeps the folder")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(left(&maps), ["theirs"]);
    assert_eq!(left(&bpf.join("links")), ["theirs"]);
    for gone in ["admin.sock", "state"] {
        assert!(!world.folder.join(gone).exists(), "{gone} is left");
    }
    let rules = world.on_node("ip rule");
    assert!(
        rules.contains("fwmark 0x7/0xff lookup 3237")
            && rules.contains("fwmark 0xca510000/0xffff0000 lookup 77")
            && !rules.contains("fwmark 0xca510000/0xffff0000 lookup 3237"),
        "{rules}"
    );
    assert!(world.on_node("ip -6 rule").contains("fwmark 0x7/0xff"));
    let routes = world.on_node("ip route show table 3237");
    assert!(
        routes.contains("203.0.113.0/24") && !routes.contains("local default"),
        "{routes}"
    );

    let (good, said) = cleanup(&world, &["--yes"]);
    assert!(good, "{said}");
    assert!(!said.contains("FAILED"), "{said}");
    for pin in &pins {
        fs::remove_file(pin).expect("the test's own pin");
    }
    let (good, said) = cleanup(&world, &["--yes"]);
    assert!(good, "{said}");
    let (good, said) = cleanup(&world, &["--yes"]);
    assert!(
        good && said.ends_with("nothing of an agent's is left on this node\n"),
        "{said}"
    );
}

#[test]
fn netns_cleanup_takes_filters_and_only_its_own_qdiscs() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    // Somebody's qdisc and filter are at the first pod before the agent comes.
    fs::create_dir_all(world.folder.join("theirs")).expect("the folder is ours");
    let datapath = world
        .try_open(GateHook::Clsact)
        .unwrap_or_else(|error| panic!("{}", world::chain(&error)));
    let theirs = world.folder.join("bpf/theirs");
    foreign::pin(&foreign::program(), &theirs);
    world.on_node(&format!("tc qdisc add dev {} clsact", a.ifname));
    world.on_node(&format!(
        "tc filter add dev {} ingress pref 4000 bpf da object-pinned {}",
        a.ifname,
        theirs.display()
    ));
    world.activate(&datapath, world.tables(1, &[10, 20]));
    drop(datapath);
    let to = SocketAddr::new(b.v4, 8080);
    echo_tcp(&b.netns, to);
    assert!(!tcp(&a.netns, to), "the gates stand");

    let (good, said) = cleanup(&world, &["--yes"]);
    assert!(good, "{said}");
    for part in [
        &format!("removed  filter of {}, egress of its pod", a.ifname),
        &format!("removed  filter of {}, ingress of its pod", b.ifname),
        &format!("removed  qdisc clsact of interface {}", b.ifindex),
        &format!("stays    a filter of {} is no agent's", a.ifname),
    ] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
    assert!(tcp(&a.netns, to), "nothing is enforced any more");
    let filters = world.on_node(&format!("tc filter show dev {} ingress", a.ifname));
    assert!(filters.contains("pref 4000 bpf"), "{filters}");
    assert!(!filters.contains("cell_egress"), "{filters}");
    let qdiscs = world.on_node("tc qdisc show");
    assert!(
        qdiscs.contains(&format!("clsact ffff: dev {}", a.ifname))
            && !qdiscs.contains(&format!("clsact ffff: dev {}", b.ifname)),
        "{qdiscs}"
    );
    let (good, said) = cleanup(&world, &["--yes"]);
    assert!(good && !said.contains("removed  filter"), "{said}");
}
