//! Clients that say something and wait for its echo.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use tests::peer::Outcome;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, stdin},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

/// Whom to ask.
#[derive(Args)]
pub(crate) struct Options {
    /// The server.
    #[arg(long, value_name = "ADDR:PORT")]
    to: SocketAddr,
    /// A local address to send from; the system's choice without it.
    #[arg(long)]
    from: Option<SocketAddr>,
    /// What is sent, and expected back.
    #[arg(long, default_value = "hello")]
    text: String,
    /// How long to wait, for each step.
    #[arg(long, default_value_t = 1500)]
    timeout_ms: u64,
    /// UDP: leave the socket unconnected, so that each datagram names its destination.
    #[arg(long)]
    unconnected: bool,
}

impl Options {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = if self.to.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        if let Some(from) = self.from {
            socket.bind(from)?;
        }
        let stream = socket.connect(self.to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn exchange(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
        stream.write_all(text.as_bytes()).await?;
        let mut echo = vec![0; text.len()];
        stream.read_exact(&mut echo).await?;
        Ok(String::from_utf8_lossy(&echo).into_owned())
    }
}

fn outcome(
    result: Result<std::io::Result<String>, tokio::time::error::Elapsed>,
    start: Instant,
) -> Outcome {
    match result {
        Err(_) => Outcome::new("timeout", start.elapsed()),
        Ok(Err(error)) => Outcome::of_error(&error.into(), start.elapsed()),
        Ok(Ok(answer)) => Outcome::new("answer", start.elapsed()).with_answer(answer),
    }
}

/// One connection, one echo.
pub(crate) async fn tcp(options: Options) -> Result<()> {
    let start = Instant::now();
    let exchange = async {
        let mut stream = options.connect().await?;
        Options::exchange(&mut stream, &options.text).await
    };
    outcome(timeout(options.timeout(), exchange).await, start).print()
}

/// One datagram, one echo.
pub(crate) async fn udp(options: Options) -> Result<()> {
    let start = Instant::now();
    let exchange = async {
        let any = if options.to.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = match options.from {
            Some(from) => UdpSocket::bind(from).await?,
            None => UdpSocket::bind(any).await?,
        };
        let mut buffer = vec![0; 64 * 1024];
        let n = if options.unconnected {
            socket.send_to(options.text.as_bytes(), options.to).await?;
            // The address that the reply seems to come from must be the one that was asked.
            loop {
                let (n, from) = socket.recv_from(&mut buffer).await?;
                if from == options.to {
                    break n;
                }
            }
        } else {
            socket.connect(options.to).await?;
            socket.send(options.text.as_bytes()).await?;
            socket.recv(&mut buffer).await?
        };
        Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
    };
    outcome(timeout(options.timeout(), exchange).await, start).print()
}

/// One connection, an echo for each line of standard input; the first outcome is that of connecting.
pub(crate) async fn hold(options: Options) -> Result<()> {
    let start = Instant::now();
    let mut stream = match timeout(options.timeout(), options.connect()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return outcome(Ok(Err(error)), start).print(),
        Err(elapsed) => return outcome(Err(elapsed), start).print(),
    };
    Outcome::new("connected", start.elapsed()).print()?;
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines
        .next_line()
        .await
        .context("failed to read standard input")?
    {
        let start = Instant::now();
        outcome(
            timeout(options.timeout(), Options::exchange(&mut stream, &line)).await,
            start,
        )
        .print()?;
    }
    Ok(())
}
