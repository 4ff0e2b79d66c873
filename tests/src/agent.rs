//! The real agent as a process, and what its admin socket says.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::{net::UnixStream, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    interrupt,
    world::{World, run},
};

/// How long an answer on the admin socket may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// A running agent. Dropping it kills it.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    admin: PathBuf,
    log: PathBuf,
}

/// What the kernel did with a packet.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// `pass`, `drop` or `steer`.
    pub verdict: String,
    /// Its name of the reason.
    pub reason: String,
    /// File, line and document of the declaration behind the verdict; empty if nothing was declared.
    pub document: String,
    /// Its field.
    pub field: String,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port.
    #[serde(default)]
    pub dport: u16,
}

impl Event {
    /// The kernel's reason, with the field that it comes from.
    #[must_use]
    pub fn said(&self) -> String {
        format!("kernel {} {}", self.reason, self.field)
            .trim_end()
            .to_owned()
    }
}

impl Agent {
    /// Starts the agent on a world's node.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(world: &World, program: &Path, config: &Path) -> Result<Self> {
        Self::start_as(world, program, config, &[])
    }

    /// As [`Agent::start`], with further options.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_as(
        world: &World,
        program: &Path,
        config: &Path,
        options: &[&str],
    ) -> Result<Self> {
        let mut command = world.node().command(program);
        command
            .arg("--bpffs")
            .arg(world.bpffs())
            .arg("--cgroup")
            .arg(world.node_cgroup())
            .args(options);
        Self::start_with(command, config, world.dir())
    }

    /// Starts the router alone: nothing is enforced and no root is needed.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start_unenforced(program: &Path, config: &Path, dir: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["--datapath", "none"]);
        Self::start_with(command, config, dir)
    }

    fn start_with(mut command: Command, config: &Path, dir: &Path) -> Result<Self> {
        let admin = dir.join("admin.sock");
        let log = dir.join("agent.log");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("failed to open {}", log.display()))?;
        let child = command
            .arg("--config")
            .arg(config)
            .arg("--state")
            .arg(dir.join("state"))
            .arg("--admin")
            .arg(&admin)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("failed to start the agent")?;
        Ok(Self { child, admin, log })
    }

    /// Waits until the first generation is active.
    ///
    /// # Errors
    /// The agent ended, or is not ready in time; the message carries the end of its log.
    pub fn wait_ready(&mut self, wait: Duration) -> Result<Duration> {
        // Until the socket is there, asking fails.
        let ready = |agent: &Self| agent.ask("/readyz").is_ok_and(|(status, _)| status == 200);
        self.wait_until("is not ready", wait, ready)
    }

    /// Waits until this agent has the node, and not another one that has the same admin socket.
    ///
    /// # Errors
    /// The agent ended, or does not take over in time; the message carries the end of its log.
    pub fn wait_serving(&mut self, wait: Duration) -> Result<Duration> {
        self.wait_until("does not take over", wait, Self::serves)
    }

    /// Waits until something holds. `otherwise` says what it is that the agent does not do.
    fn wait_until(
        &mut self,
        otherwise: &str,
        wait: Duration,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the agent ended ({status}); its log ends with\n{}",
                    self.log_tail()
                );
            }
            if holds(self) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > wait {
                bail!(
                    "the agent {otherwise} within {} s; its log ends with\n{}",
                    wait.as_secs(),
                    self.log_tail()
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Whether this agent has the node and is ready.
    #[must_use]
    pub fn serves(&self) -> bool {
        // While nobody has the admin socket, asking fails.
        self.status().is_ok_and(|status| {
            status["agent"]["pid"] == self.child.id() && status["agent"]["ready"] == true
        })
    }

    /// Status and body of a GET on the admin socket.
    ///
    /// # Errors
    /// The socket is not there, or what came is no HTTP.
    pub fn ask(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(&self.admin)
            .with_context(|| format!("failed to connect to {}", self.admin.display()))?;
        stream.set_read_timeout(Some(ADMIN_TIMEOUT))?;
        // HTTP/1.0: the end of the connection is the end of the answer.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: admin\r\n\r\n")?;
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .context("the admin socket's answer breaks off")?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("the admin socket's answer has no head")?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .context("the admin socket's answer has no status")?;
        Ok((status, body.to_owned()))
    }

    /// The JSON of a path of the admin socket.
    ///
    /// # Errors
    /// The answer is not 200, or no JSON.
    pub fn json(&self, path: &str) -> Result<Value> {
        match self.ask(path)? {
            (200, body) => {
                serde_json::from_str(&body).with_context(|| format!("{path} answers `{body}`"))
            }
            (status, body) => bail!("{path} answers {status}: {}", body.trim()),
        }
    }

    /// Everything that `cardinal-agent status --json` shows.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn status(&self) -> Result<Value> {
        self.json("/debug/status")
    }

    /// The number of the next kernel event.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn next_event(&self) -> Result<u64> {
        next(&self.json(&format!("/debug/events?since={}", u64::MAX))?)
    }

    /// The number of the next request's record.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn next_request(&self) -> Result<u64> {
        next(&self.json(&format!("/debug/requests?since={}", u64::MAX))?)
    }

    /// Kernel events from a number on.
    ///
    /// # Errors
    /// The agent does not answer, or an event is not as agreed.
    pub fn events(&self, since: u64) -> Result<Vec<Event>> {
        let mut answer = self.json(&format!("/debug/events?since={since}"))?;
        serde_json::from_value(answer["events"].take()).context("an event is not as agreed")
    }

    /// Records of requests from a number on.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn requests(&self, since: u64) -> Result<Vec<Value>> {
        let mut answer = self.json(&format!("/debug/requests?since={since}"))?;
        serde_json::from_value(answer["requests"].take())
            .context("the records of requests are not a list")
    }

    /// Waits until the status fits.
    ///
    /// # Errors
    /// It does not in time.
    pub fn wait_status(
        &self,
        wait: Duration,
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            let status = self.status()?;
            if fits(&status) {
                return Ok(status);
            }
            if start.elapsed() > wait {
                bail!(
                    "{what} did not happen within {} s; the configuration is {}",
                    wait.as_secs(),
                    status["config"]
                );
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Memory that the agent has now, in kilobytes resident.
    ///
    /// # Errors
    /// The agent is gone.
    pub fn resident_kb(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        status
            .lines()
            .find_map(|line| {
                line.strip_prefix("VmRSS:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse()
                    .ok()
            })
            .context("the agent's status has no VmRSS")
    }

    /// SIGKILL, as a crash would be.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("failed to kill the agent")?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, as an upgrade would be, and the wait for the end.
    ///
    /// # Errors
    /// The system refuses, the agent does not end in time, or it ends with an error.
    pub fn end(&mut self, wait: Duration) -> Result<()> {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let end = Instant::now() + wait;
        loop {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("the agent ended with {status}:\n{}", self.log_tail());
                }
                return Ok(());
            }
            if Instant::now() > end {
                bail!("the agent does not end:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The admin socket.
    #[must_use]
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// How often the agent's log says something.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn says(&self, what: &str) -> Result<usize> {
        let text = fs::read_to_string(&self.log)
            .with_context(|| format!("failed to read {}", self.log.display()))?;
        Ok(text.matches(what).count())
    }

    /// The end of the agent's log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        const LINES: usize = 30;
        match fs::read_to_string(&self.log) {
            Ok(text) => {
                let lines: Vec<_> = text.lines().collect();
                lines[lines.len().saturating_sub(LINES)..].join("\n")
            }
            Err(error) => format!("(no log: {error})"),
        }
    }
}

fn next(answer: &Value) -> Result<u64> {
    answer["next"]
        .as_u64()
        .context("the answer has no number `next`")
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = self.kill()
        {
            eprintln!("{error:#}");
        }
    }
}
