//! The objects of a cluster as documents: how they are taken, what their status says, and what goes on when the API server is away
//! or has forgotten everything.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tests::{
    kube::{Setup, World, root},
    programs::Programs,
};

const WAIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(200);

/// An agent as a process of a node, without a datapath.
struct Agent<'a> {
    world: &'a World,
    node: &'a str,
    program: PathBuf,
    folder: tempfile::TempDir,
    /// Where it is told that the API server is.
    kubeconfig: PathBuf,
    process: Option<Child>,
}

impl<'a> Agent<'a> {
    fn start(world: &'a World, node: &'a str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let kubeconfig = folder.path().join("kubeconfig");
        // The world's own file names a loopback address, which is another one on a node.
        let config = fs::read_to_string(world.state().join("kubeconfig"))?;
        fs::write(
            &kubeconfig,
            config.replace("127.0.0.1:6443", "198.19.255.254:6443"),
        )?;
        let mut agent = Self {
            world,
            node,
            program: Programs::locate()?.agent,
            folder,
            kubeconfig,
            process: None,
        };
        agent.again()?;
        Ok(agent)
    }

    fn again(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))?;
        let mut command = self.world.on_node(self.node, "env");
        command
            .arg(format!("KUBECONFIG={}", self.kubeconfig.display()))
            .arg(&self.program)
            .args([
                "--kubernetes",
                "--node-name",
                self.node,
                "--datapath",
                "none",
            ])
            .arg("--state")
            .arg(self.folder.path().join("state"))
            .arg("--admin")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(command.spawn().context("failed to start the agent")?);
        Ok(())
    }

    /// Ends it as the kubelet does.
    fn end(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    fn signal(&mut self, signal: Signal) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        kill(Pid::from_raw(process.id().try_into()?), signal)?;
        process.wait()?;
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn status(&self) -> Result<Value> {
        let output = Command::new(&self.program)
            .args(["status", "--json", "--admin"])
            .arg(self.socket())
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Waits until its status fits.
    fn wait(&self, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + WAIT;
        loop {
            match self.status() {
                Ok(status) if fits(&status) => return Ok(status),
                _ if Instant::now() < end => std::thread::sleep(PAUSE),
                other => {
                    let log = fs::read_to_string(self.folder.path().join("log"))?;
                    bail!("the agent does not become as expected: {other:?}\n{log}");
                }
            }
        }
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("the agent was not ended: {error:#}");
        }
    }
}

/// The kinds of `cardinal.dev`.
fn kinds(world: &World) -> Result<()> {
    world.apply_folder(&root().join("deploy/crds"))
}

fn cell(name: &str, address: &str, mistake: bool) -> String {
    // What only looks like an address is for the agent to see.
    let address = if mistake { "10.1.0.999" } else { address };
    let component = json!({
        "name": "web",
        "workloads": { "addresses": [address] },
        "endpoints": [{ "name": "api", "type": "TCP", "port": 7000 }],
    });
    json!({
        "apiVersion": "cardinal.dev/v1alpha1",
        "kind": "Cell",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "organization": "acme", "project": name, "environment": "prod", "components": [component] },
    })
    .to_string()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|one| one["type"] == kind)
}

/// Whether a condition has this status and is about the object as it is.
fn has(object: &Value, kind: &str, status: &str) -> bool {
    condition(object, kind).is_some_and(|one| {
        one["status"] == status && one["observedGeneration"] == object["metadata"]["generation"]
    })
}

fn cells(status: &Value) -> usize {
    status["cells"].as_array().map_or(0, Vec::len)
}

