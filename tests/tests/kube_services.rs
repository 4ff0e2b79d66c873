//! `Service`s of a cluster without kube-proxy: who answers at a ClusterIP, seen from pods on two nodes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::{
    http::curl,
    kube::{
        Setup, World,
        pods::{Inside, serving},
    },
    peer::Outcome,
    programs::Programs,
    world::output,
};

const WAIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);
/// Requests after which a fair choice between two has shown both: it fails once in 2^39 times.
const MANY: usize = 40;
/// The cluster's name server.
const DNS: &str = "198.19.255.254:53";

/// Pods that answer, and the insides of those that ask.
struct Scene {
    world: World,
    programs: Programs,
    /// On the first node, on the second, and on the first node's own network.
    first: Inside,
    second: Inside,
    host: Inside,
}

impl Scene {
    fn up() -> Result<Self> {
        let world = World::up(&Setup {
            nodes: 2,
            cluster_ips: true,
            ..Setup::default()
        })?;
        for (node, zone) in [("node-1", "east"), ("node-2", "west")] {
            let label = format!("topology.kubernetes.io/zone={zone}");
            output(&mut world.kubectl(&["label", "node", node, &label]))?;
        }
        world.deploy_agent(WAIT)?;
        let both = ["--udp", "[::]:5353", "--tcp", "[::]:9000"];
        // The port has one name and two numbers.
        for (name, node, port) in [("a", "node-1", 8080), ("b", "node-2", 8090)] {
            let http = format!("[::]:{port}");
            let arguments = [&["--http", &http][..], &both].concat();
            world.apply(&serving(name, node, "web", &[("web", port)], &arguments).to_string())?;
        }
        for (name, node) in [("first", "node-1"), ("second", "node-2")] {
            let pod = serving(name, node, "client", &[], &["--tcp", "[::]:7000"]);
            world.apply(&pod.to_string())?;
        }
        let mut host = serving("host", "node-1", "host", &[], &["--tcp", "127.0.0.1:7001"]);
        host["spec"]["hostNetwork"] = json!(true);
        world.apply(&host.to_string())?;
        for name in ["a", "b", "first", "second", "host"] {
            world.wait(WAIT, &["pod", name], ready)?;
        }
        let inside = |name| world.inside("default", name);
        Ok(Self {
            first: inside("first")?,
            second: inside("second")?,
            host: inside("host")?,
            programs: Programs::locate()?,
            world,
        })
    }

