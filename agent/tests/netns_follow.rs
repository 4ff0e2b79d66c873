//! `flows` by the real program: what the kernel tells reaches the one who asked. Needs root; fails without it.

#[path = "netns/binary.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the harness")]
mod binary;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use binary::{Agent, PATIENCE, err, out, program, wait};
use serde_json::Value;
use world::{World, echo_tcp, inside, tcp};

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
      connections: [{ component: orders, endpoint: feed }]
    - name: orders
      workloads: { addresses: ["10.77.0.2", "fd77::2"] }
      endpoints: [{ name: feed, type: TCP, port: 7000 }]
"#;

/// A reader that stays; it ends with this value.
struct Follower {
    child: std::process::Child,
    lines: mpsc::Receiver<String>,
}

impl Follower {
    fn start(world: &World, agent: &Agent<'_>, words: &[&str]) -> Self {
        let admin = agent.admin().display().to_string();
        let words = [&["flows", "--follow", "--admin", &admin], words].concat();
        let mut child = program(world, &words)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (sender, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line that fits, and those before it.
    fn wait(&self, what: &str, fits: impl Fn(&str) -> bool) -> (String, Vec<String>) {
        let mut others = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if fits(&line) => return (line, others),
                Ok(line) => others.push(line),
                Err(error) => panic!("{what}: {error}; lines: {others:#?}"),
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.child.kill().expect("the reader is ours");
        self.child.wait().expect("the reader is ours");
    }
}

#[test]
fn netns_flows_show_what_the_kernel_does() {
    let world = World::new(2);
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    let agent = Agent::start(&world, &[("shop.yaml", CELL)]);
    wait("the pods' gates", || {
        let status = agent.status();
        let pods = status["pods"].as_array()?;
        (pods.len() == 2 && pods.iter().all(|pod| pod["enforced"] == true)).then_some(())
    });
    let all = Follower::start(&world, &agent, &["--json", "--cell", "acme/shop/prod"]);
    let drops = Follower::start(
        &world,
        &agent,
        &[
            "--verdict",
            "drop",
            "--reason",
            "not_declared",
            "--direction",
            "intra",
        ],
    );
    let (declared, undeclared) = (SocketAddr::new(b.v4, 7000), SocketAddr::new(b.v4, 7001));
    echo_tcp(&b.netns, declared);
    assert!(tcp(&a.netns, declared));
    assert!(!tcp(&a.netns, undeclared));

    let json = |line: &str| serde_json::from_str::<Value>(line).expect("a line is JSON");
    let (line, _) = all.wait("the new flow", |line| {
        let event = json(line);
        event["verdict"] == "pass" && event["dport"] == 7000
    });
    let event = json(&line);
    assert_eq!(event["reason"], "policy");
    assert_eq!(event["direction"], "intra");
    assert_eq!(event["cell"], "acme/shop/prod");
    assert_eq!(event["src"], a.v4.to_string());
    assert!(event["seq"].as_u64().is_some_and(|number| number > 0));
    let time = event["time"].as_str().expect("a time");
    assert!(time.len() >= 20 && time.ends_with('Z'), "{time}");
    assert!(event["rule"].to_string().contains("orders/feed"), "{event}");
    all.wait("the drop", |line| {
        let event = json(line);
        event["verdict"] == "drop" && event["dport"] == 7001
    });
    let (line, others) = drops.wait("the drop", |line| line.contains("10.77.0.2:7001"));
    assert!(
        line.contains("  drop  not_declared") && line.contains("acme/shop/prod"),
        "{line}"
    );
    assert!(
        others.iter().all(|line| !line.contains(":7000 ")),
        "only what was asked for: {others:#?}"
    );

    // A cell that causes more than it may is told about, once a second.
    let stranger = SocketAddr::new(b.v4, 9);
    inside(&a.netns, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("any address is free");
        for _ in 0..5000 {
            // A full queue is as good as a drop here.
            let _ = socket.send_to(b"x", stranger);
        }
    });
    drops.wait("what was not told", |line| {
        line.starts_with("! ") && line.contains("more than a cell may cause in a second")
    });

    // Without staying: the last of what is kept, filtered.
    let output = agent.command(&["flows", "--json", "--last", "3", "--verdict", "drop"]);
    assert!(output.status.success(), "{}", err(&output));
    let text = out(&output);
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().all(|line| json(line)["verdict"] == "drop"));
    for (words, part) in [
        (
            &["flows", "--verdict", "maybe"][..],
            "invalid value 'maybe'",
        ),
        (&["flows", "--reason", "maybe"], "invalid value 'maybe'"),
        (
            &["flows", "--cell", "shop"],
            "expected organization/project/environment",
        ),
    ] {
        let output = agent.command(words);
        assert_eq!(output.status.code(), Some(2), "{words:?}");
        assert!(err(&output).contains(part), "{words:?}: {}", err(&output));
    }

    // What the rules decided, with the field that made each.
    let rules = wait("the rule's count", || {
        let status = agent.status();
        let rules = status["rules"].as_array()?.clone();
        (rules.first()?["decisions"].as_u64()? > 0).then_some(rules)
    });
    assert!(
        rules[0]["rule"].to_string().contains("orders/feed"),
        "{rules:#?}"
    );
    // Both gates of the one connection.
    assert_eq!(rules[0]["decisions"], 2, "{rules:#?}");
    let (_, metrics) = agent.ask("/metrics").expect("the agent answers");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("cardinal_rule_connections_total{"))
        .expect("the rule's series");
    assert!(
        line.contains("orders/feed")
            && line.contains("document=\"shop.yaml")
            && line.contains("field=\"spec.components[0].connections[0]")
            && line.ends_with(" 2"),
        "{line}"
    );
}
