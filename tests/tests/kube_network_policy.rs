//! Network policies between real pods of two nodes, and beside a cell.

use std::{collections::BTreeMap, process::Command, time::Duration, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::{
    kube::{Setup, World, pods::ready},
    peer::{Outcome, Running},
    programs::Programs,
};

const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
/// How long a call waits for an answer: what is denied is not answered.
const CALL: &str = "1000";
/// Ports that every pod serves by TCP; UDP is on the first of them.
const PORTS: [u16; 5] = [8080, 9000, 9005, 9010, 9011];

type Labels = &'static [(&'static str, &'static str)];

/// Namespace, name, node, labels, and the port called `http`.
const PODS: [(&str, &str, &str, Labels, u16); 7] = [
    ("red", "client", "node-1", &[("app", "client")], 8080),
    ("red", "server", "node-1", &[("app", "server")], 8080),
    (
        "red",
        "far",
        "node-2",
        &[("app", "client"), ("tier", "far")],
        8080,
    ),
    ("blue", "client", "node-1", &[("app", "client")], 8080),
    ("blue", "server", "node-2", &[("app", "server")], 9000),
    ("shop", "site", "node-1", &[("app", "site")], 8080),
    ("shop", "orders", "node-2", &[("app", "orders")], 8080),
];

struct Pods<'a> {
    world: &'a World,
    peer: std::path::PathBuf,
    /// Addresses of both families by namespace and name.
    addresses: BTreeMap<String, [String; 2]>,
}

