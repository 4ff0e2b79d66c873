//! Requests go on while the API server is away, while agents are replaced, and while many routes change at once.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tests::{
    http::curl,
    kube::{
        AGENT_NAMESPACE, Setup, World,
        manifests::{attached, gateway, http, programmed, route, service, together},
        pods::serving,
        process::Agent,
        root,
    },
    peer::{LoadReport, Running},
    programs::Programs,
};

const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
const HOST: &str = "shop.example.org";
/// Routes that change, and how many are sent together.
const ROUTES: usize = 500;
const BATCH: usize = 50;

/// Pods `one` and `two`, each behind a service of its name.
fn backends(world: &World, nodes: u8) -> Result<()> {
    for (name, node) in [("one", 1), ("two", nodes)] {
        let node = format!("node-{node}");
        let pod = serving(name, &node, name, &[], &["--http", "[::]:8080"]);
        world.apply(&together(&[pod, service(name, name, &[8080])]))?;
    }
    for name in ["one", "two"] {
        let selector = format!("kubernetes.io/service-name={name}");
        world.wait(
            WAIT,
            &["endpointslices", "--selector", &selector],
            |slices| slices["items"][0]["endpoints"][0]["conditions"]["ready"] == true,
        )?;
    }
    Ok(())
}

fn address(world: &World, name: &str) -> Result<SocketAddr> {
    let gateway = world.wait(WAIT, &["gateway", name], programmed)?;
    let address = gateway["status"]["addresses"][0]["value"].as_str();
    Ok(SocketAddr::new(
        address.context("a gateway has no address")?.parse()?,
        80,
    ))
}

/// Requests from outside until told to end.
fn load(world: &World, to: SocketAddr, host: &str) -> Result<Running> {
    let mut command = world.outside(Programs::locate()?.peer);
    let to = to.to_string();
    command.args(["load", "--to", &to, "--host", host, "--timeout-ms", "20000"]);
    Running::start("the load", command)
}

fn end(mut load: Running) -> Result<LoadReport> {
    load.finish();
    load.next(WAIT)
}

/// Nothing failed, and nobody answered but this pod.
fn flawless(report: &LoadReport, by: &str) -> Result<()> {
    ensure!(
        report.failed == 0 && report.answers.keys().eq([by]),
        "{report:?}"
    );
    Ok(())
}

/// Who answers.
fn ask(world: &World, to: SocketAddr, host: &str) -> Result<String> {
    let (url, host) = (format!("http://{to}/"), format!("host: {host}"));
    let page = curl(
        world.outside("curl"),
        Duration::from_secs(5),
        &["--header", &host, &url],
    )?;
    let answer = page.json();
    Ok(answer["name"]
        .as_str()
        .map_or_else(|| page.outcome(), str::to_owned))
}

fn answered(world: &World, to: SocketAddr, host: &str, by: &str) -> Result<()> {
    let end = Instant::now() + WAIT;
    loop {
        let found = ask(world, to, host)?;
        if found == by {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{host} is answered by {found}, not by {by}");
        }
        std::thread::sleep(PAUSE);
    }
}

fn stale(status: &Value, seconds: u64) -> bool {
    let stale = status["config"]["cluster"]["stale_seconds"].as_u64();
    stale.is_some_and(|stale| stale >= seconds)
}

