//! What a platform's people do every day, under load that notices everything: certificates turn, domains and services come, gateways get
//! addresses.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};
use tests::{
    http::{Page, curl, resolve},
    kube::{
        AGENT_NAMESPACE, Setup, World,
        manifests::{
            attached, definition, gateway, holds, http, https, programmed, route, service, together,
        },
        pods::serving,
    },
    peer::{LoadReport, Outcome, Running},
    programs::Programs,
    secrets::Secrets,
    world::output,
};

const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(100);
/// Certificates of the test of rotation, and how many are sent together.
const ROTATIONS: usize = 200;
const BATCH: usize = 10;
/// Clients that do nothing but handshakes meanwhile.
const CLIENTS: usize = 3;

/// The platform's domain, and one that comes later.
const SHOP: &str = "shop.example.org";
const BANK: &str = "bank.example.org";

/// A world with the agent, and pods `one` (with two ports) and `two` behind services of their names.
fn up(nodes: u8) -> Result<World> {
    let world = World::up(&Setup {
        nodes,
        ..Setup::default()
    })?;
    world.deploy_agent(WAIT)?;
    let both = ["--http", "[::]:8080", "--http", "[::]:8081"];
    world.apply(&together(&[
        serving("one", "node-1", "one", &[], &both),
        serving("two", &format!("node-{nodes}"), "two", &[], &both[..2]),
        service("one", "one", &[8080, 8081]),
        service("two", "two", &[8080]),
    ]))?;
    for name in ["one", "two"] {
        world.wait(
            WAIT,
            &[
                "endpointslices",
                "--selector",
                &format!("kubernetes.io/service-name={name}"),
            ],
            |slices| slices["items"][0]["endpoints"][0]["conditions"]["ready"] == true,
        )?;
    }
    Ok(world)
}

/// The address of a gateway that has become what it should.
fn address(world: &World, name: &str, port: u16) -> Result<SocketAddr> {
    let gateway = world.wait(WAIT, &["gateway", name], programmed)?;
    let address = gateway["status"]["addresses"][0]["value"].as_str();
    let address = address.context("a gateway has no address")?;
    Ok(SocketAddr::new(address.parse()?, port))
}

/// A document `Secret` in the form in which the API server keeps it.
fn secret(secrets: &Secrets, name: &str, hosts: &[&str]) -> Result<Value> {
    let identity = secrets.certify(name, hosts)?;
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "namespace": "default" },
        "type": "kubernetes.io/tls",
        "data": {
            "tls.crt": BASE64.encode(&fs::read(identity.cert)?),
            "tls.key": BASE64.encode(&fs::read(identity.key)?),
        },
    }))
}

/// Requests by HTTPS from outside, until told to end. `connection` of them share one.
fn load(world: &World, ca: &Path, to: SocketAddr, connection: u64) -> Result<Running> {
    let mut command = world.outside(Programs::locate()?.peer);
    command
        .args(["load", "--to", &to.to_string(), "--host", SHOP, "--ca"])
        .arg(ca)
        .args([
            "--per-connection",
            &connection.to_string(),
            "--timeout-ms",
            "10000",
        ]);
    Running::start("the load", command)
}

/// Ends a load, of which nothing may have failed.
fn flawless(mut load: Running) -> Result<LoadReport> {
    load.finish();
    let report: LoadReport = load.next(WAIT)?;
    ensure!(report.failed == 0, "{report:?}");
    Ok(report)
}

/// A request from outside.
fn get(world: &World, ca: &Path, to: SocketAddr, host: &str, path: &str) -> Result<Page> {
    let ca = ca.to_str().context("a path is no text")?;
    let url = format!("https://{host}{path}");
    let known = resolve(host, to.port(), to.ip());
    let arguments = ["--cacert", ca, "--resolve", &known, &url];
    curl(world.outside("curl"), Duration::from_secs(5), &arguments)
}

/// Waits until requests are answered by this pod at this port.
fn answered(
    world: &World,
    ca: &Path,
    to: SocketAddr,
    url: (&str, &str),
    by: (&str, u16),
) -> Result<()> {
    let end = Instant::now() + WAIT;
    loop {
        let page = get(world, ca, to, url.0, url.1)?;
        let answer = page.json();
        if answer["name"] == by.0 && answer["port"] == by.1 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{url:?} is {page:?}");
        std::thread::sleep(PAUSE);
    }
}