impl<'a> Pods<'a> {
    fn start(world: &'a World) -> Result<Self> {
        for namespace in ["red", "blue", "shop"] {
            let metadata = json!({ "name": namespace, "labels": { "team": namespace } });
            let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata });
            world.apply(&object.to_string())?;
        }
        for (namespace, name, node, labels, http) in PODS {
            let mut args = vec!["serve".to_owned(), "--name".into(), name.into()];
            for port in PORTS {
                args.extend(["--tcp".to_owned(), format!("[::]:{port}")]);
            }
            args.extend(["--udp".to_owned(), format!("[::]:{}", PORTS[0])]);
            let labels: BTreeMap<_, _> = labels.iter().copied().collect();
            world.apply(
                &json!({
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": { "namespace": namespace, "name": name, "labels": labels },
                    "spec": {
                        "nodeName": node,
                        "containers": [{
                            "name": "peer",
                            "image": "peer",
                            "args": args,
                            "ports": [{ "name": "http", "containerPort": http }],
                        }],
                    },
                })
                .to_string(),
            )?;
        }
        let mut addresses = BTreeMap::new();
        for (namespace, name, ..) in PODS {
            let what = ["pod", name, "--namespace", namespace];
            let pod = world.wait(WAIT, &what, ready)?;
            let address = |at: usize| {
                let ip = pod["status"]["podIPs"][at]["ip"].as_str();
                ip.map(str::to_owned).context("the pod has no address")
            };
            addresses.insert(format!("{namespace}/{name}"), [address(0)?, address(1)?]);
        }
        Ok(Self {
            world,
            peer: Programs::locate()?.peer,
            addresses,
        })
    }

    /// A program of a pod, or of a node.
    fn of(&self, from: &str) -> Command {
        if !from.contains('/') {
            return self.world.on_node(from, &self.peer);
        }
        let mut command = self.world.script("enter");
        command.args(["--pod", from]).arg(&self.peer);
        command
    }

    fn at(&self, to: &str, family: usize, port: &str) -> String {
        match &self.addresses[to][family] {
            v6 if v6.contains(':') => format!("[{v6}]:{port}"),
            v4 => format!("{v4}:{port}"),
        }
    }

    /// Whether a call is answered: `red/client tcp red/server 8080`; `tcp6` is the same over IPv6.
    fn answers(&self, call: &[&str]) -> Result<bool> {
        let [from, how, to, port] = call else {
            bail!("`{}` is no call", call.join(" "));
        };
        let (how, family) = match how.strip_suffix('6') {
            Some(how) => (how, 1),
            None => (*how, 0),
        };
        let mut command = self.of(from);
        command.args([how, "--timeout-ms", CALL, "--to"]);
        let output = command.arg(self.at(to, family, port)).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let outcome: Outcome = serde_json::from_str(&said).with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("`{}` said `{said}` {error}", call.join(" "))
        })?;
        Ok(outcome.outcome == "answer")
    }

    /// Waits until all rows hold at once. A row is a call and `+` if it is answered, `-` if not.
    fn hold(&self, what: &str, rows: &str) -> Result<usize> {
        let rows: Vec<Vec<&str>> = rows
            .lines()
            .map(|row| row.split_whitespace().collect::<Vec<_>>())
            .filter(|row| !row.is_empty())
            .collect();
        let end = Instant::now() + WAIT;
        loop {
            let wrong = self.wrong(&rows)?;
            if wrong.is_empty() {
                return Ok(rows.len());
            }
            ensure!(Instant::now() < end, "{what}: not as in {wrong:#?}");
            std::thread::sleep(PAUSE);
        }
    }

    /// The rows that do not hold. Few at once: each is some processes.
    fn wrong(&self, rows: &[Vec<&str>]) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for some in rows.chunks(8) {
            let answers = std::thread::scope(|scope| {
                let calls: Vec<_> = some
                    .iter()
                    .map(|row| scope.spawn(|| self.answers(&row[..4])))
                    .collect();
                let answers = calls.into_iter();
                let answers = answers.map(|call| call.join().expect("a call does not panic"));
                answers.collect::<Result<Vec<bool>>>()
            })?;
            for (row, answers) in some.iter().zip(answers) {
                if answers != (row[4] == "+") {
                    wrong.push(row.join(" "));
                }
            }
        }
        Ok(wrong)
    }

    fn policy(&self, namespace: &str, name: &str, spec: Value) -> Result<()> {
        self.world.apply(
            &json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": { "namespace": namespace, "name": name },
                "spec": spec,
            })
            .to_string(),
        )
    }

    fn no_policy(&self, namespace: &str, name: &str) -> Result<()> {
        let what = ["networkpolicy", name, "--namespace", namespace];
        self.world.delete(&what)
    }

    fn label(&self, pod: &str, label: &str) -> Result<()> {
        let (namespace, name) = pod.split_once('/').context("namespace and name")?;
        let mut kubectl = self.world.kubectl(&["label", "--overwrite", "pod", name]);
        let output = kubectl.args(["--namespace", namespace, label]).output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// Restricts all pods, or those of cells only.
fn scope(world: &World, scope: &str) -> Result<()> {
    world.apply(
        &json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Platform",
            "metadata": { "name": "platform" },
            "spec": { "networkPolicies": scope },
        })
        .to_string(),
    )
}

fn labels(app: &str) -> Value {
    json!({ "matchLabels": { "app": app } })
}

