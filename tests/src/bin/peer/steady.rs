//! Many connections that never rest, and a caller who never gives up: the witnesses of a crash.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use tests::peer::{KnockReport, SteadyReport};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, stdin},
    net::{TcpStream, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

/// Whom to talk to all the time.
#[derive(Args)]
pub(crate) struct SteadyOptions {
    /// A server that echoes.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 100)]
    connections: u32,
    /// Pause between two exchanges of a connection.
    #[arg(long, default_value_t = 20)]
    pause_ms: u64,
}

/// Whom to call in vain.
#[derive(Args)]
pub(crate) struct KnockOptions {
    /// An address and port that nobody may reach.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// How long to wait for each answer.
    #[arg(long, default_value_t = 20)]
    timeout_ms: u64,
    /// How many call at the same time.
    #[arg(long, default_value_t = 1)]
    callers: u32,
}

/// Longer than any repair, shorter than a test: silence for that long is a lost connection.
const LOST: Duration = Duration::from_secs(30);

/// Turns the end of standard input into a value that changes.
fn until_input_ends() -> watch::Receiver<bool> {
    let (end, ended) = watch::channel(false);
    tokio::spawn(async move {
        let mut rest = Vec::new();
        // An error is an end too.
        let _ = stdin().read_to_end(&mut rest).await;
        end.send_replace(true);
    });
    ended
}

/// Exchanges of one connection, and the longest of them.
async fn talk(
    mut stream: TcpStream,
    ended: watch::Receiver<bool>,
    pause: Duration,
) -> Result<(u64, Duration)> {
    let (mut exchanges, mut longest) = (0, Duration::ZERO);
    let mut echo = [0; 8];
    while !*ended.borrow() {
        let start = Instant::now();
        stream.write_all(b"steady!\n").await?;
        timeout(LOST, stream.read_exact(&mut echo)).await??;
        exchanges += 1;
        longest = longest.max(start.elapsed());
        sleep(pause).await;
    }
    Ok((exchanges, longest))
}

/// Talks until standard input ends, then prints a `SteadyReport`.
pub(crate) async fn steady(options: SteadyOptions) -> Result<()> {
    let ended = until_input_ends();
    let pause = Duration::from_millis(options.pause_ms);
    let mut talks = JoinSet::new();
    for _ in 0..options.connections {
        let stream = TcpStream::connect(options.to)
            .await
            .with_context(|| format!("failed to connect to {}", options.to))?;
        stream.set_nodelay(true)?;
        talks.spawn(talk(stream, ended.clone(), pause));
    }
    println!("{{\"event\":\"ready\"}}");
    let mut report = SteadyReport {
        connections: options.connections,
        lost: Vec::new(),
        exchanges: 0,
        longest_us: 0,
    };
    while let Some(talked) = talks.join_next().await {
        match talked? {
            Ok((exchanges, longest)) => {
                report.exchanges += exchanges;
                let longest = longest.as_micros().try_into().unwrap_or(u64::MAX);
                report.longest_us = report.longest_us.max(longest);
            }
            Err(error) => report.lost.push(format!("{error:#}")),
        }
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// When somebody last called, and the longest time in which nobody did.
struct Calls {
    last: Instant,
    longest_gap: Duration,
    probes: u64,
}

impl Calls {
    fn count(calls: &Mutex<Self>) {
        let mut calls = calls.lock().expect(UNPOISONED);
        let now = Instant::now();
        calls.longest_gap = calls.longest_gap.max(now - calls.last);
        calls.last = now;
        calls.probes += 1;
    }
}

/// Why the lock on [`Calls`] is never poisoned.
const UNPOISONED: &str = "nothing that is done under the lock panics";

/// One caller: what came back.
async fn call(
    to: SocketAddr,
    patience: Duration,
    ended: watch::Receiver<bool>,
    calls: Arc<Mutex<Calls>>,
) -> Result<Vec<String>> {
    let any = SocketAddr::new(
        match to {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        },
        0,
    );
    let mut leaks = Vec::new();
    while !*ended.borrow() {
        Calls::count(&calls);
        match timeout(patience, TcpStream::connect(to)).await {
            Err(_) => {}
            Ok(Ok(_)) => leaks.push("TCP: connected".to_owned()),
            Ok(Err(error)) => leaks.push(format!("TCP: {error}")),
        }
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        let mut buffer = [0; 64];
        Calls::count(&calls);
        let asked = async {
            socket.send(b"knock").await?;
            socket.recv(&mut buffer).await
        };
        match timeout(patience, asked).await {
            Err(_) => {}
            Ok(Ok(_)) => leaks.push("UDP: answered".to_owned()),
            Ok(Err(error)) => leaks.push(format!("UDP: {error}")),
        }
    }
    Ok(leaks)
}

/// Calls by TCP and UDP until standard input ends, then prints a `KnockReport`. Whatever comes back is a leak: also a refusal, which
/// only the one who was called can send.
pub(crate) async fn knock(options: KnockOptions) -> Result<()> {
    let ended = until_input_ends();
    let patience = Duration::from_millis(options.timeout_ms);
    let calls = Arc::new(Mutex::new(Calls {
        last: Instant::now(),
        longest_gap: Duration::ZERO,
        probes: 0,
    }));
    println!("{{\"event\":\"ready\"}}");
    let mut callers = JoinSet::new();
    for _ in 0..options.callers {
        callers.spawn(call(options.to, patience, ended.clone(), calls.clone()));
    }
    let mut leaks = Vec::new();
    while let Some(came_back) = callers.join_next().await {
        leaks.extend(came_back??);
    }
    let report = {
        let calls = calls.lock().expect(UNPOISONED);
        KnockReport {
            probes: calls.probes,
            longest_gap_us: calls.longest_gap.as_micros().try_into().unwrap_or(u64::MAX),
            leaks,
        }
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