#[test]
fn kube_requests_need_no_api_server() -> Result<()> {
    let world = World::up(&Setup {
        roles: false,
        ..Setup::default()
    })?;
    world.apply_folder(&root().join("deploy/crds"))?;
    world.apply(&fs::read_to_string(
        root().join("deploy/gateway-class.yaml"),
    )?)?;
    world.apply(
        &json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Platform",
            "metadata": { "name": "platform" },
            "spec": { "gateways": { "addressPools": ["198.19.0.0/19"] } },
        })
        .to_string(),
    )?;
    backends(&world, 1)?;
    world.apply(&together(&[
        gateway("web", &[http("http", 80)]),
        route("shop", "web", HOST, "/", ("one", 8080)),
    ]))?;
    let folder = tempfile::tempdir()?;
    let mut agent = Agent::start(&world, "node-1", folder.path())?;
    let to = address(&world, "web")?;
    answered(&world, to, HOST, "one")?;
    let deadline = Instant::now() + WAIT;
    // What is kept is written some seconds after it changed.
    while !fs::read_to_string(agent.kept())
        .is_ok_and(|kept| kept.contains("\"shop\"") && kept.contains(&to.ip().to_string()))
    {
        ensure!(Instant::now() < deadline, "the route is not kept");
        std::thread::sleep(PAUSE);
    }

    // The API server dies and comes back, and nobody notices but the status.
    let clients = load(&world, to, HOST)?;
    for _ in 0..2 {
        world.crash("kube-apiserver")?;
        let status = agent.wait(|status| stale(status, 3))?;
        ensure!(status["agent"]["ready"] == true, "{status}");
        ensure!(
            world.up_again()?.status()?.success(),
            "the world did not come back"
        );
        agent.wait(|status| status["config"]["cluster"]["stale_seconds"] == 0)?;
    }
    let report = end(clients)?;
    flawless(&report, "one")?;
    println!(
        "{} requests without an API server, none failed",
        report.requests
    );

    // An agent that starts meanwhile serves what it had kept, and says how old that is.
    world.crash("kube-apiserver")?;
    agent.end()?;
    agent.again()?;
    answered(&world, to, HOST, "one")?;
    let status = agent.wait(|status| stale(status, 1))?;
    ensure!(status["config"]["cluster"]["complete"] == false, "{status}");
    ensure!(
        world.up_again()?.status()?.success(),
        "the world did not come back"
    );
    world.apply(&route("shop", "web", HOST, "/", ("two", 8080)).to_string())?;
    answered(&world, to, HOST, "two")?;
    agent.wait(|status| status["config"]["cluster"]["complete"] == true)?;
    what_happened_meanwhile_is_listed(&world, &agent, to)
}

/// Asks etcd.
fn etcd(world: &World, method: &str, request: &Value) -> Result<Value> {
    let url = format!("http://127.0.0.1:2379/v3/kv/{method}");
    let request = request.to_string();
    let page = curl(
        world.outside("curl"),
        Duration::from_secs(5),
        &["--data", &request, &url],
    )?;
    ensure!(page.status == 200, "etcd: {}", page.outcome());
    Ok(page.json())
}