#[test]
fn kube_policies_hold_between_pods_of_one_node_and_of_two() -> Result<()> {
    let world = World::up(&Setup {
        nodes: 2,
        ..Setup::default()
    })?;
    world.deploy_agent(WAIT)?;
    scope(&world, "all")?;
    let pods = Pods::start(&world)?;
    let mut rows = pods.hold(
        "without policies",
        "red/client tcp red/server 8080 +
         red/client tcp red/server 9011 +
         red/client udp red/server 8080 +
         red/client tcp6 red/server 9000 +
         red/far tcp red/server 8080 +
         red/far tcp6 red/server 8080 +
         blue/client tcp red/server 8080 +
         blue/server tcp red/server 8080 +
         blue/client tcp blue/server 8080 +
         node-1 tcp red/server 8080 +
         node-2 tcp red/server 8080 +",
    )?;

    pods.policy("red", "server", json!({
        "podSelector": labels("server"),
        "ingress": [{ "from": [{ "podSelector": labels("client") }], "ports": [{ "port": "http" }] }],
    }))?;
    rows += pods.hold(
        "clients of the namespace, a named port",
        "red/client tcp red/server 8080 +
         red/client tcp6 red/server 8080 +
         red/client tcp red/server 9000 -
         red/client udp red/server 8080 -
         red/far tcp red/server 8080 +
         red/far tcp6 red/server 8080 +
         red/far tcp red/server 9000 -
         red/far udp red/server 8080 -
         blue/client tcp red/server 8080 -
         blue/client tcp6 red/server 8080 -
         blue/server tcp red/server 8080 -
         red/server tcp red/client 9000 +
         red/server tcp red/far 8080 +
         red/server udp blue/client 8080 +
         red/client tcp blue/server 9000 +
         node-1 tcp red/server 8080 +
         node-1 tcp red/server 9000 +
         node-1 tcp6 red/server 9000 +
         node-2 tcp red/server 8080 -",
    )?;

    pods.policy(
        "red",
        "range",
        json!({
            "podSelector": labels("server"),
            "ingress": [{
                "from": [{ "namespaceSelector": { "matchLabels": { "team": "blue" } } }],
                "ports": [{ "port": 9000, "endPort": 9010 }, { "protocol": "UDP" }],
            }],
        }),
    )?;
    rows += pods.hold(
        "another namespace, a range of ports, beside the first policy",
        "blue/client tcp red/server 9000 +
         blue/client tcp red/server 9005 +
         blue/client tcp red/server 9010 +
         blue/client tcp6 red/server 9010 +
         blue/client tcp red/server 9011 -
         blue/client tcp red/server 8080 -
         blue/client udp red/server 8080 +
         blue/server tcp red/server 9005 +
         blue/server tcp red/server 9011 -
         red/client tcp red/server 8080 +
         red/client tcp red/server 9005 -
         red/client udp red/server 8080 -",
    )?;

    pods.policy(
        "blue",
        "client",
        json!({
            "podSelector": labels("client"),
            "policyTypes": ["Egress"],
            "egress": [{
                "to": [{ "namespaceSelector": {}, "podSelector": labels("server") }],
                "ports": [{ "port": "http" }],
            }],
        }),
    )?;
    rows += pods.hold(
        "the name of a port is another number at each pod",
        "blue/client tcp blue/server 9000 +
         blue/client tcp blue/server 8080 -
         blue/client tcp red/server 9000 -
         blue/client tcp red/client 8080 -
         blue/client udp blue/server 8080 -
         red/client tcp blue/client 8080 +
         blue/server tcp blue/client 9000 +",
    )?;
    pods.no_policy("blue", "client")?;

    let [far, far6] = &pods.addresses["red/far"];
    pods.policy(
        "blue",
        "server",
        json!({
            "podSelector": {},
            "ingress": [{ "from": [
                { "ipBlock": { "cidr": "198.18.0.0/16", "except": [format!("{far}/32")] } },
                { "ipBlock": { "cidr": "2001:2::/48", "except": [format!("{far6}/128")] } },
            ] }],
        }),
    )?;
    rows += pods.hold(
        "a network without a part",
        "red/client tcp blue/server 8080 +
         red/client tcp6 blue/server 9011 +
         red/far tcp blue/server 8080 -
         red/far tcp6 blue/server 8080 -
         red/far udp blue/server 8080 -
         red/far tcp blue/client 8080 -
         blue/client tcp blue/server 8080 +
         blue/server tcp blue/client 9011 +
         node-2 tcp blue/server 8080 +
         node-1 tcp blue/server 8080 -",
    )?;
    pods.no_policy("blue", "server")?;

    pods.label("red/client", "app=other")?;
    rows += pods.hold(
        "a pod with other labels",
        "red/client tcp red/server 8080 -",
    )?;
    pods.label("red/client", "app=client")?;
    rows += pods.hold("and with those before", "red/client tcp red/server 8080 +")?;
    pods.label("red/server", "app=other")?;
    rows += pods.hold(
        "a pod that no policy selects any more",
        "blue/client tcp red/server 8080 +
         node-2 tcp red/server 9011 +",
    )?;
    pods.label("red/server", "app=server")?;
    rows += pods.hold("and again", "blue/client tcp red/server 8080 -")?;

    rows += established(&pods)?;
    rows += cell(&pods)?;
    ensure!(rows >= 60, "{rows} rows");
    Ok(())
}