#[test]
fn kube_objects_are_taken_one_by_one_and_their_status_says_what_became_of_them() -> Result<()> {
    let world = World::up(&Setup {
        roles: false,
        ..Setup::default()
    })?;
    let agent = Agent::start(&world, "node-1")?;
    agent.wait(|status| status["agent"]["ready"] == true)?;

    // Kinds that are installed while the agent runs are taken up.
    kinds(&world)?;
    world.apply(&cell("shop", "10.1.0.5", false))?;
    world.apply(&cell("bank", "10.1.0.6", true))?;
    world.wait(WAIT, &["cell", "shop"], |cell| {
        has(cell, "Accepted", "True") && has(cell, "Programmed", "True")
    })?;
    let bank = world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Accepted", "False")
    })?;
    let message = condition(&bank, "Accepted").and_then(|one| one["message"].as_str());
    ensure!(
        message.is_some_and(
            |message| message.starts_with("spec.components[0].workloads.addresses[0]:")
        ),
        "{bank}"
    );
    let status = agent.wait(|status| cells(status) == 1)?;
    let refused = &status["config"]["cluster"]["refused"][0];
    ensure!(
        refused["object"] == "`Cell` default/bank" && refused["accepted"] == false,
        "{status}"
    );
    world.wait(WAIT, &["events.events.k8s.io"], |events| {
        let events = events["items"].as_array().into_iter().flatten();
        let about = |event: &Value| {
            event["regarding"]["name"] == "bank"
                && event["reason"] == "Refused"
                && event["note"].as_str() == message
        };
        events.into_iter().any(about)
    })?;

    // Mended, it is taken; its conditions are about the new generation.
    world.apply(&cell("bank", "10.1.0.6", false))?;
    world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Accepted", "True") && has(cell, "Programmed", "True")
    })?;
    agent.wait(|status| cells(status) == 2)?;

    // What somebody writes over our words comes back.
    let mut patch = world.kubectl(&["patch", "cell", "bank", "--subresource", "status"]);
    patch.args([
        "--type",
        "merge",
        "--patch",
        r#"{"status":{"conditions":[]}}"#,
    ]);
    ensure!(patch.stdout(Stdio::null()).status()?.success());
    world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Accepted", "True")
    })?;

    world.delete(&["cell", "shop"])?;
    agent.wait(|status| cells(status) == 1)?;
    Ok(())
}

fn writes(status: &Value) -> bool {
    status["config"]["cluster"]["writes_status"] == true
}

#[test]
fn kube_one_agent_writes_status_and_another_takes_its_place() -> Result<()> {
    let world = World::up(&Setup {
        nodes: 2,
        roles: false,
    })?;
    kinds(&world)?;
    let mut first = Agent::start(&world, "node-1")?;
    first.wait(writes)?;
    let mut second = Agent::start(&world, "node-2")?;
    second.wait(|status| status["agent"]["ready"] == true)?;
    ensure!(!writes(&second.status()?));
    world.apply(&cell("shop", "10.1.0.5", false))?;
    world.wait(WAIT, &["cell", "shop"], |cell| {
        has(cell, "Programmed", "True")
    })?;

    // One that ends gives the lease back; of one that is killed it runs out.
    first.end()?;
    second.wait(writes)?;
    first.again()?;
    first.wait(|status| status["agent"]["ready"] == true && !writes(status))?;
    second.signal(Signal::SIGKILL)?;
    first.wait(writes)?;
    world.apply(&cell("bank", "10.1.0.6", false))?;
    world.wait(WAIT, &["cell", "bank"], |cell| {
        has(cell, "Programmed", "True")
    })?;
    Ok(())
}

