//! Two cells as their documents declare them, each on a node of its own: what passes in each of the four directions, and what does not.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    http::curl,
    kube::{
        Setup, World,
        manifests::{programmed, together},
        pods::serving,
    },
    peer::Outcome,
    programs::Programs,
};

const WAIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);
/// The API server, which is outside of the cells and of the nodes.
const OUTSIDE: &str = "https://198.19.255.254:6443/version";

/// Hosts of the gates: the last label says which gate.
const PLATFORM: &str = "
apiVersion: v1
kind: Namespace
metadata: { name: platform }
---
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Namespace
metadata: { name: bank }
---
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec:
  environments: [{ name: prod, dnsPrefix: prod }]
  virtualHosts: { public: apis.public, organization: apis.internal, webApplications: apps.public }
  gateways:
    addressPools: [198.19.0.0/24]
    # The gates lead to components of the other node.
    otherNodes: Gateways
    external: { gatewayRef: { namespace: platform, name: external } }
    internal: { gatewayRef: { namespace: platform, name: internal } }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: external, namespace: platform }
spec:
  gatewayClassName: cardinal
  listeners: [{ name: http, port: 80, protocol: HTTP }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: internal, namespace: platform }
spec:
  gatewayClassName: cardinal
  listeners: [{ name: http, port: 80, protocol: HTTP }]
";

/// A shop of which one component may call the bank and an archive, and a bank whose components reach each other as declared.
const CELLS: &str = "
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: shop, namespace: shop }
spec:
  organization: acme
  project: shop
  environment: prod
  components:
    - name: web
      type: WebApplication
      workloads: { selector: { matchLabels: { app: web } } }
      endpoints: [{ name: site, type: HTTP, port: 8080 }]
    - name: orders
      workloads: { selector: { matchLabels: { app: orders } } }
      endpoints:
        - { name: api, type: HTTP, port: 8080, visibility: { public: {} } }
  egress:
    east:
      - { from: [orders], project: bank, component: ledger, endpoint: api }
      - { from: [orders], project: bank, component: ledger, endpoint: feed }
      # The bank shows this to nobody.
      - { from: [orders], project: bank, component: vault, endpoint: api }
    south:
      - { name: archive, from: [orders], cidrs: [198.19.255.254/32], port: 6443, protocol: TCP }
---
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: bank, namespace: bank }
spec:
  organization: acme
  project: bank
  environment: prod
  intra: declared
  components:
    - name: ledger
      workloads: { selector: { matchLabels: { app: ledger } } }
      endpoints:
        - { name: api, type: HTTP, port: 8080, visibility: { organization: {} } }
        - { name: feed, type: TCP, port: 7000, visibility: { organization: {} } }
    - name: vault
      workloads: { selector: { matchLabels: { app: vault } } }
      endpoints: [{ name: api, type: HTTP, port: 8080 }]
      connections: [{ component: ledger, endpoint: api }]
";

const PODS: [(&str, &str, &str); 4] = [
    ("shop", "web", "node-1"),
    ("shop", "orders", "node-1"),
    ("bank", "ledger", "node-2"),
    ("bank", "vault", "node-2"),
];

struct Scene {
    world: World,
    external: IpAddr,
    internal: IpAddr,
}

impl Scene {
    fn start() -> Result<Self> {
        let world = World::up(&Setup {
            nodes: 2,
            ..Setup::default()
        })?;
        world.deploy_agent(WAIT)?;
        world.apply(PLATFORM)?;
        let pods = PODS.map(|(namespace, name, node)| {
            let serves = ["--http", "[::]:8080", "--tcp", "[::]:7000"];
            let mut pod = serving(name, node, name, &[], &serves);
            pod["metadata"]["namespace"] = json!(namespace);
            pod
        });
        world.apply(&together(&pods))?;
        world.apply(CELLS)?;
        let gate = |name| -> Result<IpAddr> {
            let what = ["gateway", name, "--namespace", "platform"];
            let gateway = world.wait(WAIT, &what, programmed)?;
            let address = gateway["status"]["addresses"][0]["value"].as_str();
            Ok(address.context("a gate has no address")?.parse()?)
        };
        Ok(Self {
            external: gate("external")?,
            internal: gate("internal")?,
            world,
        })
    }

    /// Address of a pod's port.
    fn at(&self, pod: &str, port: u16) -> Result<String> {
        let (namespace, name) = pod.split_once('/').context("namespace and name")?;
        let what = ["pod", name, "--namespace", namespace];
        let ready = |pod: &Value| pod["status"]["podIP"].is_string();
        let pod = self.world.wait(WAIT, &what, ready)?;
        let address = pod["status"]["podIP"].as_str().unwrap_or_default();
        Ok(format!("{address}:{port}"))
    }

    /// Runs a program of a pod, or outside of the nodes.
    fn of(&self, from: &str, program: &str) -> std::process::Command {
        let mut enter = self.world.script("enter");
        if from.contains('/') {
            enter.args(["--pod", from]);
        }
        enter.arg(program);
        enter
    }

