//! The load generator: a process in a pod's cgroup and namespace that sends, with threads in the other pod's namespace
//! that receive. All of them are pinned to one core and block in plain system calls, so that the time of a transaction is
//! the CPU that it takes.
//!
//! [`Order`]s come on standard input, one line of JSON each; each is answered by one line, an [`Answer`].

mod client;
mod many;
mod server;

use std::{
    io::{BufRead as _, stdin},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

pub(crate) use many::wait;
pub(crate) use server::{answer_once, connections};

/// Ports of the servers, on every address of the namespace that they run in.
pub(crate) mod port {
    /// TCP, answers each message on the same connection.
    pub(crate) const RR: u16 = 7001;
    /// TCP, answers one message and closes.
    pub(crate) const CRR: u16 = 7002;
    /// TCP, takes a stream.
    pub(crate) const BULK: u16 = 7003;
    /// UDP, counts.
    pub(crate) const UDP: u16 = 7004;
    /// TCP, answers each message of many connections at a time.
    pub(crate) const MANY: u16 = 7005;
    /// TCP, a proxy before the one above, on the node.
    pub(crate) const PROXY: u16 = 7006;
}

/// Bytes of a request, of its answer and of a datagram.
const MESSAGE: usize = 64;
/// Datagrams that are sent before the sender waits until they have arrived: few enough for the receiver's buffer, so that
/// none is lost, and enough that the two switches do not count.
const BATCH: u64 = 64;

/// How the generator is started.
#[derive(Args)]
pub(crate) struct Options {
    /// The core for everything that this process does.
    #[arg(long)]
    core: usize,
    /// The network namespace that the servers run in.
    #[arg(long, value_name = "FILE")]
    servers: PathBuf,
}

/// What to do for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// A request and its answer on a connection that stays open.
    Rr,
    /// A connection, a request, its answer and the close.
    Crr,
    /// Requests and answers on many connections at a time, which stay open.
    Many,
    /// Datagrams one way through a connected socket.
    Udp,
    /// Datagrams one way through an unconnected socket.
    UdpTo,
    /// A stream; counted in bytes.
    Bulk,
    /// Datagrams and openings to and from many ports: every one of them is a flow of its own.
    Flows,
}

/// One thing to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// What.
    pub(crate) kind: Kind,
    /// With whom.
    pub(crate) to: SocketAddr,
    /// For how long, in microseconds; for [`Kind::Flows`] how many.
    pub(crate) amount: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Transactions, datagrams that arrived, or bytes.
    pub(crate) count: u64,
    /// Time that it took, in nanoseconds.
    pub(crate) nanos: u64,
    /// CPU time of this process within it, in nanoseconds.
    pub(crate) cpu_nanos: u64,
    /// Datagrams that did not arrive.
    pub(crate) lost: u64,
}

/// The answer to an order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The process runs and its servers listen.
    Ready,
    /// It was done.
    Done(Done),
    /// It could not be done.
    Failed(String),
}

/// Serves orders until standard input ends.
pub(crate) fn run(options: &Options) -> Result<()> {
    pin(options.core)?;
    let mut client = client::Client::new(server::start(&options.servers)?);
    say(&Answer::Ready)?;
    for line in stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?).context("failed to read an order")?;
        say(&match client.run(&order) {
            Ok(done) => Answer::Done(done),
            Err(error) => Answer::Failed(format!("{error:#}")),
        })?;
    }
    Ok(())
}

fn say(answer: &Answer) -> Result<()> {
    println!("{}", serde_json::to_string(answer)?);
    Ok(())
}

/// Keeps the calling thread, and those that it starts, on one core.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .with_context(|| format!("failed to stay on core {core}"))
}
