//! A proxy on the node of a side, and what of its connections is spliced.

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdin, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::{time::ClockId, unistd::Pid};
use tests::world::{NODE, World};

use crate::{
    load::{Done, port},
    profile::Profiler,
    proxy,
    side::{CLIENT, SERVER},
    splice::{Messages, Splice},
    traffic::NICE,
};

/// Which connections are spliced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Legs {
    /// None.
    None,
    /// Those between the proxy and the server.
    Upstream,
    /// Those between client and proxy too.
    Both,
}

impl Legs {
    /// The ports that their servers have.
    fn ports(self) -> &'static [u16] {
        match self {
            Self::None => &[],
            Self::Upstream => &[port::MANY],
            Self::Both => &[port::MANY, port::PROXY],
        }
    }

    /// Messages that each request has on them: it and its answer on each.
    fn messages(self) -> u64 {
        2 * self.ports().len() as u64
    }
}

/// A running proxy. Dropping it kills it.
pub(crate) struct Proxied {
    child: Child,
    /// The end of its input would end it.
    _input: ChildStdin,
    legs: Legs,
    splice: Option<(Splice, Profiler)>,
    requests: u64,
}

/// What was counted when an order began.
pub(crate) struct Before {
    cpu_nanos: u64,
    messages: Messages,
}

impl Proxied {
    /// Starts a proxy between the pods.
    pub(crate) fn start(world: &World, legs: Legs, core: usize) -> Result<Self> {
        let splice = match legs {
            Legs::None => None,
            _ => {
                let before = Profiler::programs()?;
                let addresses = [CLIENT.v4, NODE.v4, SERVER.v4];
                let splice = Splice::attach(&world.node_cgroup(), &addresses, legs.ports())?;
                Some((splice, Profiler::since(&before)?))
            }
        };
        let program = env::current_exe().context("this program's own file is not known")?;
        let mut command = world.node().command("nice");
        command.args(["-n", NICE]).arg(program).arg("proxy");
        command.args(["--core", &core.to_string()]);
        command.args(["--listen", &format!("{}:{}", NODE.v4, port::PROXY)]);
        command.args(["--to", &format!("{}:{}", SERVER.v4, port::MANY)]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start a proxy")?;
        let input = child.stdin.take().context("its input is not piped")?;
        let output = child.stdout.take().context("its output is not piped")?;
        let proxied = Self {
            child,
            _input: input,
            legs,
            splice,
            requests: 0,
        };
        let mut word = String::new();
        BufReader::new(output).read_line(&mut word)?;
        if word.trim_end() != proxy::READY {
            bail!("a proxy did not begin: it has said why");
        }
        Ok(proxied)
    }

    /// Before an order.
    pub(crate) fn before(&self) -> Result<Before> {
        Ok(Before {
            cpu_nanos: self.cpu_nanos()?,
            messages: self.messages()?,
        })
    }

    /// After it: the proxy's time is part of what was used, and what should be spliced was.
    pub(crate) fn after(&mut self, before: &Before, done: &mut Done) -> Result<()> {
        done.cpu_nanos += self.cpu_nanos()? - before.cpu_nanos;
        let redirected = self.messages()?.redirected - before.messages.redirected;
        let expected = self.legs.messages() * done.count;
        if redirected < expected {
            bail!("only {redirected} of {expected} messages were redirected inside the kernel");
        }
        self.requests += done.count;
        Ok(())
    }

    /// What became of the messages so far.
    pub(crate) fn remark(&self) -> Result<String> {
        let messages = self.messages()?;
        Ok(format!(
            "{:.2} messages of each of {} requests redirected, {} in all not",
            messages.redirected as f64 / self.requests.max(1) as f64,
            self.requests,
            messages.passed
        ))
    }

    /// What the splicing programs do.
    pub(crate) fn profiler(&self) -> Option<&Profiler> {
        self.splice.as_ref().map(|(_, profiler)| profiler)
    }

    fn messages(&self) -> Result<Messages> {
        match &self.splice {
            Some((splice, _)) => splice.messages(),
            None => Ok(Messages::default()),
        }
    }

    fn cpu_nanos(&self) -> Result<u64> {
        let time = ClockId::pid_cpu_clock_id(Pid::from_raw(self.child.id().try_into()?))
            .and_then(ClockId::now)
            .context("the proxy is gone")?;
        Ok(u64::try_from(
            time.tv_sec() * 1_000_000_000 + time.tv_nsec(),
        )?)
    }
}

impl Drop for Proxied {
    fn drop(&mut self) {
        // One that ended by itself has left its error on this terminal.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
