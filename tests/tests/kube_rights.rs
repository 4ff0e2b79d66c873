//! Agents ask for nothing that they may not have, and may have nothing that they do not ask for.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::kube::{
    AGENT_NAMESPACE, Setup, World,
    manifests::{definition, gateway, http, programmed, route, service, together},
    rights::{Misfits, rights},
};

const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(500);
/// Until every kind is followed that came while the agents ran.
const FOLLOWED: Duration = Duration::from_secs(180);

const GATEWAY: &str = "gateway.networking.k8s.io";
const ENVOY: &str = "gateway.envoyproxy.io";

/// Kinds of others that a cluster may have, in the version, scope and spelling that they have there: plural, kind, and whether their
/// objects are in namespaces.
const OTHERS: [(&str, &str, &str, &str, bool); 7] = [
    (
        ENVOY,
        "v1alpha1",
        "securitypolicies",
        "SecurityPolicy",
        true,
    ),
    (
        ENVOY,
        "v1alpha1",
        "clienttrafficpolicies",
        "ClientTrafficPolicy",
        true,
    ),
    (
        ENVOY,
        "v1alpha1",
        "backendtrafficpolicies",
        "BackendTrafficPolicy",
        true,
    ),
    (
        ENVOY,
        "v1alpha1",
        "httproutefilters",
        "HTTPRouteFilter",
        true,
    ),
    (ENVOY, "v1alpha1", "backends", "Backend", true),
    (
        "cilium.io",
        "v2",
        "ciliumnetworkpolicies",
        "CiliumNetworkPolicy",
        true,
    ),
    (
        "cilium.io",
        "v2",
        "ciliumclusterwidenetworkpolicies",
        "CiliumClusterwideNetworkPolicy",
        false,
    ),
];

const PLATFORM: &str = "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec:
  gateways:
    addressPools: [198.19.0.0/19, '2001:2:0:f000::/64']
    classes: [{ name: balanced, addresses: LoadBalancer }]
";

fn object(version: &str, kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": version,
        "kind": kind,
        "metadata": { "name": name, "namespace": "default" },
        "spec": spec,
    })
}

