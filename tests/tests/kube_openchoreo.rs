//! A data plane of OpenChoreo in a cluster (`policies/openchoreo`): what its controllers made is served by the agents since the gateway
//! class is theirs, its labels make cells, and one object more controls the egress of one of them.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{
    http::curl,
    kube::{AGENT_NAMESPACE, Setup, World, root},
    secrets::Secrets,
};

const WAIT: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);
/// The API server, which is outside of the nodes.
const OUTSIDE: &str = "https://198.19.255.254:6443/version";
/// What the nodes have for gateways.
const POOL: &str = "198.19.0.0/19";

const LIBRARY: &str = "dp-acme-library-dev-7a4c127e";
const AUDIT: &str = "dp-acme-audit-dev-e0812a3f";

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

/// What a Deployment of OpenChoreo would run: for each of its services a pod with the labels that the service selects.
fn run_pods(world: &World) -> Result<()> {
    for namespace in [LIBRARY, AUDIT] {
        let services = world.get(&["services", "--namespace", namespace])?;
        let services = services["items"].as_array().context("a list")?;
        ensure!(!services.is_empty(), "{namespace} has no service");
        for service in services {
            let component = &service["metadata"]["labels"]["component-name"];
            let port = service["spec"]["ports"][0]["port"].to_string();
            let pod = json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": component,
                    "namespace": namespace,
                    "labels": service["spec"]["selector"],
                },
                "spec": { "containers": [{
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
    for (namespace, component) in [
        (LIBRARY, "reading-list"),
        (LIBRARY, "web"),
        (AUDIT, "ledger"),
    ] {
        let what = ["pod", component, "--namespace", namespace];
        world.wait(WAIT, &what, |pod| {
            pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string()
        })?;
    }
    Ok(())
}

/// Somebody who asks.
#[derive(Clone, Copy, Debug)]
enum From {
    Outside,
    Pod(&'static str, &'static str),
}

const LIST: From = From::Pod(LIBRARY, "reading-list");
const WEB: From = From::Pod(LIBRARY, "web");
const LEDGER: From = From::Pod(AUDIT, "ledger");

struct Plane {
    world: World,
    external: String,
    internal: String,
}

impl Plane {
    fn address(world: &World, gateway: &str) -> Result<String> {
        let what = ["gateway", gateway, "--namespace", "choreo-system"];
        let gateway = world.wait(WAIT, &what, |gateway| {
            let conditions = gateway["status"]["conditions"].as_array();
            let programmed = conditions
                .into_iter()
                .flatten()
                .any(|one| one["type"] == "Programmed" && one["status"] == "True");
            programmed && gateway["status"]["addresses"][0]["value"].is_string()
        })?;
        let addresses = gateway["status"]["addresses"].as_array();
        let mut addresses = addresses.into_iter().flatten();
        let v4 = addresses.find_map(|one| one["value"].as_str().filter(|text| !text.contains(':')));
        Ok(v4.context("no address of IPv4")?.to_owned())
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
        let gateways = [
            (".localhost", &self.external),
            (".internal", &self.internal),
        ];
        let gateway = gateways.iter().find(|(suffix, _)| host.ends_with(suffix));
        let resolved = gateway.map(|(_, address)| format!("{host}:80:{address}"));
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

    fn expect(&self, from: From, url: &str, token: Option<&str>, expected: &str) -> Result<()> {
        self.expect_method(from, url, token, "GET", expected)
    }

    /// Waits until the answer is as expected: agents follow the cluster.
    fn expect_method(
        &self,
        from: From,
        url: &str,
        token: Option<&str>,
        method: &str,
        expected: &str,
    ) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(20);
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

    fn pod_address(&self, namespace: &str, name: &str) -> Result<String> {
        let pod = self.world.get(&["pod", name, "--namespace", namespace])?;
        let address = pod["status"]["podIP"].as_str();
        Ok(address.context("the pod has no address")?.to_owned())
    }
}

/// Envoy Gateway's definitions, from the module that the harness compares with: the API server holds the policies against them.
fn definitions(world: &World) -> Result<()> {
    const MODULE: &str = "github.com/envoyproxy/gateway";
    let go = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("go")
            .args(arguments)
            .arg(MODULE)
            .current_dir(root().join("tests/kube/peers/envoy-gateway"))
            .output()
            .context("failed to start go")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "go {arguments:?}: {said}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    go(&["mod", "download"])?;
    let module = go(&["list", "-m", "-f", "{{.Dir}}"])?;
    let folder = "charts/gateway-helm/charts/crds/crds/generated";
    world.apply_folder(&Path::new(&module).join(folder))
}

fn start(secrets: &Secrets) -> Result<Plane> {
    let world = World::up(&Setup {
        nodes: 2,
        ..Setup::default()
    })?;
    definitions(&world)?;
    world.deploy_agent(WAIT)?;
    let texts = manifests(&root().join("policies/openchoreo/first"))?;
    let keys = secrets.jwks();
    let all = texts
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
    run_pods(&world)?;
    let external = Plane::address(&world, "gateway-external")?;
    let internal = Plane::address(&world, "gateway-internal")?;
    Ok(Plane {
        world,
        external,
        internal,
    })
}

#[test]
fn kube_a_data_plane_of_openchoreo_works_when_its_gateway_class_is_ours() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let secrets = Secrets::make(folder.path())?;
    let plane = start(&secrets)?;
    let books = "http://dev.choreoapis.localhost/library/reading-list/api/v1/books";
    let inside = "http://dev.choreoapis.internal/library/reading-list/api/v1/books/7";
    let ledger = "http://dev.choreoapis.internal/audit/ledger/entries";
    let reader = secrets.token("any", "any", "read:books:all")?;
    let writer = secrets.token("any", "any", "write:books")?;

    // North: visibility, rewrites, scopes, the wildcard.
    let page = format!("{books}/7");
    plane.expect(
        From::Outside,
        books,
        Some(&reader),
        "reading-list /api/v1/books",
    )?;
    plane.expect(From::Outside, books, None, "401")?;
    plane.expect(From::Outside, &page, Some(&reader), "403")?;
    plane.expect_method(
        From::Outside,
        books,
        Some(&writer),
        "POST",
        "reading-list /api/v1/books",
    )?;
    plane.expect_method(
        From::Outside,
        &page,
        None,
        "DELETE",
        "reading-list /api/v1/books/7",
    )?;
    plane.expect(
        From::Outside,
        "http://web-dev.choreoapps.localhost/a",
        None,
        "web /a",
    )?;
    plane.expect(
        From::Outside,
        "http://dev.choreoapis.localhost/audit/ledger",
        None,
        "404",
    )?;
    // West: from another cell, and what that one has.
    plane.expect(LEDGER, inside, None, "reading-list /api/v1/books/7")?;
    plane.expect(LIST, ledger, None, "ledger /entries")?;
    plane.expect(WEB, ledger, None, "ledger /entries")?;
    // East, directly, and south: labels restrict nothing.
    let direct = format!("http://{}:8080/x", plane.pod_address(AUDIT, "ledger")?);
    plane.expect(WEB, &direct, None, "ledger /x")?;
    for from in [LIST, WEB, LEDGER] {
        plane.expect(from, OUTSIDE, None, "200")?;
    }

    // One object more.
    let document = fs::read_to_string(root().join("policies/openchoreo/egress/first.yaml"))?;
    let declared = "name: archive, cidrs: [\"203.0.113.0/24\"], port: 5432";
    ensure!(document.contains(declared), "{document}");
    let document = document.replace(
        declared,
        "name: archive, from: [reading-list], cidrs: [198.19.255.254/32], port: 6443",
    );
    plane.world.apply(&document)?;
    plane.world.wait(
        WAIT,
        &["cells.cardinal.dev", "egress", "--namespace", LIBRARY],
        |cell| {
            let conditions = cell["status"]["conditions"].as_array();
            let of = |kind: &str| {
                let mut all = conditions.into_iter().flatten();
                all.any(|one| one["type"] == kind && one["status"] == "True")
            };
            of("Accepted") && of("Programmed")
        },
    )?;
    plane.expect(LIST, ledger, None, "ledger /entries")?;
    plane.expect(WEB, ledger, None, "timeout")?;
    plane.expect(LIST, &direct, None, "ledger /x")?;
    plane.expect(WEB, &direct, None, "timeout")?;
    plane.expect(LIST, OUTSIDE, None, "200")?;
    plane.expect(WEB, OUTSIDE, None, "timeout")?;
    // What comes in, and what other cells do, is as before.
    plane.expect(
        From::Outside,
        books,
        Some(&reader),
        "reading-list /api/v1/books",
    )?;
    plane.expect(LEDGER, inside, None, "reading-list /api/v1/books/7")?;
    plane.expect(LEDGER, OUTSIDE, None, "200")?;
    let agents = plane.world.agents()?;
    let agent = agents.first().context("no agent")?;
    let log = plane.world.logs(AGENT_NAMESPACE, agent)?;
    ensure!(!log.contains(r#""level":"ERROR""#), "{log}");
    Ok(())
}