/// The certificate that a server shows, PEM.
fn shown(world: &World, to: SocketAddr, host: &str) -> Result<String> {
    let mut client = world.outside("openssl");
    client.args(["s_client", "-connect", &to.to_string(), "-servername", host]);
    let text = output(client.stdin(Stdio::null()))?;
    first_certificate(&text)
}

fn first_certificate(text: &str) -> Result<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let start = text.find("-----BEGIN CERTIFICATE-----");
    let end = text.find(END).map(|end| end + END.len());
    let pem = start.zip(end).and_then(|(start, end)| text.get(start..end));
    let pem = pem.with_context(|| format!("no certificate in {text}"))?;
    Ok(pem.replace("\r\n", "\n"))
}

#[test]
fn kube_certificates_turn_without_a_failed_handshake() -> Result<()> {
    let world = up(1)?;
    let folder = tempfile::tempdir()?;
    let secrets = Secrets::make(folder.path())?;
    world.apply(&together(&[
        secret(&secrets, "shop", &[SHOP])?,
        gateway("web", &[https("shop", SHOP, "shop")]),
        route("one", "web", SHOP, "/", ("one", 8080)),
    ]))?;
    let to = address(&world, "web", 443)?;
    answered(&world, &secrets.ca(), to, (SHOP, "/"), ("one", 8080))?;

    let clients = (0..CLIENTS).map(|_| load(&world, &secrets.ca(), to, 1));
    let clients = clients.collect::<Result<Vec<_>>>()?;
    for _ in 0..ROTATIONS / BATCH {
        let batch = (0..BATCH).map(|_| secret(&secrets, "shop", &[SHOP]));
        let batch = batch.collect::<Result<Vec<_>>>()?;
        world.apply(&together(&batch))?;
    }
    let last = first_certificate(&fs::read_to_string(folder.path().join("shop.pem"))?)?;
    let end = Instant::now() + WAIT;
    while shown(&world, to, SHOP)? != last {
        ensure!(Instant::now() < end, "the last certificate is not shown");
        std::thread::sleep(PAUSE);
    }
    for client in clients {
        let report = flawless(client)?;
        ensure!(report.requests > 0, "{report:?}");
        println!(
            "{} handshakes during {ROTATIONS} rotations, the longest took {} ms",
            report.requests,
            report.slowest_us / 1000
        );
    }
    Ok(())
}

#[test]
fn kube_everyday_changes_need_their_own_objects_only() -> Result<()> {
    let world = up(2)?;
    let folder = tempfile::tempdir()?;
    let secrets = Secrets::make(folder.path())?;
    let ca = secrets.ca();
    world.apply(&together(&[
        secret(&secrets, "shop", &[SHOP])?,
        gateway("web", &[https("shop", SHOP, "shop")]),
        route("one", "web", SHOP, "/", ("one", 8080)),
    ]))?;
    let to = address(&world, "web", 443)?;
    answered(&world, &ca, to, (SHOP, "/"), ("one", 8080))?;
    let client = load(&world, &ca, to, 25)?;

    // A service comes to a domain that is there: one route.
    world.apply(&route("two", "web", SHOP, "/two", ("two", 8080)).to_string())?;
    answered(&world, &ca, to, (SHOP, "/two"), ("two", 8080))?;
    world.wait(WAIT, &["httproute", "two"], attached)?;

    // Another port of a backend: one route.
    world.apply(&route("other-port", "web", SHOP, "/port", ("one", 8081)).to_string())?;
    answered(&world, &ca, to, (SHOP, "/port"), ("one", 8081))?;
    world.wait(WAIT, &["httproute", "other-port"], attached)?;

    // A domain comes: a listener, which says what it lacks,
    let listeners = [https("shop", SHOP, "shop"), https("bank", BANK, "bank")];
    world.apply(&gateway("web", &listeners).to_string())?;
    let listener = |gateway: &Value, name: &str| {
        let listeners = gateway["status"]["listeners"].as_array();
        let found = listeners.and_then(|all| all.iter().find(|one| one["name"] == name));
        found.cloned().unwrap_or_default()
    };
    world.wait(WAIT, &["gateway", "web"], |gateway| {
        let bank = listener(gateway, "bank");
        let conditions = bank["conditions"].as_array().into_iter().flatten();
        let mut conditions = conditions;
        conditions.any(|one| {
            one["type"] == "ResolvedRefs"
                && one["status"] == "False"
                && one["reason"] == "InvalidCertificateRef"
        }) && holds(
            gateway,
            &listener(gateway, "shop"),
            &["Programmed", "ResolvedRefs"],
        )
    })?;
    // its certificate,
    world.apply(&secret(&secrets, "bank", &[BANK])?.to_string())?;
    world.wait(WAIT, &["gateway", "web"], |gateway| {
        let bank = listener(gateway, "bank");
        holds(gateway, &bank, &["Accepted", "Programmed", "ResolvedRefs"])
            && bank["attachedRoutes"] == 0
    })?;
    // and a route.
    world.apply(&route("bank", "web", BANK, "/", ("two", 8080)).to_string())?;
    answered(&world, &ca, to, (BANK, "/"), ("two", 8080))?;
    world.wait(WAIT, &["httproute", "bank"], attached)?;
    world.wait(WAIT, &["gateway", "web"], |gateway| {
        programmed(gateway)
            && listener(gateway, "bank")["attachedRoutes"] == 1
            && listener(gateway, "shop")["attachedRoutes"] == 3
    })?;

    // What was there before has noticed nothing, and nobody else answered.
    let report = flawless(client)?;
    ensure!(report.answers.keys().eq(["one"]), "{report:?}");
    Ok(())
}

