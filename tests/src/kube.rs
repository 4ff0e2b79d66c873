//! A throw-away Kubernetes: a real control plane and simulated nodes in network namespaces of one machine.
//!
//! The scripts of `tests/kube` make it; [`World`] starts them, asks `kubectl`, and takes everything down when it is dropped. Each
//! world has a name of its own, so that worlds never meet; one whose maker crashed is taken down by whoever makes the next.

pub mod conformance;
pub mod manifests;
pub mod pods;
pub mod process;
pub mod remains;
pub mod rights;
pub mod shell;

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    interrupt,
    programs::Programs,
    world::{is_root, output, run},
};

/// Where worlds keep their state.
const HOME: &str = "/run";
/// What their names start with.
const PREFIX: &str = "cardinal-kube-";
/// Time between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(200);

/// The namespace that `deploy/` puts the agent in.
pub const AGENT_NAMESPACE: &str = "cardinal-system";

/// The platform of a world: `tests/kube/README.md` has the ranges.
const PLATFORM: &str = "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec: { gateways: { addressPools: [198.19.0.0/19, '2001:2:0:f000::/64'] } }
";

/// What a world is to be like.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Simulated nodes, 1 to 16.
    pub nodes: u8,
    /// Whether the API server asks the roles; otherwise everybody may do everything.
    pub roles: bool,
    /// Whether names of Services stand for their ClusterIPs, which the agent leads on, and not for endpoints.
    pub cluster_ips: bool,
    /// Whether it is kept what service accounts ask of the API server, for [`World::calls`].
    pub audit: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 1,
            roles: true,
            cluster_ips: false,
            audit: false,
        }
    }
}

/// Another implementation of the Gateway API that runs in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// Envoy Gateway, with its class `envoy-gateway`.
    EnvoyGateway,
}

impl Peer {
    /// Its folder in `tests/kube/peers`, which is the name of its class too.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::EnvoyGateway => "envoy-gateway",
        }
    }
}

/// A running control plane with its nodes. Dropping it takes both down.
#[derive(Debug)]
pub struct World {
    name: String,
    /// Held for as long as the world lives: a world whose lock is free is a crashed one's remains.
    _lock: File,
}

impl World {
    /// Takes down what crashed makers left, and brings up a world with the CRDs of the Gateway API. Its nodes run the agent where
    /// a pod names the image `cardinal-agent`.
    ///
    /// # Errors
    /// Not root, the agent is not built, or a component does not start; the message names the log.
    pub fn up(setup: &Setup) -> Result<Self> {
        let programs = Programs::locate()?;
        let world = Self::claim()?;
        let mut up = world.script("up");
        up.arg("--images").arg(folder().join("images.yaml"));
        let variables = [
            ("CARDINAL_AGENT", programs.agent.as_path()),
            ("CARDINAL_PEER", programs.peer.as_path()),
        ];
        world.start(up, setup, &variables)?;
        Ok(world)
    }

    /// As [`World::up`], with another implementation running in it and without the agent.
    ///
    /// # Errors
    /// As there.
    pub fn up_with(peer: Peer, setup: &Setup) -> Result<Self> {
        let world = Self::claim()?;
        let start = world.script(&format!("peers/{}/start", peer.name()));
        world.start(start, setup, &[])?;
        Ok(world)
    }

    /// Gives a world that has a name and a lock, and nothing else yet.
    fn claim() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        if !is_root()? {
            bail!("a Kubernetes in network namespaces needs root");
        }
        let name = format!(
            "{PREFIX}{:x}-{:x}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let makers = File::create(Path::new(HOME).join(format!("{PREFIX}makers")))
            .context("failed to make the lock of worlds")?;
        makers
            .lock()
            .context("failed to lock the making of worlds")?;
        take_down_stale()?;
        let state = state(&name);
        fs::create_dir(&state).with_context(|| format!("failed to make {}", state.display()))?;
        let lock = File::create(state.join("lock")).context("failed to make the world's lock")?;
        lock.lock().context("failed to lock the world")?;
        // From here on a failure drops the world, which takes down what is there.
        Ok(Self { name, _lock: lock })
    }

    fn start(&self, mut up: Command, setup: &Setup, variables: &[(&str, &Path)]) -> Result<()> {
        up.args(["--nodes", &setup.nodes.to_string()])
            .args([
                "--authorization",
                if setup.roles { "RBAC" } else { "AlwaysAllow" },
            ])
            .args(setup.cluster_ips.then_some("--cluster-ips"))
            .args(setup.audit.then_some("--audit"))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let status = up
            .status()
            .context("failed to start the script that brings a world up")?;
        interrupt::check()?;
        if !status.success() {
            bail!(
                "the world did not come up ({status}){}",
                self.ends_of_logs()
            );
        }
        Ok(())
    }

