//! The load generators of a side: started in a place, ordered, killed.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Pid;
use tests::world::Place;

use crate::load::{Answer, Done, Order};

/// How long an answer may take beyond the time that was ordered.
const PATIENCE: Duration = Duration::from_secs(20);
/// The priority of the generators: whoever else wants their core gets about one percent of it.
pub(crate) const NICE: &str = "-20";

/// Gives a thread, and those that it starts from then on, the priority of the generators.
pub(crate) fn hurry(thread: Pid) -> Result<()> {
    let status = Command::new("renice")
        .args(["-n", NICE, "-p", &thread.to_string()])
        .stdout(Stdio::null())
        .status()
        .context("failed to start renice")?;
    if !status.success() {
        bail!("renice failed: {status}");
    }
    Ok(())
}

/// A running generator. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Load {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
    place: String,
}

impl Load {
    /// Starts a generator in `place`, with servers in the namespace of `servers`.
    pub(crate) fn start(place: &Place, servers: &Place, core: usize) -> Result<Self> {
        let program = env::current_exe().context("this program's own file is not known")?;
        let mut command = place.command("nice");
        command.args(["-n", NICE]).arg(program).arg("load");
        command.args(["--core", &core.to_string()]);
        command.arg("--servers");
        command.arg(format!("/run/netns/{}", servers.netns()));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start a load generator")?;
        let orders = child.stdin.take().context("its input is not piped")?;
        let output = child.stdout.take().context("its output is not piped")?;
        let (tell, answers) = sync_channel(1);
        thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                // Unreadable output ends the answers, and so does the end of whoever waits for them.
                if line.map_or(true, |line| tell.send(line).is_err()) {
                    return;
                }
            }
        });
        let load = Self {
            child,
            orders,
            answers,
            place: place.name().to_owned(),
        };
        match load.answer(Duration::ZERO)? {
            Answer::Ready => Ok(load),
            other => bail!("a load generator began with {other:?}"),
        }
    }

    /// Has something done.
    pub(crate) fn run(&mut self, order: &Order, expected: Duration) -> Result<Done> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?)
            .with_context(|| format!("the load generator in {} is gone", self.place))?;
        match self.answer(expected)? {
            Answer::Done(done) if done.count > 0 && done.nanos > 0 => Ok(done),
            Answer::Failed(error) => bail!("from {}: {error}", self.place),
            other => bail!("the load generator in {} answered {other:?}", self.place),
        }
    }

    fn answer(&self, expected: Duration) -> Result<Answer> {
        let line = self
            .answers
            .recv_timeout(expected + PATIENCE)
            .with_context(|| format!("the load generator in {} does not answer", self.place))?;
        serde_json::from_str(&line).with_context(|| format!("failed to read `{line}`"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // One that ended by itself has left its error on this terminal.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
