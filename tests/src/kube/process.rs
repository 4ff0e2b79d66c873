//! An agent as a process of a node, without a datapath; and components of the control plane that end and come back.

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
use serde_json::Value;

use super::{World, root};
use crate::programs::Programs;

const WAIT: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(200);

/// An agent that is no pod, so that it can be started while there is no API server. Dropping it ends it.
#[derive(Debug)]
pub struct Agent<'a> {
    world: &'a World,
    node: &'a str,
    program: PathBuf,
    folder: PathBuf,
    /// Where it is told that the API server is.
    kubeconfig: PathBuf,
    process: Option<Child>,
}

impl<'a> Agent<'a> {
    /// Starts one, which keeps its files in `folder`.
    ///
    /// # Errors
    /// The folder cannot be written, or the program cannot be started.
    pub fn start(world: &'a World, node: &'a str, folder: &Path) -> Result<Self> {
        let kubeconfig = folder.join("kubeconfig");
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
            folder: folder.to_owned(),
            kubeconfig,
            process: None,
        };
        agent.again()?;
        Ok(agent)
    }

    /// Starts it again, after [`Self::end`] or [`Self::signal`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn again(&mut self) -> Result<()> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let mut command = self.world.on_node(self.node, "env");
        command
            .arg(format!("KUBECONFIG={}", self.kubeconfig.display()))
            .arg(&self.program)
            .args(["--kubernetes", "--node-name", self.node])
            .args(["--datapath", "none", "--state"])
            .arg(self.folder.join("state"))
            .arg("--admin")
            .arg(self.socket())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.process = Some(command.spawn().context("failed to start the agent")?);
        Ok(())
    }

    /// Ends it as the kubelet does.
    ///
    /// # Errors
    /// The system refuses.
    pub fn end(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    /// Ends it by a signal.
    ///
    /// # Errors
    /// The system refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        let process_id = Pid::from_raw(process.id().try_into()?);
        kill(process_id, signal)?;
        // One that was stopped would not see it.
        kill(process_id, Signal::SIGCONT)?;
        process.wait()?;
        Ok(())
    }

    /// Stops it where it is, until [`Self::go_on`]: it hears and says nothing, and keeps its connections.
    ///
    /// # Errors
    /// It does not run, or the system refuses.
    pub fn stop(&self) -> Result<()> {
        self.tell(Signal::SIGSTOP)
    }

    /// Lets one that was stopped go on.
    ///
    /// # Errors
    /// It does not run, or the system refuses.
    pub fn go_on(&self) -> Result<()> {
        self.tell(Signal::SIGCONT)
    }

    fn tell(&self, signal: Signal) -> Result<()> {
        let process = self.process.as_ref().context("the agent does not run")?;
        kill(Pid::from_raw(process.id().try_into()?), signal)?;
        Ok(())
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The objects that it keeps for a start without an API server.
    #[must_use]
    pub fn kept(&self) -> PathBuf {
        self.folder.join("state/kubernetes/objects.jsonl")
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("admin.sock")
    }

    /// Its status.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Result<Value> {
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
    ///
    /// # Errors
    /// It does not in time; the message has the log.
    pub fn wait(&self, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + WAIT;
        loop {
            match self.status() {
                Ok(status) if fits(&status) => return Ok(status),
                _ if Instant::now() < end => std::thread::sleep(PAUSE),
                other => {
                    let log = fs::read_to_string(self.log())?;
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

impl World {
    /// Ends a component of the control plane without a word, and waits until it is gone.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn crash(&self, component: &str) -> Result<()> {
        let file = self.state().join(format!("{component}.pid"));
        let text = fs::read_to_string(&file)
            .with_context(|| format!("failed to read {}", file.display()))?;
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
    ///
    /// # Errors
    /// The programs are not built.
    pub fn up_again(&self) -> Result<Command> {
        let programs = Programs::locate()?;
        let mut up = self.script("up");
        up.arg("--images")
            .arg(root().join("tests/kube/images.yaml"))
            .env("CARDINAL_AGENT", programs.agent)
            .env("CARDINAL_PEER", programs.peer)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Ok(up)
    }
}