/// The platform of the tests of addresses: gateways of two classes beside the usual one.
const PLATFORM: &str = "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec:
  gateways:
    addressPools: [198.19.0.0/19, '2001:2:0:f000::/64']
    classes:
      - { name: nodes, addresses: Nodes }
      - { name: balanced, addresses: LoadBalancer }
      - name: edge
        addresses: LoadBalancer
        loadBalancer:
          class: example.org/edge
          annotations: { example.org/pool: public }
          externalTrafficPolicy: Cluster
";

fn class(name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GatewayClass",
        "metadata": { "name": name },
        "spec": {
            "controllerName": "cardinal.dev/gateway-controller",
            "parametersRef": { "group": "cardinal.dev", "kind": "Platform", "name": "platform" },
        },
    })
}

fn of_class(class: &str, mut gateway: Value) -> Value {
    gateway["spec"]["gatewayClassName"] = json!(class);
    gateway
}

/// Waits until plain requests to an address are answered by a pod.
fn reached(world: &World, to: SocketAddr, by: &str) -> Result<()> {
    let end = Instant::now() + WAIT;
    loop {
        let url = format!("http://{to}/");
        let arguments = ["--header", "host: shop.example.org", &url];
        let page = curl(world.outside("curl"), Duration::from_secs(5), &arguments)?;
        if page.json()["name"] == by {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{to} is {page:?}");
        std::thread::sleep(PAUSE);
    }
}

#[test]
fn kube_gateways_have_the_addresses_of_nodes_and_of_load_balancers() -> Result<()> {
    let world = up(2)?;
    world.apply(PLATFORM)?;
    world.apply(&together(&["nodes", "balanced", "edge"].map(class)))?;
    for name in ["nodes", "balanced", "edge"] {
        world.wait(WAIT, &["gatewayclass", name], |class| {
            holds(class, &class["status"], &["Accepted"])
        })?;
    }

    // On every node's own addresses, at a port that no other gateway has there.
    world.apply(&together(&[
        of_class("nodes", gateway("nodes", &[http("http", 8000)])),
        route("nodes", "nodes", SHOP, "/", ("one", 8080)),
    ]))?;
    let nodes = world.wait(WAIT, &["gateway", "nodes"], programmed)?;
    let listed = nodes["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    ensure!(
        listed.len() == 4,
        "two nodes have two addresses each: {listed:?}"
    );
    for address in &listed {
        let address = address["value"]
            .as_str()
            .context("an address has no value")?;
        reached(&world, SocketAddr::new(address.parse()?, 8000), "one")?;
    }
    let more = [http("same", 8000), http("shell", 22), http("free", 8001)];
    // Of two that were made within a second the one whose name comes first has it.
    world.apply(&of_class("nodes", gateway("others", &more)).to_string())?;
    world.wait(WAIT, &["gateway", "others"], |gateway| {
        let listeners = gateway["status"]["listeners"].as_array();
        let reason = |name: &str| {
            let mut listeners = listeners.into_iter().flatten();
            let found = listeners.find(|one| one["name"] == name)?;
            let mut conditions = found["conditions"].as_array()?.iter();
            conditions.find(|one| one["type"] == "Accepted")?["reason"].as_str()
        };
        reason("same") == Some("PortUnavailable")
            && reason("shell") == Some("PortUnavailable")
            && reason("free") == Some("Accepted")
    })?;

    // Behind a load balancer that the world has: the leader makes its service, and listens where that leads.
    world.apply(&together(&[
        of_class("balanced", gateway("balanced", &[http("http", 80)])),
        route("balanced", "balanced", SHOP, "/", ("two", 8080)),
    ]))?;
    let to = address(&world, "balanced", 80)?;
    reached(&world, to, "two")?;
    let services = ["services", "--namespace", AGENT_NAMESPACE];
    let of = |services: &Value, name: &str| {
        let mut items = services["items"].as_array().into_iter().flatten();
        let found = items.find(|one| {
            one["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] == name
        });
        found.cloned()
    };
    let found = world.wait(WAIT, &services, |services| {
        of(services, "balanced").is_some_and(|one| {
            let port = &one["spec"]["ports"][0];
            port["targetPort"] == port["nodePort"]
        })
    })?;
    let balanced = of(&found, "balanced").context("the service went")?;
    assert_eq!(balanced["spec"]["externalTrafficPolicy"], "Local");
    assert_eq!(
        balanced["status"]["loadBalancer"]["ingress"][0]["ip"],
        to.ip().to_string()
    );
    // What balancers outside of the cluster use: the port of each node. The client's address stays as it is.
    let port = balanced["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .context("no port of nodes")?;
    for node in ["198.19.255.1", "198.19.255.2"] {
        reached(
            &world,
            SocketAddr::new(node.parse()?, port.try_into()?),
            "two",
        )?;
    }

    // Where it asks a node whether it takes what it brings: the node's agent answers, as nobody else does.
    let asked = &balanced["spec"]["healthCheckNodePort"];
    let asked: u16 = asked.as_u64().context("no port to ask at")?.try_into()?;
    let said = json!({
        "service": { "namespace": AGENT_NAMESPACE, "name": balanced["metadata"]["name"] },
        "localEndpoints": 1,
        "serviceProxyHealthy": true,
    });
    for node in ["198.19.255.1", "198.19.255.2", "[2001:2:0:ff::1]"] {
        let url = format!("http://{node}:{asked}/healthz");
        let end = Instant::now() + WAIT;
        loop {
            let page = curl(world.outside("curl"), Duration::from_secs(5), &[&url])?;
            if page.status == 200 && page.json() == said {
                break;
            }
            ensure!(Instant::now() < end, "{url} is {page:?}");
            std::thread::sleep(PAUSE);
        }
    }

    // Behind one that somebody else plays: it is told what to do, and says under which name it does it.
    world.apply(&together(&[
        of_class(
            "edge",
            gateway("edge", &[http("http", 80), http("other", 81)]),
        ),
        route("edge", "edge", SHOP, "/", ("one", 8080)),
    ]))?;
    let found = world.wait(WAIT, &services, |services| of(services, "edge").is_some())?;
    let edge = of(&found, "edge").context("the service went")?;
    assert_eq!(edge["spec"]["loadBalancerClass"], "example.org/edge");
    assert_eq!(edge["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(
        edge["metadata"]["annotations"]["example.org/pool"],
        "public"
    );
    assert_eq!(edge["metadata"]["ownerReferences"][0]["name"], "edge");
    world.wait(WAIT, &["gateway", "edge"], |gateway| {
        let mut conditions = gateway["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten();
        conditions.any(|one| one["type"] == "Programmed" && one["reason"] == "AddressNotAssigned")
    })?;
    let name = edge["metadata"]["name"]
        .as_str()
        .context("it has no name")?;
    let patch = r#"{"status":{"loadBalancer":{"ingress":[{"hostname":"edge.example.org"}]}}}"#;
    let mut give = world.kubectl(&["patch", "service", name, "--namespace", AGENT_NAMESPACE]);
    output(give.args([
        "--subresource",
        "status",
        "--type",
        "merge",
        "--patch",
        patch,
    ]))?;
    let edge = world.wait(WAIT, &["gateway", "edge"], programmed)?;
    assert_eq!(
        edge["status"]["addresses"],
        json!([{ "type": "Hostname", "value": "edge.example.org" }])
    );

    // What nobody needs goes, and nothing else.
    world.delete(&["gateway", "edge"])?;
    world.wait(WAIT, &services, |services| {
        of(services, "edge").is_none() && of(services, "balanced").is_some()
    })?;
    reached(&world, to, "two")?;
    Ok(())
}

/// What HTTP/3 of an address says.
fn by_http3(world: &World, ca: &Path, to: SocketAddr) -> Result<Outcome> {
    let mut command = world.outside(Programs::locate()?.peer);
    command.args(["http3", "--to", &to.to_string(), "--host", SHOP, "--ca"]);
    let said = output(command.arg(ca))?;
    Ok(serde_json::from_str(said.trim())?)
}

#[test]
fn kube_http3_behind_a_load_balancer_has_ports_of_udp() -> Result<()> {
    let world = up(2)?;
    let envoy = "gateway.envoyproxy.io";
    let policies = (
        envoy,
        "v1alpha1",
        "clienttrafficpolicies",
        "ClientTrafficPolicy",
        true,
    );
    world.apply(&definition(policies).to_string())?;
    world.apply(PLATFORM)?;
    world.apply(&class("balanced").to_string())?;
    let dir = tempfile::tempdir()?;
    let secrets = Secrets::make(dir.path())?;
    let ca = secrets.ca();
    let policy = |spec: Value| {
        let mut spec = spec;
        spec["targetRefs"] =
            json!([{ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "quick" }]);
        json!({
            "apiVersion": format!("{envoy}/v1alpha1"),
            "kind": "ClientTrafficPolicy",
            "metadata": { "name": "quick", "namespace": "default" },
            "spec": spec,
        })
    };
    world.apply(&together(&[
        secret(&secrets, "shop", &[SHOP])?,
        of_class("balanced", gateway("quick", &[https("shop", SHOP, "shop")])),
        route("quick", "quick", SHOP, "/", ("one", 8080)),
        policy(json!({ "http3": {} })),
    ]))?;

    // A port for datagrams beside that of TCP, and agents listen where each of them leads.
    let services = ["services", "--namespace", AGENT_NAMESPACE];
    let ports = |services: &Value| -> Vec<Value> {
        let mut items = services["items"].as_array().into_iter().flatten();
        let found = items.find(|one| {
            one["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] == "quick"
        });
        let ports = found.and_then(|one| one["spec"]["ports"].as_array());
        ports.cloned().unwrap_or_default()
    };
    let of = |ports: &[Value], protocol: &str| {
        let mut ports = ports.iter();
        let found = ports.find(|one| one["protocol"] == protocol && one["port"] == 443);
        found.cloned()
    };
    let found = world.wait(WAIT, &services, |services| {
        let ports = ports(services);
        ports.len() == 2 && ports.iter().all(|one| one["targetPort"] == one["nodePort"])
    })?;
    let both = ports(&found);
    let udp = of(&both, "UDP").context("no port of UDP")?;
    of(&both, "TCP").context("no port of TCP")?;
    assert_eq!(udp["name"], "udp-443");

    let to = address(&world, "quick", 443)?;
    let port = udp["nodePort"].as_u64().context("no port of nodes")?;
    let port = u16::try_from(port)?;
    for to in [to, SocketAddr::new("198.19.255.2".parse()?, port)] {
        let end = Instant::now() + WAIT;
        loop {
            let outcome = by_http3(&world, &ca, to)?;
            if outcome.detail == "200" {
                let answer: Value = serde_json::from_str(&outcome.answer)?;
                assert_eq!(answer["name"], "one");
                break;
            }
            ensure!(Instant::now() < end, "{to}: {outcome:?}");
            std::thread::sleep(PAUSE);
        }
    }

    // Clients are told of the port that they use, which is not the one of the nodes.
    let page = get(&world, &ca, to, SHOP, "/")?;
    assert_eq!(page.header("alt-svc"), "h3=\":443\"; ma=86400");
    let mut status = world.on_node("node-1", "curl");
    let status = output(status.args(["--silent", "http://127.0.0.1:9901/debug/status"]))?;
    let status: Value = serde_json::from_str(&status)?;
    let mut listeners = status["listeners"].as_array().into_iter().flatten();
    let listener = listeners.find(|one| one["gateway"] == "default/quick");
    let listener = listener.context("the status has no such listener")?;
    assert_eq!(listener["protocol"], "HTTPS, HTTP/3");

    // Without it the port goes, and HTTPS stays.
    world.apply(&policy(json!({ "http2": {} })).to_string())?;
    world.wait(WAIT, &services, |services| {
        let ports = ports(services);
        of(&ports, "UDP").is_none() && of(&ports, "TCP").is_some()
    })?;
    let end = Instant::now() + WAIT;
    while by_http3(&world, &ca, to)?.outcome == "answer" {
        ensure!(Instant::now() < end, "HTTP/3 does not go");
    }
    let page = get(&world, &ca, to, SHOP, "/")?;
    assert_eq!((page.status, page.header("alt-svc")), (200, ""));
    Ok(())
}
