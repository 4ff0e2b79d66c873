//! Many connections that never rest, and a caller who never gives up: the witnesses of a crash.

use std::{net::SocketAddr, time::Duration};

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

/// Calls by TCP and UDP until standard input ends, then prints a `KnockReport`. Whatever comes back is a leak: also a refusal, which
/// only the one who was called can send.
pub(crate) async fn knock(options: KnockOptions) -> Result<()> {
    let ended = until_input_ends();
    let patience = Duration::from_millis(options.timeout_ms);
    let any = SocketAddr::new(
        match options.to {
            SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        },
        0,
    );
    println!("{{\"event\":\"ready\"}}");
    let mut report = KnockReport {
        probes: 0,
        leaks: Vec::new(),
    };
    while !*ended.borrow() {
        report.probes += 2;
        match timeout(patience, TcpStream::connect(options.to)).await {
            Err(_) => {}
            Ok(Ok(_)) => report.leaks.push("TCP: connected".to_owned()),
            Ok(Err(error)) => report.leaks.push(format!("TCP: {error}")),
        }
        let socket = UdpSocket::bind(any).await?;
        socket.connect(options.to).await?;
        let mut buffer = [0; 64];
        let asked = async {
            socket.send(b"knock").await?;
            socket.recv(&mut buffer).await
        };
        match timeout(patience, asked).await {
            Err(_) => {}
            Ok(Ok(_)) => report.leaks.push("UDP: answered".to_owned()),
            Ok(Err(error)) => report.leaks.push(format!("UDP: {error}")),
        }
    }
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