    /// Its name, which its namespaces and cgroups carry.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Logs, data, and the files of nodes and pods.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        state(&self.name)
    }

    /// Names of the nodes.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn nodes(&self) -> Result<Vec<String>> {
        names(&self.get(&["nodes"])?)
    }

    /// A script of `tests/kube` for this world.
    #[must_use]
    pub fn script(&self, name: &str) -> Command {
        script(name, &self.name)
    }

    /// A program in the network namespace of a node, outside of every pod.
    #[must_use]
    pub fn on_node(&self, node: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.script("enter");
        command.args(["--node", node]).arg(program);
        command
    }

    /// A program in the world, outside of the nodes: where a Gateway's clients are.
    #[must_use]
    pub fn outside(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.script("enter");
        command.arg(program);
        command
    }

    /// `kubectl`, as an administrator.
    #[must_use]
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.outside("kubectl");
        command.args(arguments);
        command
    }

    /// Creates or changes the objects of a manifest, in YAML or JSON.
    ///
    /// # Errors
    /// The manifest is refused; the message has the API server's words.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        self.send(manifest, &["apply", "--server-side", "--force-conflicts"])
    }

    /// Asks the API server whether it would take a manifest. Nothing is kept.
    ///
    /// # Errors
    /// It would not; unknown fields are errors too.
    pub fn check(&self, manifest: &str) -> Result<()> {
        self.send(
            manifest,
            &["create", "--dry-run=server", "--validate=strict"],
        )
    }

    fn send(&self, manifest: &str, how: &[&str]) -> Result<()> {
        let mut child = self
            .kubectl(how)
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start kubectl")?;
        let mut stdin = child.stdin.take().context("kubectl's input is not piped")?;
        let written = stdin.write_all(manifest.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "the manifest is refused: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        written.context("kubectl did not read the manifest")
    }

    /// Creates or changes the objects of a file or of all manifests in a folder, and waits for the definitions among them to be served.
    ///
    /// # Errors
    /// One is refused.
    pub fn apply_folder(&self, folder: &Path) -> Result<()> {
        let mut apply = self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f"]);
        run(apply.arg(folder))?;
        run(&mut self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=180s",
            "crd",
            "--all",
        ]))
    }

    /// Creates or changes what a folder's `kustomization.yaml` says.
    ///
    /// # Errors
    /// It is refused.
    pub fn apply_kustomization(&self, folder: &Path) -> Result<()> {
        let mut apply = self.kubectl(&["apply", "--server-side", "--force-conflicts", "-k"]);
        run(apply.arg(folder))
    }

    /// What `kubectl get` answers to these words, as JSON: an object, or a list of them.
    ///
    /// # Errors
    /// There is no such object, or the API server does not answer.
    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let mut get = self.kubectl(&["get", "--output", "json"]);
        let text = output(get.args(what))?;
        serde_json::from_str(&text).context("kubectl printed something else than JSON")
    }

    /// Deletes objects and waits until they are gone.
    ///
    /// # Errors
    /// There is no such object, or it does not go.
    pub fn delete(&self, what: &[&str]) -> Result<()> {
        let mut delete = self.kubectl(&["delete", "--timeout", "180s"]);
        run(delete.args(what))
    }

    /// Waits until objects fit, and gives them. Objects that are not there yet fit nothing.
    ///
    /// # Errors
    /// They do not in time; the message has what they were like at last.
    pub fn wait(
        &self,
        wait: Duration,
        what: &[&str],
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let end = Instant::now() + wait;
        loop {
            interrupt::check()?;
            let got = self.get(what);
            match got {
                Ok(value) if fits(&value) => return Ok(value),
                _ if Instant::now() < end => std::thread::sleep(PAUSE),
                Ok(value) => bail!(
                    "`{}` does not become as expected within {} s; it is {value}",
                    what.join(" "),
                    wait.as_secs()
                ),
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!(
                            "`{}` is not there after {} s",
                            what.join(" "),
                            wait.as_secs()
                        )
                    });
                }
            }
        }
    }

    /// What the containers of a pod have written, the run before the present one included.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn logs(&self, namespace: &str, pod: &str) -> Result<String> {
        let mut logs = self.kubectl(&["logs", "--namespace", namespace, "--all-containers"]);
        let now = output(logs.arg(pod))?;
        let mut previous = self.kubectl(&["logs", "--namespace", namespace, "--previous"]);
        // Most pods have no run before.
        let before = output(previous.arg(pod)).unwrap_or_default();
        Ok(format!("{before}{now}"))
    }

    /// Installs the agent on every node from `deploy/`, and waits until all of them are ready. Gateways get addresses out of the range
    /// that the nodes have for them.
    ///
    /// # Errors
    /// A manifest is refused, or an agent does not become ready; the message has the end of its log.
    pub fn deploy_agent(&self, wait: Duration) -> Result<()> {
        self.apply_kustomization(&root().join("deploy"))?;
        let mut established =
            self.kubectl(&["wait", "--for=condition=Established", "--timeout=180s"]);
        run(established.arg("crd/platforms.cardinal.dev"))?;
        self.apply(PLATFORM)?;
        self.agents_ready(wait)
    }

    /// Waits until the agent of every node is ready.
    ///
    /// # Errors
    /// One is not in time; the message has the ends of the agents' logs.
    pub fn agents_ready(&self, wait: Duration) -> Result<()> {
        let daemon_set = [
            "daemonset",
            "cardinal-agent",
            "--namespace",
            AGENT_NAMESPACE,
        ];
        let ready = self.wait(wait, &daemon_set, |set| {
            let status = &set["status"];
            status["observedGeneration"] == set["metadata"]["generation"]
                && status["desiredNumberScheduled"].as_u64() > Some(0)
                && status["updatedNumberScheduled"] == status["desiredNumberScheduled"]
                && status["numberReady"] == status["desiredNumberScheduled"]
        });
        let Err(error) = ready else { return Ok(()) };
        let pods = self.agents().unwrap_or_default();
        let mut message = String::new();
        for pod in pods {
            let log = self
                .logs(AGENT_NAMESPACE, &pod)
                .unwrap_or_else(|error| format!("({error:#})"));
            message += &format!("\n{pod}:\n{}", tail(&log));
        }
        Err(error.context(format!("an agent is not ready{message}")))
    }

    /// Names of the agents' pods.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn agents(&self) -> Result<Vec<String>> {
        names(&self.get(&[
            "pods",
            "--namespace",
            AGENT_NAMESPACE,
            "--selector",
            "app.kubernetes.io/name=cardinal-agent",
        ])?)
    }

    fn ends_of_logs(&self) -> String {
        let entries = fs::read_dir(self.state()).into_iter().flatten().flatten();
        let mut logs: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        logs.sort();
        logs.iter()
            .filter_map(|path| {
                let text = fs::read_to_string(path).ok()?;
                (!text.is_empty()).then(|| format!("\n{}:\n{}", path.display(), tail(&text)))
            })
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = take_down(&self.name) {
            eprintln!("the world {} is left: {error:#}", self.name);
        }
    }
}

