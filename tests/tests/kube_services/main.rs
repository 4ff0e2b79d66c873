//! `Service`s of a cluster: who answers at a ClusterIP, seen from pods on two nodes, without kube-proxy and beside it.

mod beside;
mod scene;

use std::{net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use scene::{Scene, WAIT};
use serde_json::json;
use tests::kube::pods::serving;

/// The cluster's name server.
const DNS: &str = "198.19.255.254:53";

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
    scene.cell()?;
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