    /// Makes a service of the pods `app: web`, and gives its addresses. `more` are further fields of its `spec`.
    fn service(&self, name: &str, more: &Value) -> Result<Vec<IpAddr>> {
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "selector": { "app": "web" },
                "ipFamilyPolicy": "RequireDualStack",
                "ports": [
                    { "name": "http", "port": 80, "targetPort": "web" },
                    { "name": "echo", "port": 7, "targetPort": 9000 },
                    { "name": "datagrams", "port": 7, "protocol": "UDP", "targetPort": 5353 },
                ],
            },
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        self.world.apply(&service.to_string())?;
        let service = self.world.get(&["service", name])?;
        let addresses = service["spec"]["clusterIPs"]
            .as_array()
            .into_iter()
            .flatten();
        let addresses = addresses
            .filter_map(Value::as_str)
            .filter(|one| *one != "None");
        addresses.map(|one| Ok(one.parse()?)).collect()
    }

    /// Who answers a request at an address, or why nobody does.
    fn ask(&self, from: &Inside, address: IpAddr) -> Result<String> {
        let url = format!("http://{}/", SocketAddr::new(address, 80));
        let page = curl(from.run("curl"), Duration::from_secs(3), &[&url])?;
        Ok(match page.json()["name"].as_str() {
            Some(name) => name.to_owned(),
            None => page.outcome(),
        })
    }

    /// Everybody who answers many requests.
    fn all(&self, from: &Inside, address: IpAddr) -> Result<BTreeSet<String>> {
        (0..MANY).map(|_| self.ask(from, address)).collect()
    }

    /// Waits until these answer many requests, and nobody else.
    fn answers(&self, from: &Inside, address: IpAddr, expected: &[&str]) -> Result<()> {
        let expected: BTreeSet<String> = expected.iter().map(|one| (*one).to_owned()).collect();
        let end = Instant::now() + WAIT;
        loop {
            let found = self.all(from, address)?;
            if found == expected {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{address} is answered by {found:?}, not by {expected:?}");
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// What `peer` says, asked in a pod.
    fn peer(&self, from: &Inside, arguments: &[&str]) -> Result<Outcome> {
        let text = output(from.run(&self.programs.peer).args(arguments))?;
        serde_json::from_str(&text).with_context(|| format!("the peer said `{text}`"))
    }
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let mut conditions = conditions;
    conditions.any(|one| one["type"] == "Ready" && one["status"] == "True")
}

#[test]
fn kube_services_lead_to_their_endpoints_at_connect_time() -> Result<()> {
    let scene = Scene::up()?;
    let Scene {
        first,
        second,
        host,
        ..
    } = &scene;

    // Both families, pods of both nodes, a node's own process, and a named port that each pod has elsewhere.
    let web = scene.service("web", &json!({}))?;
    ensure!(web.len() == 2, "{web:?}");
    for address in &web {
        for from in [first, second, host] {
            scene.answers(from, *address, &["a", "b"])?;
        }
    }

    // By name: the cluster's name server tells the addresses of the service.
    let name = "web.default.svc.cluster.local";
    for (address, family) in web.iter().zip([&[][..], &["--v6"]]) {
        let question = [&["dns", "--server", DNS, "--name", name][..], family].concat();
        let answer = scene.peer(first, &question)?.answer;
        ensure!(answer.contains(&address.to_string()), "{name} is {answer}");
    }

    // Datagrams, of connected sockets and of others; the answer comes from where it was asked for.
    for address in &web {
        let to = SocketAddr::new(*address, 7).to_string();
        for more in [&[][..], &["--unconnected"]] {
            let outcome = scene.peer(first, &[&["udp", "--to", &to][..], more].concat())?;
            ensure!(outcome.outcome == "answer", "{to} {more:?}: {outcome:?}");
        }
        let outcome = scene.peer(first, &["tcp", "--to", &to])?;
        ensure!(outcome.outcome == "answer", "{to}: {outcome:?}");
    }

    // A headless service has no address of its own: its name stands for its pods.
    let headless = scene.service("headless", &json!({ "clusterIP": "None" }))?;
    ensure!(headless.is_empty(), "{headless:?}");
    let pod = scene.world.get(&["pod", "a"])?;
    let address = pod["status"]["podIP"]
        .as_str()
        .context("a pod has no address")?;
    let name = "headless.default.svc.cluster.local";
    let answer = scene
        .peer(first, &["dns", "--server", DNS, "--name", name])?
        .answer;
    ensure!(answer.contains(address), "{name} is {answer}");

    // Who had an endpoint keeps it.
    let sticky = scene.service("sticky", &json!({ "sessionAffinity": "ClientIP" }))?;
    let end = Instant::now() + WAIT;
    while scene.ask(second, sticky[0])?.len() != 1 {
        ensure!(
            Instant::now() < end,
            "the service with affinity is not there"
        );
    }
    for from in [first, second] {
        let found = scene.all(from, sticky[0])?;
        ensure!(found.len() == 1, "a client with affinity met {found:?}");
    }
    Ok(())
}

#[test]
fn kube_services_prefer_what_is_near_and_follow_what_goes() -> Result<()> {
    let scene = Scene::up()?;
    let Scene { first, second, .. } = &scene;

    // Hints of zones and of nodes, which the cluster's own controller writes.
    for distribution in ["PreferClose", "PreferSameNode"] {
        let name = distribution.to_lowercase();
        let near = scene.service(&name, &json!({ "trafficDistribution": distribution }))?;
        scene.answers(first, near[0], &["a"])?;
        scene.answers(second, near[0], &["b"])?;
    }

    // Only a node's own endpoints, or none at all.
    scene.world.apply(
        &serving(
            "alone",
            "node-2",
            "alone",
            &[("web", 8080)],
            &["--http", "[::]:8080"],
        )
        .to_string(),
    )?;
    let alone = json!({ "selector": { "app": "alone" }, "internalTrafficPolicy": "Local" });
    let local = scene.service("local", &alone)?;
    scene.answers(second, local[0], &["alone"])?;
    scene.answers(first, local[0], &["refused"])?;

    // One that is not ready is nobody's endpoint, unless the service asks for it.
    let mut cold = serving(
        "cold",
        "node-1",
        "cold",
        &[("web", 8080)],
        &["--http", "[::]:8080"],
    );
    cold["spec"]["containers"][0]["readinessProbe"] =
        json!({ "httpGet": { "path": "/", "port": 1 }, "periodSeconds": 1 });
    scene.world.apply(&cold.to_string())?;
    let selector = json!({ "app": "cold" });
    let waits = scene.service("cold", &json!({ "selector": selector }))?;
    let anyway = json!({ "selector": selector, "publishNotReadyAddresses": true });
    let anyway = scene.service("cold-too", &anyway)?;
    scene.answers(first, anyway[0], &["cold"])?;
    scene.answers(first, waits[0], &["refused"])?;

    // A pod of a cell goes through its gates to the endpoint, and a stranger does not.
    let web = scene.service("web", &json!({}))?;
    scene.answers(second, web[0], &["a", "b"])?;
    scene.world.apply(
        &json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Cell",
            "metadata": { "name": "shop", "namespace": "default" },
            "spec": {
                "organization": "acme",
                "project": "shop",
                "environment": "prod",
                "components": [
                    {
                        "name": "web",
                        "workloads": { "selector": { "matchLabels": { "app": "web" } } },
                        "endpoints": [
                            { "name": "a", "type": "TCP", "port": 8080 },
                            { "name": "b", "type": "TCP", "port": 8090 },
                        ],
                    },
                    { "name": "client", "workloads": { "selector": { "matchLabels": { "app": "client" } } } },
                ],
            },
        })
        .to_string(),
    )?;
    let accepted = |cell: &Value| {
        let conditions = cell["status"]["conditions"].as_array();
        conditions.is_some_and(|all| {
            let mut all = all.iter();
            all.all(|one| one["status"] == "True")
        })
    };
    scene.world.wait(WAIT, &["cell", "shop"], accepted)?;
    scene.answers(first, web[0], &["a", "b"])?;
    let stranger = scene.world.inside("default", "alone")?;
    let end = Instant::now() + WAIT;
    while scene.ask(&stranger, web[0])? != "timeout" {
        ensure!(
            Instant::now() < end,
            "a stranger reaches a cell by a service's address"
        );
    }

    // Endpoints go, and with the last of them the service refuses at once.
    scene.world.delete(&["pod", "b"])?;
    scene.answers(first, web[0], &["a"])?;
    scene.world.delete(&["pod", "a"])?;
    scene.answers(first, web[0], &["refused"])?;
    let to = SocketAddr::new(web[0], 7).to_string();
    let outcome = scene.peer(first, &["udp", "--to", &to])?;
    ensure!(outcome.outcome == "refused", "{outcome:?}");
    Ok(())
}
