//! Pods that answer and pods that ask, on two nodes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tests::{
    http::curl,
    kube::{
        Setup, World,
        pods::{Inside, ready, serving},
    },
    peer::Outcome,
    programs::Programs,
    world::output,
};

pub(crate) const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
/// Requests after which a fair choice between two has shown both: it fails once in 2^39 times.
const MANY: usize = 40;

/// Pods that answer, and the insides of those that ask.
pub(crate) struct Scene {
    pub(crate) world: World,
    programs: Programs,
    /// On the first node, on the second, and on the first node's own network.
    pub(crate) first: Inside,
    pub(crate) second: Inside,
    pub(crate) host: Inside,
}

impl Scene {
    /// With the agent on both nodes.
    pub(crate) fn up() -> Result<Self> {
        let scene = Self::without_agent()?;
        scene.world.deploy_agent(WAIT)?;
        Ok(scene)
    }

    pub(crate) fn without_agent() -> Result<Self> {
        let world = World::up(&Setup {
            nodes: 2,
            cluster_ips: true,
            ..Setup::default()
        })?;
        for (node, zone) in [("node-1", "east"), ("node-2", "west")] {
            let label = format!("topology.kubernetes.io/zone={zone}");
            output(&mut world.kubectl(&["label", "node", node, &label]))?;
        }
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
    pub(crate) fn service(&self, name: &str, more: &Value) -> Result<Vec<IpAddr>> {
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
    pub(crate) fn ask(&self, from: &Inside, address: IpAddr) -> Result<String> {
        let url = format!("http://{}/", SocketAddr::new(address, 80));
        let page = curl(from.run("curl"), Duration::from_secs(3), &[&url])?;
        Ok(match page.json()["name"].as_str() {
            Some(name) => name.to_owned(),
            None => page.outcome(),
        })
    }

    /// Everybody who answers many requests.
    pub(crate) fn all(&self, from: &Inside, address: IpAddr) -> Result<BTreeSet<String>> {
        (0..MANY).map(|_| self.ask(from, address)).collect()
    }

    /// Waits until these answer many requests, and nobody else.
    pub(crate) fn answers(&self, from: &Inside, address: IpAddr, expected: &[&str]) -> Result<()> {
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

    /// Waits until one request ends so: a timeout is long to wait for.
    pub(crate) fn answers_once(
        &self,
        from: &Inside,
        address: IpAddr,
        expected: &str,
    ) -> Result<()> {
        let end = Instant::now() + WAIT;
        loop {
            let found = self.ask(from, address)?;
            if found == expected {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{address} is answered by {found}, not by {expected}");
            }
        }
    }

    /// Makes a cell of the pods that answer at `web` and of those that ask, and waits until it is enforced.
    pub(crate) fn cell(&self) -> Result<()> {
        let selecting = |app: &str| json!({ "selector": { "matchLabels": { "app": app } } });
        let cell = json!({
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
                        "workloads": selecting("web"),
                        "endpoints": [
                            { "name": "a", "type": "TCP", "port": 8080 },
                            { "name": "b", "type": "TCP", "port": 8090 },
                        ],
                    },
                    { "name": "client", "workloads": selecting("client") },
                ],
            },
        });
        self.world.apply(&cell.to_string())?;
        self.world.wait(WAIT, &["cell", "shop"], |cell| {
            let conditions = cell["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().all(|one| one["status"] == "True"))
        })?;
        Ok(())
    }

    /// What `peer` says, asked in a pod.
    pub(crate) fn peer(&self, from: &Inside, arguments: &[&str]) -> Result<Outcome> {
        let text = output(from.run(&self.programs.peer).args(arguments))?;
        serde_json::from_str(&text).with_context(|| format!("the peer said `{text}`"))
    }
}
