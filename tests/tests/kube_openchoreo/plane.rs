//! A data plane of OpenChoreo in a cluster of two nodes, each with the pods of one cell.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    http::curl,
    kube::{Setup, World, root},
    secrets::Secrets,
};

pub(crate) const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);
/// The API server, which is outside of the nodes.
pub(crate) const OUTSIDE: &str = "https://198.19.255.254:6443/version";
/// What the nodes have for gateways.
const POOL: &str = "198.19.0.0/19";

pub(crate) const LIBRARY: &str = "dp-acme-library-dev-7a4c127e";
pub(crate) const AUDIT: &str = "dp-acme-audit-dev-e0812a3f";

/// Envoy Gateway's and Cilium's definitions: the API server holds policies against them.
const DEFINITIONS: [(&str, &str); 3] = [
    (
        "github.com/envoyproxy/gateway",
        "charts/gateway-helm/charts/crds/crds/generated",
    ),
    (
        "github.com/cilium/cilium@v1.18.0",
        "pkg/k8s/apis/cilium.io/client/crds/v2/ciliumnetworkpolicies.yaml",
    ),
    (
        "github.com/cilium/cilium@v1.18.0",
        "pkg/k8s/apis/cilium.io/client/crds/v2/ciliumclusterwidenetworkpolicies.yaml",
    ),
];

/// Which controllers made a data plane.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Generation {
    First,
    Release,
}

impl Generation {
    /// Its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Release => "release-1.2",
        }
    }

    /// The namespace of its gateways.
    fn gateways(self) -> &'static str {
        match self {
            Self::First => "choreo-system",
            Self::Release => "openchoreo-data-plane",
        }
    }

    /// The label with the name of a component.
    fn component(self) -> &'static str {
        match self {
            Self::First => "component-name",
            Self::Release => "openchoreo.dev/component",
        }
    }
}

/// The documents of a folder and of those below it, but for what a cluster adds itself.
fn manifests(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name() == "running" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            texts.extend(manifests(&entry.path())?);
        } else {
            texts.push(fs::read_to_string(entry.path())?);
        }
    }
    Ok(texts)
}

/// Somebody who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum From {
    Outside,
    Pod(&'static str, &'static str),
}

pub(crate) const LIST: From = From::Pod(LIBRARY, "reading-list");
pub(crate) const WEB: From = From::Pod(LIBRARY, "web");
pub(crate) const LEDGER: From = From::Pod(AUDIT, "ledger");

pub(crate) struct Plane {
    pub(crate) world: World,
    generation: Generation,
    external: String,
    internal: String,
}

impl Plane {
    /// The data plane of a generation as its controllers made it, but for where keys of tokens and addresses of gateways are from.
    pub(crate) fn start(generation: Generation, secrets: &Secrets) -> Result<Self> {
        let world = World::up(&Setup {
            nodes: 2,
            ..Setup::default()
        })?;
        for of in DEFINITIONS {
            definitions(&world, of)?;
        }
        world.deploy_agent(WAIT)?;
        let folder = root().join("policies/openchoreo").join(generation.name());
        let keys = secrets.jwks();
        let all = manifests(&folder)?
            .join("\n---\n")
            .replace("198.51.100.0/28", POOL)
            .replace(
                r#"remoteJWKS: { uri: "https://idp.example/oauth2/jwks" }"#,
                &format!("localJWKS: {{ type: Inline, inline: '{keys}' }}"),
            );
        // Namespaces come first.
        let (namespaces, others): (Vec<&str>, Vec<&str>) = all
            .split("---\n")
            .partition(|document| document.contains("kind: Namespace\n"));
        world.apply(&namespaces.join("---\n"))?;
        world.apply(&others.join("---\n"))?;
        run_pods(&world, generation)?;
        let address = |gateway| address(&world, generation.gateways(), gateway);
        let (external, internal) = (address("gateway-external")?, address("gateway-internal")?);
        Ok(Self {
            generation,
            external,
            internal,
            world,
        })
    }

    /// Adds the document that controls the egress of project `library`, with the network of an archive where somebody answers.
    pub(crate) fn control(&self) -> Result<()> {
        let name = format!("policies/openchoreo/egress/{}.yaml", self.generation.name());
        let document = fs::read_to_string(root().join(name))?;
        let declared = "name: archive, cidrs: [\"203.0.113.0/24\"], port: 5432";
        ensure!(document.contains(declared), "{document}");
        let document = document.replace(
            declared,
            "name: archive, from: [reading-list], cidrs: [198.19.255.254/32], port: 6443",
        );
        self.world.apply(&document)?;
        let cell = ["cells.cardinal.dev", "egress", "--namespace", LIBRARY];
        self.world.wait(WAIT, &cell, |cell| {
            holds(cell, "Accepted") && holds(cell, "Programmed")
        })?;
        Ok(())
    }