/// What the API server answers at a path of routes.
fn raw(world: &World, query: &str) -> Result<String> {
    let path = format!("/apis/gateway.networking.k8s.io/v1/httproutes?{query}");
    let output = world.kubectl(&["get", "--raw", &path]).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The version that a list of routes has.
fn version(world: &World) -> Result<u64> {
    let routes: Value = serde_json::from_str(&raw(world, "limit=1")?)?;
    let version = routes["metadata"]["resourceVersion"].as_str();
    Ok(version.context("the list has no version")?.parse()?)
}

/// The agent's watches cannot go on where they were (410), since the API server has forgotten what happened from there on: routes that
/// came, changed and went meanwhile are told by lists, and nothing else is forgotten.
fn what_happened_meanwhile_is_listed(
    world: &World,
    agent: &Agent<'_>,
    to: SocketAddr,
) -> Result<()> {
    let named = |name: &str, backend: &str| {
        route(
            name,
            "web",
            &format!("{name}.example.org"),
            "/",
            (backend, 8080),
        )
    };
    world.apply(&together(&[
        named("stays", "one"),
        named("changes", "one"),
        named("goes", "one"),
    ]))?;
    for name in ["stays", "changes", "goes"] {
        answered(world, to, &format!("{name}.example.org"), "one")?;
    }
    agent.stop()?;
    let before = version(world)?;
    world.apply(&together(&[named("changes", "two"), named("comes", "two")]))?;
    world.delete(&["httproute", "goes"])?;
    let now = etcd(world, "range", &json!({ "key": "AA==" }))?;
    let now = now["header"]["revision"].as_str();
    let now: u64 = now.context("etcd names no revision")?.parse()?;
    ensure!(now > before, "{now} is not after {before}");
    world.crash("kube-apiserver")?;
    etcd(
        world,
        "compaction",
        &json!({ "revision": now.to_string(), "physical": true }),
    )?;
    ensure!(
        world.up_again()?.status()?.success(),
        "the world did not come back"
    );
    let told = raw(
        world,
        &format!("watch=1&timeoutSeconds=5&resourceVersion={before}"),
    )?;
    ensure!(
        told.contains(r#""code":410"#) || told.contains("too old resource version"),
        "the past is still known: {told}"
    );
    agent.go_on()?;
    for (name, by) in [("stays", "one"), ("changes", "two"), ("comes", "two")] {
        answered(world, to, &format!("{name}.example.org"), by)?;
    }
    answered(world, to, "goes.example.org", "404")?;
    answered(world, to, HOST, "two")?;
    agent.wait(|status| {
        let cluster = &status["config"]["cluster"];
        cluster["complete"] == true && cluster["stale_seconds"] == 0
    })?;
    Ok(())
}

#[test]
fn kube_many_routes_change_and_no_request_goes_astray() -> Result<()> {
    let world = World::up(&Setup {
        nodes: 2,
        ..Setup::default()
    })?;
    world.deploy_agent(WAIT)?;
    backends(&world, 2)?;
    let host = |number: usize| format!("r{number}.example.org");
    let to_of = |backend: &str| {
        let routes = (0..ROUTES).map(|number| {
            route(
                &format!("r{number}"),
                "web",
                &host(number),
                "/",
                (backend, 8080),
            )
        });
        routes.collect::<Vec<_>>()
    };
    world.apply(&together(&[
        gateway("web", &[http("http", 80)]),
        route("shop", "web", HOST, "/", ("one", 8080)),
    ]))?;
    let to = address(&world, "web")?;
    answered(&world, to, HOST, "one")?;
    let change = |routes: &[Value]| -> Result<Duration> {
        let start = Instant::now();
        for batch in routes.chunks(BATCH) {
            world.apply(&together(batch))?;
        }
        Ok(start.elapsed())
    };
    change(&to_of("one"))?;
    let last = host(ROUTES - 1);
    answered(&world, to, &last, "one")?;

    // One client of a route that stays, one of a route that changes: old or new are right, nothing else is.
    let (stays, changes) = (load(&world, to, HOST)?, load(&world, to, &last)?);
    let took = change(&to_of("two"))?;
    for number in (0..ROUTES).step_by(BATCH).chain([ROUTES - 1]) {
        answered(&world, to, &host(number), "two")?;
    }
    world.wait(WAIT, &["httproutes"], |routes| {
        let mut routes = routes["items"].as_array().into_iter().flatten();
        routes.all(attached)
    })?;
    let report = end(stays)?;
    flawless(&report, "one")?;
    let changed = end(changes)?;
    let expected: BTreeSet<&str> = ["one", "two"].into();
    let found: BTreeSet<&str> = changed.answers.keys().map(String::as_str).collect();
    ensure!(changed.failed == 0 && found == expected, "{changed:?}");
    println!(
        "{ROUTES} routes changed in {} s under {} requests, none failed or was led astray",
        took.as_secs(),
        report.requests + changed.requests
    );
    Ok(())
}

/// Clients of two nodes, from outside and from the first node itself, with connections that are kept and ones that are not.
fn clients(world: &World, nodes: [SocketAddr; 2]) -> Result<Vec<(String, Running)>> {
    let peer = Programs::locate()?.peer;
    let mut clients = Vec::new();
    for (node, from, to) in [
        (1, "outside", nodes[0]),
        (2, "outside", nodes[1]),
        (1, "node-1", nodes[0]),
        (2, "node-1", nodes[1]),
    ] {
        for (what, most) in [("new", "1"), ("kept", "1000000")] {
            let mut command = match from {
                "outside" => world.outside(&peer),
                node => world.on_node(node, &peer),
            };
            let to = to.to_string();
            command.args(["load", "--to", &to, "--host", HOST, "--timeout-ms", "20000"]);
            command.args(["--per-connection", most]);
            let name = format!("{what} connections from {from} to node-{node}");
            clients.push((name.clone(), Running::start(name, command)?));
        }
    }
    Ok(clients)
}

/// No client of these saw a failure. Gives the requests, and how long the slowest took.
fn unharmed(clients: Vec<(String, Running)>) -> Result<(u64, Duration)> {
    let (mut requests, mut slowest) = (0, 0);
    for (name, client) in clients {
        let report = end(client)?;
        flawless(&report, "two").context(name)?;
        requests += report.requests;
        slowest = report.slowest_us.max(slowest);
    }
    Ok((requests, Duration::from_micros(slowest)))
}

/// The agent of a node, by the name and the number of its pod.
fn agent_of(world: &World, node: &str) -> Result<(String, String)> {
    let agents = world.get(&["pods", "--namespace", AGENT_NAMESPACE])?;
    let mut agents = agents["items"].as_array().into_iter().flatten();
    let of_node = agents.find(|pod| {
        pod["spec"]["nodeName"] == node && pod["metadata"]["deletionTimestamp"].is_null()
    });
    let metadata = &of_node.with_context(|| format!("{node} has no agent"))?["metadata"];
    let text = |field: &str| metadata[field].as_str().map(str::to_owned);
    let pod = text("name").zip(text("uid"));
    pod.context("a pod has no name")
}

#[test]
fn kube_agents_are_replaced_and_no_request_fails() -> Result<()> {
    let world = World::up(&Setup {
        nodes: 2,
        ..Setup::default()
    })?;
    world.deploy_agent(WAIT)?;
    world.apply(
        &json!({
            "apiVersion": "cardinal.dev/v1alpha1",
            "kind": "Platform",
            "metadata": { "name": "platform" },
            "spec": { "gateways": { "addresses": "Nodes" } },
        })
        .to_string(),
    )?;
    backends(&world, 2)?;
    world.apply(&together(&[
        gateway("web", &[http("http", 80)]),
        route("shop", "web", HOST, "/", ("two", 8080)),
    ]))?;
    let nodes: [SocketAddr; 2] = ["198.19.255.1:80".parse()?, "198.19.255.2:80".parse()?];
    for node in nodes {
        answered(&world, node, HOST, "two")?;
    }

    // All agents, one node after the other.
    let before = ["node-1", "node-2"].map(|node| agent_of(&world, node));
    let asking = clients(&world, nodes)?;
    let start = Instant::now();
    for words in [&["restart"][..], &["status", "--timeout=300s"]] {
        let mut command = world.kubectl(&["rollout"]);
        command.args(words);
        command.args(["daemonset/cardinal-agent", "--namespace", AGENT_NAMESPACE]);
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
    }
    let took = start.elapsed();
    std::thread::sleep(PAUSE * 5);
    let (requests, slowest) = unharmed(asking)?;
    println!(
        "rollout of two nodes in {} s: {requests} requests, 0 failed, the slowest took {} ms",
        took.as_secs(),
        slowest.as_millis()
    );
    for (node, before) in ["node-1", "node-2"].into_iter().zip(before) {
        let (before, now) = (before?, agent_of(&world, node)?);
        ensure!(before.1 != now.1, "{node} has its agent of before");
    }

    // One whose pod somebody deletes: it serves on until the next one has taken over.
    let asking = clients(&world, nodes)?;
    let (first, _) = agent_of(&world, "node-1")?;
    let start = Instant::now();
    world.delete(&["pod", &first, "--namespace", AGENT_NAMESPACE])?;
    world.agents_ready(WAIT)?;
    let took = start.elapsed();
    let (requests, slowest) = unharmed(asking)?;
    println!(
        "an agent's pod deleted, {} ms: {requests} requests, 0 failed, the slowest took {} ms",
        took.as_millis(),
        slowest.as_millis()
    );
    Ok(())
}