#[test]
fn kube_what_was_known_goes_on_without_an_api_server() -> Result<()> {
    let world = World::up(&Setup {
        roles: false,
        ..Setup::default()
    })?;
    kinds(&world)?;
    world.apply(&cell("shop", "10.1.0.5", false))?;
    world.apply(&cell("bank", "10.1.0.6", false))?;
    let mut agent = Agent::start(&world, "node-1")?;
    agent.wait(|status| cells(status) == 2)?;
    let kept = agent.folder.path().join("state/kubernetes/objects.jsonl");
    let end = Instant::now() + WAIT;
    while !kept.exists() {
        ensure!(
            Instant::now() < end,
            "nothing is kept in {}",
            kept.display()
        );
        std::thread::sleep(PAUSE);
    }

    // The API server goes while the agent runs.
    crash(&world, "kube-apiserver")?;
    let status = agent.wait(|status| {
        status["config"]["cluster"]["stale_seconds"]
            .as_u64()
            .is_some_and(|seconds| seconds > 0)
    })?;
    ensure!(
        cells(&status) == 2 && status["agent"]["ready"] == true,
        "{status}"
    );

    // An agent that starts meanwhile serves what was kept.
    agent.end()?;
    agent.again()?;
    let status = agent.wait(|status| cells(status) == 2)?;
    ensure!(status["config"]["cluster"]["complete"] == false, "{status}");

    // It comes back, and so do changes.
    ensure!(
        up(&world)?.status()?.success(),
        "the world did not come back"
    );
    world.apply(&cell("third", "10.1.0.7", false))?;
    agent.wait(|status| cells(status) == 3)?;
    agent.wait(|status| {
        let cluster = &status["config"]["cluster"];
        cluster["complete"] == true && cluster["stale_seconds"] == 0
    })?;
    Ok(())
}

#[test]
fn kube_an_api_server_that_has_forgotten_everything_is_asked_twice() -> Result<()> {
    let world = World::up(&Setup {
        roles: false,
        ..Setup::default()
    })?;
    kinds(&world)?;
    for (name, address) in [("shop", "10.1.0.5"), ("bank", "10.1.0.6")] {
        world.apply(&cell(name, address, false))?;
    }
    let agent = Agent::start(&world, "node-1")?;
    agent.wait(|status| cells(status) == 2)?;

    crash(&world, "kube-apiserver")?;
    crash(&world, "etcd")?;
    fs::remove_dir_all(world.state().join("etcd"))?;
    // It waits for nodes, which do not come back to a cluster that does not know them.
    let mut coming = up(&world)?.stderr(Stdio::null()).spawn()?;
    let answers = world.wait(WAIT, &["namespaces"], |list| list["items"].is_array());
    answers.and_then(|_| kinds(&world))?;
    // The first list is empty: it is asked for again, while everything goes on.
    let log = agent.folder.path().join("log");
    let end = Instant::now() + WAIT;
    while !doubts(&log)? {
        ensure!(Instant::now() < end, "{}", fs::read_to_string(&log)?);
        std::thread::sleep(PAUSE);
    }
    ensure!(cells(&agent.status()?) == 2);
    // The second one is believed.
    agent.wait(|status| cells(status) == 0)?;
    coming.wait()?;
    Ok(())
}

/// Whether a list of cells was doubted.
fn doubts(log: &Path) -> Result<bool> {
    let log = fs::read_to_string(log)?;
    Ok(log.lines().any(|line| {
        serde_json::from_str::<Value>(line).is_ok_and(|line| {
            line["kind"] == "Cell"
                && line["message"]
                    .as_str()
                    .is_some_and(|message| message.starts_with("a list lacks more than half"))
        })
    }))
}

/// Ends a component of the world's control plane without a word.
fn crash(world: &World, component: &str) -> Result<()> {
    let file = world.state().join(format!("{component}.pid"));
    let text =
        fs::read_to_string(&file).with_context(|| format!("failed to read {}", file.display()))?;
    let pid: i32 = text
        .split_whitespace()
        .next()
        .context("the file of the component's process is empty")?
        .parse()?;
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGKILL)?;
    let end = Instant::now() + WAIT;
    while kill(pid, None).is_ok() {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A process whose parent does not wait for it stays as a name.
        if state
            .rsplit(") ")
            .next()
            .is_none_or(|rest| rest.starts_with('Z'))
        {
            break;
        }
        ensure!(Instant::now() < end, "{component} does not end");
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// What brings back what does not run.
fn up(world: &World) -> Result<Command> {
    let agent = Programs::locate()?.agent;
    let mut up = world.script("up");
    up.arg("--images")
        .arg(root().join("tests/kube/images.yaml"))
        .env("CARDINAL_AGENT", agent)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Ok(up)
}
