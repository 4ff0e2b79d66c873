//! kube-proxy and the agent on the same nodes.

use std::{
    fs::File,
    net::SocketAddr,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{
    http::curl,
    kube::{
        World,
        pods::{ready, serving},
    },
};

use crate::scene::{Scene, WAIT};

/// kube-proxy on a node, until this is dropped. Its rules stay.
struct KubeProxy(Child);

impl KubeProxy {
    fn start(world: &World, node: &str) -> Result<Self> {
        let log = File::create(world.state().join(format!("kube-proxy-{node}.log")))?;
        let mut run = world.script("peers/kube-proxy/run");
        run.arg(node)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self(run.spawn().context("failed to start kube-proxy")?))
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("kube-proxy was not ended: {error}");
        }
    }
}

#[test]
fn kube_services_work_beside_kube_proxy_for_pods_that_are_judged_and_others() -> Result<()> {
    let scene = Scene::without_agent()?;
    let Scene {
        world,
        first,
        second,
        host,
        ..
    } = &scene;
    // Of no cell: one who asks, and one who answers.
    for (name, node) in [("stranger", "node-1"), ("free", "node-2")] {
        let pod = serving(name, node, name, &[("web", 8080)], &["--http", "[::]:8080"]);
        world.apply(&pod.to_string())?;
        world.wait(WAIT, &["pod", name], ready)?;
    }
    let stranger = &world.inside("default", "stranger")?;
    let web = scene.service("web", &json!({}))?;
    let free = json!({ "type": "NodePort", "selector": { "app": "free" } });
    let free = scene.service("free", &free)?;
    ensure!(web.len() == 2 && free.len() == 2, "{web:?} {free:?}");

    // kube-proxy alone.
    let proxies = ["node-1", "node-2"].map(|node| KubeProxy::start(world, node));
    let _proxies = proxies.into_iter().collect::<Result<Vec<_>>>()?;
    for address in &web {
        for from in [first, second, host, stranger] {
            scene.answers(from, *address, &["a", "b"])?;
        }
    }

    // Both.
    world.deploy_agent(WAIT)?;
    for (web, free) in web.iter().zip(&free) {
        for from in [first, second, host, stranger] {
            scene.answers(from, *web, &["a", "b"])?;
            scene.answers_once(from, *free, "free")?;
        }
    }
    scene.cell()?;
    for (web, free) in web.iter().zip(&free) {
        // Who is judged reaches its own cell by the service's address, and nobody else.
        for from in [first, second] {
            scene.answers(from, *web, &["a", "b"])?;
            scene.answers_once(from, *free, "timeout")?;
        }
        // Who is not reaches others, and not the cell.
        scene.answers_once(stranger, *free, "free")?;
        scene.answers_once(host, *free, "free")?;
        scene.answers_once(stranger, *web, "timeout")?;
    }

    // Ports of nodes are kube-proxy's, at both nodes.
    let service = world.get(&["service", "free"])?;
    let port = service["spec"]["ports"][0]["nodePort"].as_u64();
    let port: u16 = port.context("it has no port of nodes")?.try_into()?;
    for node in ["198.19.255.1", "198.19.255.2"] {
        let to = SocketAddr::new(node.parse()?, port);
        let url = format!("http://{to}/");
        let end = Instant::now() + WAIT;
        loop {
            let page = curl(world.outside("curl"), Duration::from_secs(5), &[&url])?;
            if page.json()["name"] == "free" {
                break;
            }
            ensure!(Instant::now() < end, "{url} is {page:?}");
        }
    }
    Ok(())
}
