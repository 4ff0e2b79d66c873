//! What peers say: the one line of JSON that each client prints, and the handle of one that runs.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// How an attempt ended, in the words of the table of rows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    /// `answer`, `connected`, `sent`, `timeout`, `refused`, `reset`, `unreachable`, `denied`, `no-such-name` or `error`.
    pub outcome: String,
    /// From the first step to this outcome.
    pub latency_us: u64,
    /// What came back.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answer: String,
    /// The system's words for an error.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Outcome {
    /// An outcome after some time.
    #[must_use]
    pub fn new(outcome: &str, after: Duration) -> Self {
        Self {
            outcome: outcome.to_owned(),
            latency_us: u64::try_from(after.as_micros()).unwrap_or(u64::MAX),
            answer: String::new(),
            detail: String::new(),
        }
    }

    /// The outcome that an error is: what the system said, or `error`.
    #[must_use]
    pub fn of_error(error: &anyhow::Error, after: Duration) -> Self {
        let kind = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<io::Error>())
            .map(io::Error::kind);
        let outcome = match kind {
            Some(io::ErrorKind::ConnectionRefused) => "refused",
            Some(
                io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof,
            ) => "reset",
            Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
                "unreachable"
            }
            Some(io::ErrorKind::TimedOut) => "timeout",
            Some(io::ErrorKind::PermissionDenied) => "denied",
            _ => "error",
        };
        Self {
            detail: format!("{error:#}"),
            ..Self::new(outcome, after)
        }
    }

    /// The same with what came back.
    #[must_use]
    pub fn with_answer(mut self, answer: String) -> Self {
        self.answer = answer;
        self
    }

    /// Prints the line that the other side reads.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn print(&self) -> Result<()> {
        let mut stdout = io::stdout().lock();
        serde_json::to_writer(&mut stdout, self)?;
        stdout.write_all(b"\n")?;
        Ok(stdout.flush()?)
    }
}

/// What `peer load` saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LoadReport {
    /// How many requests were sent.
    pub requests: u64,
    /// How many of them got no 2xx answer.
    pub failed: u64,
    /// Why, and how often.
    pub failures: BTreeMap<String, u64>,
    /// Who answered, and how often.
    pub answers: BTreeMap<String, u64>,
    /// The slowest request.
    pub slowest_us: u64,
}

/// What `peer steady` saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SteadyReport {
    /// How many connections were opened.
    pub connections: u32,
    /// Why connections were lost, one text each.
    pub lost: Vec<String>,
    /// Messages that came back.
    pub exchanges: u64,
    /// The longest that one took, microseconds: the gap that a connection had.
    pub longest_us: u64,
}

/// What `peer knock` saw.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KnockReport {
    /// Connections and datagrams that were tried.
    pub probes: u64,
    /// The longest time in which nothing was tried, microseconds: how long a leak could have been that nobody saw.
    pub longest_gap_us: u64,
    /// What came back.
    pub leaks: Vec<String>,
}

/// A running process whose lines of JSON are read as they come. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<Value>,
}

impl Running {
    /// Starts a process of its own process group, so that the terminal's Ctrl-C reaches only us.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(what: impl Into<String>, mut command: Command) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;

        let what = what.into();
        let mut child = command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {what}"))?;
        let stdout = child
            .stdout
            .take()
            .context("standard output is not piped")?;
        let stdin = child.stdin.take();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            what,
            child,
            stdin,
            lines,
            seen: Vec::new(),
        })
    }

    /// The next line as JSON; the process having ended is an error.
    ///
    /// # Errors
    /// No line came in time, or it is not what was expected.
    pub fn next<T: DeserializeOwned>(&mut self, wait: Duration) -> Result<T> {
        let line = match self.lines.recv_timeout(wait) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} said nothing for {} ms", self.what, wait.as_millis())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait()?;
                bail!("{} ended ({status}) and said nothing", self.what)
            }
        };
        serde_json::from_str(&line).with_context(|| format!("{} said `{line}`", self.what))
    }

    /// Waits until a line, old or new, fits.
    ///
    /// # Errors
    /// None fits in time, or the process ended.
    pub fn wait_for(&mut self, wait: Duration, fits: impl Fn(&Value) -> bool) -> Result<Value> {
        if let Some(line) = self.seen.iter().find(|line| fits(line)) {
            return Ok(line.clone());
        }
        let deadline = Instant::now() + wait;
        loop {
            let line: Value = self.next(deadline.saturating_duration_since(Instant::now()))?;
            self.seen.push(line.clone());
            if fits(&line) {
                return Ok(line);
            }
        }
    }

    /// Sends a line.
    ///
    /// # Errors
    /// The process is gone.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("standard input is closed")?;
        writeln!(stdin, "{line}").with_context(|| format!("{} does not listen", self.what))
    }

    /// Closes standard input: the process finishes what it does.
    pub fn finish(&mut self) {
        self.stdin = None;
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills with SIGKILL and reaps.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("failed to kill {}", self.what))?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether the process has ended, and how.
    ///
    /// # Errors
    /// The system refuses.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = self.kill()
        {
            eprintln!("{error:#}");
        }
    }
}