/// A policy reaches a connection that is open.
fn established(pods: &Pods<'_>) -> Result<usize> {
    let mut command = pods.of("red/client");
    command
        .args(["hold", "--timeout-ms", CALL, "--to"])
        .arg(pods.at("red/server", 0, "8080"));
    let mut open = Running::start("an open connection", command)?;
    let said: Outcome = open.next(WAIT)?;
    ensure!(said.outcome == "connected", "{said:?}");
    open.say("before")?;
    let said: Outcome = open.next(WAIT)?;
    ensure!(said.outcome == "answer", "{said:?}");
    let nobody = json!({ "podSelector": labels("server"), "policyTypes": ["Ingress"] });
    pods.policy("red", "nobody", nobody)?;
    open.say("a policy more takes nothing away")?;
    let said: Outcome = open.next(WAIT)?;
    ensure!(said.outcome == "answer", "{said:?}");
    pods.no_policy("red", "server")?;
    let rows = pods.hold("nobody", "red/client tcp red/server 8080 -")?;
    open.say("after")?;
    let said: Outcome = open.next(WAIT)?;
    ensure!(said.outcome == "timeout", "{said:?}");
    pods.no_policy("red", "nobody")?;
    Ok(rows)
}

/// What a cell allows and policies do, each without the other, does not pass.
fn cell(pods: &Pods<'_>) -> Result<usize> {
    let component = |name: &str| {
        json!({
            "name": name,
            "workloads": { "selector": labels(name) },
            "endpoints": [{ "name": "api", "type": "TCP", "port": 8080 }],
        })
    };
    pods.world.apply(
        &json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Cell",
            "metadata": { "namespace": "shop", "name": "shop" },
            "spec": {
                "organization": "acme",
                "project": "shop",
                "environment": "prod",
                "intra": "open",
                "components": [component("site"), component("orders")],
            },
        })
        .to_string(),
    )?;
    let mut rows = pods.hold(
        "a cell",
        "shop/site tcp shop/orders 8080 +
         shop/site tcp shop/orders 9000 +
         shop/site tcp6 shop/orders 9000 +
         shop/site udp shop/orders 8080 +
         red/client tcp shop/orders 8080 -
         shop/site tcp red/client 8080 -",
    )?;
    pods.policy(
        "shop",
        "orders",
        json!({
            "podSelector": labels("orders"),
            "ingress": [{ "ports": [{ "port": 8080 }] }],
        }),
    )?;
    let both = "shop/site tcp shop/orders 8080 +
         shop/site tcp6 shop/orders 8080 +
         shop/site tcp shop/orders 9000 -
         shop/site udp shop/orders 8080 -
         red/client tcp shop/orders 8080 -
         red/far tcp shop/orders 8080 -
         shop/orders tcp shop/site 9000 +
         shop/orders tcp red/client 8080 -
         node-2 tcp shop/orders 8080 +
         node-2 tcp shop/orders 9000 -";
    rows += pods.hold("a cell and a policy", both)?;
    scope(pods.world, "cells")?;
    rows += pods.hold(
        "pods of no cell are let alone",
        "blue/client tcp red/server 8080 +
         blue/client tcp6 red/server 9011 +
         node-2 tcp red/server 9011 +",
    )?;
    rows += pods.hold("those of cells are not", both)?;
    Ok(rows)
}