/// A route of the gateway `web` to the service `one`.
fn l4_route(kind: &str, listener: &str, more: &Value) -> Value {
    let mut spec = json!({
        "parentRefs": [{ "name": "web", "sectionName": listener }],
        "rules": [{ "backendRefs": [{ "name": "one", "port": 8080 }] }],
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        spec[field] = value.clone();
    }
    object(&format!("{GATEWAY}/v1"), kind, "one", &spec)
}

fn cell(name: &str, address: &str) -> Value {
    let component = json!({ "name": "web", "workloads": { "addresses": [address] } });
    let spec = json!({ "organization": "acme", "project": name, "environment": "prod", "components": [component] });
    object("cardinal.dev/v1alpha1", "Cell", name, &spec)
}

/// A policy of the cluster, which has no namespace.
fn clusterwide() -> Value {
    json!({
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": { "name": "one" },
        "spec": { "endpointSelector": { "matchLabels": { "app": "none" } }, "ingress": [] },
    })
}

/// One object of every kind that is answered, in whose status something is said then, but those that the agents come with.
fn answered() -> Vec<(&'static str, Value)> {
    let v1 = format!("{GATEWAY}/v1");
    let envoy = format!("{ENVOY}/v1alpha1");
    let mut web = gateway(
        "web",
        &[
            http("http", 80),
            json!({
                "name": "tls", "port": 8443, "protocol": "TLS", "hostname": "tls.example.org", "tls": { "mode": "Passthrough" },
            }),
            json!({ "name": "tcp", "port": 9000, "protocol": "TCP" }),
            json!({ "name": "udp", "port": 9001, "protocol": "UDP" }),
        ],
    );
    web["spec"]["allowedListeners"] = json!({ "namespaces": { "from": "Same" } });
    let target = |group: &str, kind: &str, name: &str| json!([{ "group": group, "kind": kind, "name": name }]);
    let table = json!({
        "version": "1",
        "key": { "header": "x-key" },
        "placements": { "tier1": { "url": "http://192.0.2.9:80" } },
        "defaultPlacement": "tier1",
    });
    vec![
        ("gateway", web),
        (
            "listenerset",
            object(
                &v1,
                "ListenerSet",
                "one",
                &json!({
                    "parentRef": { "name": "web" }, "listeners": [{ "name": "more", "port": 8081, "protocol": "HTTP" }],
                }),
            ),
        ),
        (
            "httproute",
            route("one", "web", "http.example.org", "/", ("one", 8080)),
        ),
        (
            "grpcroute",
            l4_route(
                "GRPCRoute",
                "http",
                &json!({ "hostnames": ["grpc.example.org"] }),
            ),
        ),
        (
            "tlsroute",
            l4_route(
                "TLSRoute",
                "tls",
                &json!({ "hostnames": ["tls.example.org"] }),
            ),
        ),
        ("tcproute", l4_route("TCPRoute", "tcp", &json!({}))),
        ("udproute", l4_route("UDPRoute", "udp", &json!({}))),
        (
            "backendtlspolicy",
            object(
                &v1,
                "BackendTLSPolicy",
                "one",
                &json!({
                    "targetRefs": target("", "Service", "one"),
                    "validation": { "hostname": "one.example.org", "wellKnownCACertificates": "System" },
                }),
            ),
        ),
        (
            "securitypolicy",
            object(
                &envoy,
                "SecurityPolicy",
                "one",
                &json!({
                    "targetRefs": target(GATEWAY, "HTTPRoute", "one"), "cors": { "allowOrigins": ["https://example.org"] },
                }),
            ),
        ),
        (
            "clienttrafficpolicy",
            object(
                &envoy,
                "ClientTrafficPolicy",
                "one",
                &json!({
                    "targetRefs": target(GATEWAY, "Gateway", "web"), "timeout": { "http": { "requestReceivedTimeout": "10s" } },
                }),
            ),
        ),
        (
            "backendtrafficpolicy",
            object(
                &envoy,
                "BackendTrafficPolicy",
                "one",
                &json!({
                    "targetRefs": target(GATEWAY, "HTTPRoute", "one"), "timeout": { "http": { "requestTimeout": "10s" } },
                }),
            ),
        ),
        (
            "ciliumnetworkpolicy",
            object(
                "cilium.io/v2",
                "CiliumNetworkPolicy",
                "one",
                &json!({ "endpointSelector": { "matchLabels": { "app": "none" } }, "ingress": [] }),
            ),
        ),
        ("ciliumclusterwidenetworkpolicy", clusterwide()),
        ("cell", cell("shop", "192.0.2.7")),
        (
            "routingtable",
            object("cardinal.dev/v1alpha1", "RoutingTable", "one", &table),
        ),
    ]
}

/// Whether one of our agents has said something in a status.
fn is_answered(object: &Value) -> bool {
    let status = &object["status"];
    let ours = |list: &str| {
        let entries = status[list].as_array().into_iter().flatten();
        let mut entries = entries;
        entries.any(|one| one["controllerName"] == "cardinal.dev/gateway-controller")
    };
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut conditions = conditions;
    // The definitions of gateways and classes put a condition into a new status, about no generation, and `Valid` has none.
    let told = conditions.any(|one| {
        one["observedGeneration"] == object["metadata"]["generation"] || one["type"] == "Valid"
    });
    told || ours("parents") || ours("ancestors")
}

/// Who holds the lease, and when it was renewed last.
fn lease(lease: &Value) -> Option<(&str, &str)> {
    let holder = lease["spec"]["holderIdentity"].as_str();
    let holder = holder.filter(|name| !name.is_empty())?;
    Some((holder, lease["spec"]["renewTime"].as_str()?))
}

/// Everything that an agent is there for, once.
fn meet_everything(world: &World) -> Result<()> {
    world.deploy_agent(WAIT)?;
    let definitions = OTHERS.map(definition);
    world.apply(&together(&definitions))?;
    for definition in &definitions {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        world.wait(WAIT, &["crd", name], |crd| {
            crd["status"]["acceptedNames"]["plural"].is_string()
        })?;
    }
    world.apply(PLATFORM)?;
    let objects = answered();
    let documents = objects.iter().map(|(_, document)| document);
    // Served a moment after they are defined.
    let end = Instant::now() + WAIT;
    while let Err(error) = world.apply(&together(documents.clone())) {
        ensure!(Instant::now() < end, error);
        std::thread::sleep(PAUSE);
    }
    world.apply(&service("one", "one", &[8080]).to_string())?;
    for (kind, document) in &objects {
        let name = document["metadata"]["name"].as_str().unwrap_or_default();
        world.wait(WAIT, &[kind, name], is_answered)?;
    }
    world.wait(WAIT, &["gatewayclass", "cardinal"], is_answered)?;
    world.wait(WAIT, &["platform", "platform"], is_answered)?;

    // What only looks like an address is for the agent to see, and to tell in an event.
    world.apply(&cell("bank", "10.1.0.999").to_string())?;
    world.wait(WAIT, &["events.events.k8s.io"], |events| {
        let mut events = events["items"].as_array().into_iter().flatten();
        events.any(|event| event["regarding"]["name"] == "bank")
    })?;

    // A gateway behind a load balancer comes, changes and goes.
    world.apply(
        &json!({
            "apiVersion": format!("{GATEWAY}/v1"),
            "kind": "GatewayClass",
            "metadata": { "name": "balanced" },
            "spec": { "controllerName": "cardinal.dev/gateway-controller" },
        })
        .to_string(),
    )?;
    let services = ["services", "--namespace", AGENT_NAMESPACE];
    let ports = |services: &Value| {
        let ports = services["items"][0]["spec"]["ports"].as_array();
        ports.map_or(0, Vec::len)
    };
    let mut balanced = gateway("balanced", &[http("http", 80)]);
    balanced["spec"]["gatewayClassName"] = json!("balanced");
    world.apply(&balanced.to_string())?;
    world.wait(WAIT, &["gateway", "balanced"], programmed)?;
    world.wait(WAIT, &services, |services| ports(services) == 1)?;
    balanced["spec"]["listeners"] = json!([http("http", 80), http("more", 81)]);
    world.apply(&balanced.to_string())?;
    world.wait(WAIT, &services, |services| ports(services) == 2)?;
    world.delete(&["gateway", "balanced"])?;
    world.wait(WAIT, &services, |services| {
        services["items"].as_array().is_some_and(Vec::is_empty)
    })?;

    // The agent that writes status ends, and the next one of its node goes on with the lease, which is the node's.
    let what = ["lease", "cardinal-agent", "--namespace", AGENT_NAMESPACE];
    let before = world.get(&what)?;
    let (first, _) = lease(&before).context("nobody holds the lease")?;
    world.delete(&[
        "pods",
        "--namespace",
        AGENT_NAMESPACE,
        "--field-selector",
        &format!("spec.nodeName={first}"),
    ])?;
    world.agents_ready(WAIT)?;
    let before = world.get(&what)?;
    let (_, renewed) = lease(&before).context("nobody holds the lease")?;
    world.wait(WAIT, &what, |now| {
        lease(now).is_some_and(|(_, again)| again > renewed)
    })?;
    Ok(())
}

#[test]
fn kube_every_right_of_the_agents_is_needed_and_no_call_is_refused() -> Result<()> {
    let world = World::up(&Setup {
        nodes: 2,
        audit: true,
        ..Setup::default()
    })?;
    meet_everything(&world)?;
    let mut ours = rights(&world.get(&["clusterrole", "cardinal-agent"])?)?;
    let role = ["role", "cardinal-agent", "--namespace", AGENT_NAMESPACE];
    ours.extend(rights(&world.get(&role)?)?);
    let end = Instant::now() + FOLLOWED;
    loop {
        let calls = world.calls(AGENT_NAMESPACE, "cardinal-agent")?;
        let misfits = Misfits::of(&ours, &calls);
        if misfits.unused.is_empty() && misfits.refused.is_empty() {
            println!("{} rights, {} calls", ours.len(), calls.len());
            return Ok(());
        }
        ensure!(
            misfits.refused.is_empty() && Instant::now() < end,
            "the roles of deploy/ and the calls of the agents differ:\n{misfits}"
        );
        std::thread::sleep(PAUSE);
    }
}