    /// Who answers with which path, the status of a refusal, or why there is no answer.
    fn ask(&self, from: From, url: &str, token: Option<&str>, method: &str) -> Result<String> {
        let client = match from {
            From::Outside => self.world.outside("curl"),
            From::Pod(namespace, name) => {
                let mut enter = self.world.script("enter");
                enter.args(["--pod", &format!("{namespace}/{name}"), "curl"]);
                enter
            }
        };
        let host = url.split('/').nth(2).context("the URL has a host")?;
        let gateway = match host.rsplit('.').next() {
            Some("localhost" | "com") => Some(&self.external),
            Some("internal") => Some(&self.internal),
            _ => None,
        };
        let resolved = gateway.map(|address| format!("{host}:80:{address}"));
        let mut arguments = vec!["--insecure", "--request", method];
        if let Some(resolved) = &resolved {
            arguments.extend(["--resolve", resolved]);
        }
        let header = token.map(|token| format!("authorization: Bearer {token}"));
        if let Some(header) = &header {
            arguments.extend(["--header", header]);
        }
        arguments.push(url);
        let page = curl(client, Duration::from_secs(2), &arguments)?;
        let told = page.json();
        Ok(match (page.status, told["pod"].as_str()) {
            (200, Some(pod)) => format!("{pod} {}", told["path"].as_str().unwrap_or_default()),
            _ => page.outcome(),
        })
    }

    pub(crate) fn expect(
        &self,
        from: From,
        url: &str,
        token: Option<&str>,
        expected: &str,
    ) -> Result<()> {
        self.expect_method(from, url, token, "GET", expected)
    }

    /// Waits until the answer is as expected: agents follow the cluster.
    pub(crate) fn expect_method(
        &self,
        from: From,
        url: &str,
        token: Option<&str>,
        method: &str,
        expected: &str,
    ) -> Result<()> {
        let end = Instant::now() + WAIT;
        loop {
            let got = self.ask(from, url, token, method)?;
            if got == expected {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{method} {url} from {from:?}: {got}, expected {expected}"
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Rows of who asks for what, and what comes of it.
    pub(crate) fn hold(&self, rows: &[(From, &str, &str)]) -> Result<()> {
        for (from, url, expected) in rows {
            self.expect(*from, url, None, expected)?;
        }
        Ok(())
    }

    /// A page of a pod, without a gateway.
    pub(crate) fn page(&self, of: From, port: u16) -> Result<String> {
        let From::Pod(namespace, name) = of else {
            anyhow::bail!("{of:?} is no pod");
        };
        let pod = self.world.get(&["pod", name, "--namespace", namespace])?;
        let address = pod["status"]["podIP"].as_str();
        let address = address.context("the pod has no address")?;
        Ok(format!("http://{address}:{port}/x"))
    }
}

/// Whether an object has a condition that holds.
pub(crate) fn holds(object: &Value, kind: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|one| one["type"] == kind && one["status"] == "True")
}

fn address(world: &World, namespace: &str, gateway: &str) -> Result<String> {
    let what = ["gateway", gateway, "--namespace", namespace];
    let gateway = world.wait(WAIT, &what, |gateway| {
        holds(gateway, "Programmed") && gateway["status"]["addresses"][0]["value"].is_string()
    })?;
    let addresses = gateway["status"]["addresses"].as_array();
    let mut addresses = addresses.into_iter().flatten();
    let v4 = addresses.find_map(|one| one["value"].as_str().filter(|text| !text.contains(':')));
    Ok(v4.context("no address of IPv4")?.to_owned())
}

/// What a Deployment of OpenChoreo would run: for each of its services a pod with the labels that the service selects.
fn run_pods(world: &World, generation: Generation) -> Result<()> {
    for (namespace, node) in [(LIBRARY, "node-1"), (AUDIT, "node-2")] {
        let services = world.get(&["services", "--namespace", namespace])?;
        let services = services["items"].as_array().context("a list")?;
        ensure!(!services.is_empty(), "{namespace} has no service");
        for service in services {
            let component = &service["metadata"]["labels"][generation.component()];
            let port = service["spec"]["ports"][0]["port"].to_string();
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": component,
                    "namespace": namespace,
                    "labels": service["spec"]["selector"],
                },
                "spec": { "nodeName": node, "containers": [{
                    "name": "main",
                    "image": "registry.k8s.io/gateway-api/echo-basic:v1.6.1",
                    "env": [
                        { "name": "HTTP_PORT", "value": port },
                        { "name": "POD_NAME", "value": component },
                        { "name": "NAMESPACE", "value": namespace },
                    ],
                }] },
            });
            world.apply(&pod.to_string())?;
        }
    }
    for pod in [LIST, WEB, LEDGER] {
        let From::Pod(namespace, component) = pod else {
            continue;
        };
        let what = ["pod", component, "--namespace", namespace];
        world.wait(WAIT, &what, |pod| {
            pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string()
        })?;
    }
    Ok(())
}

/// Installs definitions from a file or folder of a module of Go. One without a version has that which the harness compares with.
fn definitions(world: &World, (module, path): (&str, &str)) -> Result<()> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", module])
        .current_dir(root().join("tests/kube/peers/envoy-gateway"))
        .output()
        .context("failed to start go")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "go mod download {module}: {said}");
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let at = told["Dir"].as_str().context("go names no folder")?;
    world.apply_folder(&Path::new(at).join(path))
}