    /// The name of the pod that answers, the status of a refusal, or why there is no answer.
    fn get(&self, from: &str, url: &str) -> Result<String> {
        let host = url.split('/').nth(2).context("the URL has a host")?;
        let gate = match host.rsplit('.').next() {
            Some("public") => Some(self.external),
            Some("internal") => Some(self.internal),
            _ => None,
        };
        let mut arguments = vec!["--insecure"];
        let known = gate.map(|gate| tests::http::resolve(host, 80, gate));
        if let Some(known) = &known {
            arguments.extend(["--resolve", known]);
        }
        arguments.push(url);
        let page = curl(self.of(from, "curl"), Duration::from_secs(2), &arguments)?;
        Ok(match page.json()["name"].as_str() {
            Some(name) if page.status == 200 => name.to_owned(),
            _ => page.outcome(),
        })
    }

    /// The name of who answers a connection, or what became of it.
    fn connect(&self, from: &str, to: &str) -> Result<String> {
        let peer = Programs::locate()?.peer;
        let mut peer = self.of(from, peer.to_str().context("a path is no text")?);
        let output = peer
            .args(["tcp", "--timeout-ms", "1000", "--to", to])
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let outcome: Outcome =
            serde_json::from_str(&said).with_context(|| format!("the peer said `{said}`"))?;
        Ok(outcome.outcome)
    }

    /// Waits until all rows hold: who asks, for what, and what comes of it.
    fn hold(&self, rows: &[(&str, &str, &str)]) -> Result<()> {
        for (from, what, expected) in rows {
            let end = Instant::now() + WAIT;
            loop {
                let got = match what.strip_prefix("tcp://") {
                    Some(to) => self.connect(from, to)?,
                    None => self.get(from, what)?,
                };
                if got == *expected {
                    break;
                }
                ensure!(
                    Instant::now() < end,
                    "{what} from {from}: {got}, expected {expected}"
                );
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }
}

#[test]
fn kube_cells_of_two_nodes_are_as_declared_in_all_four_directions() -> Result<()> {
    let scene = Scene::start()?;
    for cell in ["shop", "bank"] {
        scene.world.wait(
            WAIT,
            &["cells.cardinal.dev", cell, "--namespace", cell],
            |cell| cell["status"]["nodes"] == json!({ "activated": 2, "known": 2 }),
        )?;
    }
    let page = |pod: &str| -> Result<String> { Ok(format!("http://{}/", scene.at(pod, 8080)?)) };
    let (web, orders) = (page("shop/web")?, page("shop/orders")?);
    let (ledger, vault) = (page("bank/ledger")?, page("bank/vault")?);
    let feed = format!("tcp://{}", scene.at("bank/ledger", 7000)?);
    let undeclared = format!("tcp://{}", scene.at("bank/vault", 7000)?);
    let (api, entries) = (
        "http://prod.apis.public/shop/orders/1",
        "http://prod.apis.internal/bank/ledger/1",
    );
    scene.hold(&[
        // North: by the external gate to what is public, and not around it.
        ("outside", api, "orders"),
        ("outside", "http://web-prod.apps.public/", "web"),
        ("outside", "http://prod.apis.public/bank/ledger/1", "404"),
        ("outside", &orders, "timeout"),
        ("outside", &ledger, "timeout"),
        ("outside", &feed, "timeout"),
        // West and east: the caller declares it, and the callee shows it. HTTP is steered to the gate, also if the pod itself is
        // called, and the rest goes directly.
        ("shop/orders", entries, "ledger"),
        ("shop/orders", &ledger, "ledger"),
        ("shop/orders", &feed, "answer"),
        (
            "shop/orders",
            "http://prod.apis.internal/bank/vault/1",
            "404",
        ),
        ("shop/orders", &vault, "timeout"),
        ("shop/orders", &undeclared, "timeout"),
        ("shop/web", entries, "timeout"),
        ("shop/web", &feed, "timeout"),
        ("bank/ledger", &orders, "timeout"),
        ("bank/vault", entries, "timeout"),
        // Inside of a cell: all of the one, and what is declared of the other.
        ("shop/web", &orders, "orders"),
        ("shop/orders", &web, "web"),
        ("bank/vault", &ledger, "ledger"),
        ("bank/vault", &feed, "timeout"),
        ("bank/ledger", &vault, "timeout"),
        // South.
        ("shop/orders", OUTSIDE, "200"),
        ("shop/web", OUTSIDE, "timeout"),
        ("bank/ledger", OUTSIDE, "timeout"),
    ])?;

    // What is declared no more ends, what was before included.
    let closed = CELLS.replace(
        "      - { from: [orders], project: bank, component: ledger, endpoint: feed }\n",
        "",
    );
    ensure!(closed != CELLS, "the declaration is not there");
    scene.world.apply(&closed)?;
    scene.hold(&[
        ("shop/orders", &feed, "timeout"),
        ("shop/orders", entries, "ledger"),
        ("shop/orders", OUTSIDE, "200"),
    ])
}