/// `tests/kube`.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kube")
}

/// The repository.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(PathBuf::new, Path::to_path_buf)
}

fn state(world: &str) -> PathBuf {
    Path::new(HOME).join(world)
}

fn script(name: &str, world: &str) -> Command {
    let mut command = Command::new(folder().join(name));
    command
        .env("CARDINAL_KUBE_WORLD", world)
        .env_remove("CARDINAL_KUBE_STATE")
        .env_remove("KUBECONFIG");
    command
}

fn take_down(world: &str) -> Result<()> {
    run(&mut script("down", world))
}

/// Takes down every world that nobody holds the lock of. The caller is the only maker.
fn take_down_stale() -> Result<()> {
    for entry in fs::read_dir(HOME).with_context(|| format!("failed to read {HOME}"))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !name.starts_with(PREFIX) || !entry.file_type()?.is_dir() {
            continue;
        }
        // A world without a lock was begun by hand, or by somebody who died before the first process.
        let Ok(lock) = File::open(entry.path().join("lock")) else {
            continue;
        };
        if lock.try_lock().is_ok() {
            take_down(&name)
                .with_context(|| format!("failed to take down the crashed world {name}"))?;
        }
    }
    Ok(())
}

fn names(list: &Value) -> Result<Vec<String>> {
    list["items"]
        .as_array()
        .context("a list has no items")?
        .iter()
        .map(|item| {
            item["metadata"]["name"]
                .as_str()
                .map(str::to_owned)
                .context("an object has no name")
        })
        .collect()
}

/// The end of a log, for messages.
fn tail(text: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
