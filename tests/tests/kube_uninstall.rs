//! The commands of deploy/README.md, as they are printed: an agent on every node, and then nothing of it.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    http::curl,
    kube::{
        AGENT_NAMESPACE, Setup, World,
        manifests::{attached, gateway, http, programmed, route, service, together},
        pods::{ready, serving},
        remains::same,
        root,
        shell::blocks,
    },
    peer::Outcome,
    programs::Programs,
};

const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
const HOST: &str = "shop.example.org";
const NODES: [&str; 2] = ["node-1", "node-2"];
/// The name that images have where nodes pull them.
const REGISTRY: &str = "registry.example.org";

/// What installs, and what removes the objects.
#[derive(Clone, Copy, Debug)]
enum By {
    Kustomize,
    Helm,
}

struct Scene {
    world: World,
    /// The repository, as far as the commands need it.
    folder: tempfile::TempDir,
    readme: String,
    by: By,
    before: Vec<BTreeSet<String>>,
}

impl Scene {
    /// Pods on two nodes that have never seen an agent.
    fn up(by: By) -> Result<Self> {
        let world = World::up(&Setup {
            nodes: 2,
            cluster_ips: true,
            ..Setup::default()
        })?;
        let folder = tempfile::tempdir()?;
        let copied = Command::new("cp")
            .arg("--recursive")
            .arg(root().join("deploy"))
            .arg(folder.path())
            .status()?;
        ensure!(copied.success(), "deploy/ was not copied");
        let arguments = ["--http", "[::]:8080", "--tcp", "[::]:7000"];
        world.apply(&together(&[
            serving("one", "node-1", "one", &[], &arguments),
            serving("two", "node-2", "two", &[], &arguments),
            serving("stranger", "node-2", "stranger", &[], &arguments),
            service("two", "two", &[8080]),
        ]))?;
        for pod in ["one", "two", "stranger"] {
            world.wait(WAIT, &["pod", pod], ready)?;
        }
        let before = NODES.map(|node| settled(&world, node));
        Ok(Self {
            before: before.into_iter().collect::<Result<_>>()?,
            readme: fs::read_to_string(root().join("deploy/README.md"))?,
            folder,
            world,
            by,
        })
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Plays a block of commands below a heading.
    fn play(&self, heading: &str, block: usize) -> Result<String> {
        let blocks = blocks(&self.readme, heading)?;
        let script = blocks.get(block).context("the document has fewer blocks")?;
        self.world
            .shell(self.folder(), &script.replace("REGISTRY", REGISTRY))
    }

    fn install(&self) -> Result<()> {
        // The first block fetches the Gateway API, which the world has.
        let block = match self.by {
            By::Kustomize => 1,
            By::Helm => 2,
        };
        let said = self.play("## Install", block)?;
        ensure!(said.contains("successfully rolled out"), "{said}");
        Ok(())
    }

    /// The commands that make nodes plain, and those that remove the objects. Gives what was printed.
    fn remove(&self) -> Result<String> {
        let nodes = self.play("## Remove", 0)?;
        let block = match self.by {
            By::Kustomize => 1,
            By::Helm => 2,
        };
        Ok(nodes + &self.play("## Remove", block)?)
    }

    /// Whether a pod answers another one.
    fn reaches(&self, from: &str, to: &str) -> Result<bool> {
        let pod = self.world.get(&["pod", to])?;
        let address = pod["status"]["podIP"].as_str().context("no address")?;
        let mut call = self.world.script("enter");
        call.args(["--pod", &format!("default/{from}")]);
        call.arg(Programs::locate()?.peer);
        call.args(["tcp", "--timeout-ms", "1000", "--to"]);
        let output = call.arg(format!("{address}:7000")).output()?;
        let outcome: Outcome = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(outcome.outcome == "answer")
    }

    fn becomes(&self, what: &str, holds: impl Fn() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + WAIT;
        while !holds()? {
            ensure!(Instant::now() < end, "{what}: not within the time");
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

/// A node when the addresses of its interfaces are its own.
fn settled(world: &World, node: &str) -> Result<BTreeSet<String>> {
    let end = Instant::now() + WAIT;
    loop {
        let found = world.remains(node)?;
        if !found.iter().any(|line| line.contains("tentative")) {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "addresses of {node} stay tentative");
        std::thread::sleep(PAUSE);
    }
}

/// A cell of one pod that nobody may speak to, and that may call a name outside, which takes a policy route.
fn cell() -> Value {
    json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Cell",
        "metadata": { "name": "shop", "namespace": "default" },
        "spec": {
            "organization": "acme",
            "project": "shop",
            "environment": "prod",
            "components": [{ "name": "web", "workloads": { "selector": { "matchLabels": { "app": "one" } } } }],
            "egress": { "south": [{ "name": "pay", "hosts": ["api.pay.test"], "port": 443, "protocol": "TLS" }] },
        },
    })
}

const PLATFORM: &str = "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec: { gateways: { addressPools: [198.19.0.0/19, '2001:2:0:f000::/64'] } }
";

fn comes_and_goes(by: By) -> Result<()> {
    let scene = Scene::up(by)?;
    let world = &scene.world;
    ensure!(scene.reaches("stranger", "one")?, "nothing is there yet");

    scene.install()?;
    world.apply(PLATFORM)?;
    world.apply(&together(&[
        cell(),
        gateway("web", &[http("http", 80)]),
        route("two", "web", HOST, "/", ("two", 8080)),
    ]))?;
    let web = world.wait(WAIT, &["gateway", "web"], programmed)?;
    world.wait(WAIT, &["httproute", "two"], attached)?;
    let address = web["status"]["addresses"][0]["value"].as_str();
    let to = SocketAddr::new(address.context("no address")?.parse()?, 80);
    let asks = || {
        let url = format!("http://{to}/");
        let host = format!("host: {HOST}");
        curl(
            world.outside("curl"),
            Duration::from_secs(3),
            &["--header", &host, &url],
        )
    };
    scene.becomes(
        "the gateway answers",
        || Ok(asks()?.json()["name"] == "two"),
    )?;
    scene.becomes("the cell is closed", || {
        Ok(!scene.reaches("stranger", "one")?)
    })?;
    let came = |node: usize| -> Result<BTreeSet<String>> {
        let now = world.remains(NODES[node])?;
        Ok(now.difference(&scene.before[node]).cloned().collect())
    };
    for (node, kinds) in [
        (
            0,
            &[
                "fwmark",
                "cell_egress",
                "connect4",
                "sk_lookup",
                "/agent.lock",
            ][..],
        ),
        (1, &["connect4", "sk_lookup", "/agent.lock"]),
    ] {
        let came = came(node)?;
        for kind in kinds {
            ensure!(
                came.iter().any(|line| line.contains(kind)),
                "{kind} of an agent is not seen on {}: {came:?}",
                NODES[node]
            );
        }
    }

    let said = scene.remove()?;
    for part in [
        "removed  hook listen_",
        "removed  file /node/var/lib/cardinal/agent.lock",
    ] {
        ensure!(said.matches(part).count() == NODES.len(), "{part}: {said}");
    }
    ensure!(!said.contains("FAILED"), "{said}");
    for (node, before) in NODES.iter().zip(&scene.before) {
        same(node, before, &settled(world, node)?)?;
    }
    ensure!(
        scene.reaches("stranger", "one")?,
        "a plain node denies nothing"
    );
    ensure!(scene.reaches("one", "two")?, "a plain node denies nothing");
    ensure!(asks()?.status == 0, "a gateway still answers");

    for gone in [
        &["namespace", AGENT_NAMESPACE][..],
        &["clusterrole", "cardinal-agent"],
        &["clusterrole", "cardinal-view"],
        &["clusterrolebinding", "cardinal-agent"],
        &["gatewayclass", "cardinal"],
    ] {
        ensure!(world.get(gone).is_err(), "{gone:?} is still there");
    }
    let two = world.get(&["httproute", "two"])?;
    assert_eq!(two["status"]["parents"], json!([]), "{two}");
    // Documents are the cluster's: they and their definitions stay until somebody says otherwise.
    world.get(&["cell", "shop"])?;
    Ok(())
}

#[test]
fn kube_what_the_kustomization_brought_goes_without_a_trace() -> Result<()> {
    comes_and_goes(By::Kustomize)
}

#[test]
fn kube_what_the_chart_brought_goes_without_a_trace() -> Result<()> {
    comes_and_goes(By::Helm)
}
