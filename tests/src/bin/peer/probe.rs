//! Clients that say something and wait for its echo.

use std::{
    net::SocketAddr,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use tests::peer::Outcome;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, stdin},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::{error::Elapsed, timeout},
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

    /// Says something and reads its echo. The kernel of the other side acknowledges what was said soon or never; whoever is to
    /// answer it has its time.
    async fn exchange(
        &self,
        stream: &mut TcpStream,
        text: &str,
    ) -> Result<std::io::Result<String>, Elapsed> {
        let mut echo = vec![0; text.len()];
        let asked = async {
            stream.write_all(text.as_bytes()).await?;
            stream.read_exact(&mut echo).await
        };
        let read = match timeout(self.timeout(), asked).await {
            Err(_) if unacknowledged(stream).is_ok_and(|bytes| bytes == 0) => {
                timeout(SURELY, stream.read_exact(&mut echo)).await?
            }
            read => read?,
        };
        Ok(read.map(|_| String::from_utf8_lossy(&echo).into_owned()))
    }
}

/// Longer than a process takes on a busy machine.
const SURELY: Duration = Duration::from_secs(30);

/// Bytes that the other side's kernel has not acknowledged (`SIOCOUTQ`, tcp(7)).
fn unacknowledged(stream: &TcpStream) -> std::io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one integer, which outlives the call.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    match failed {
        0 => Ok(bytes),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn outcome(result: Result<std::io::Result<String>, Elapsed>, start: Instant) -> Outcome {
    match result {
        Err(_) => Outcome::new("timeout", start.elapsed()),
        Ok(Err(error)) => Outcome::of_error(&error.into(), start.elapsed()),
        Ok(Ok(answer)) => Outcome::new("answer", start.elapsed()).with_answer(answer),
    }
}

/// One connection, one echo.
pub(crate) async fn tcp(options: Options) -> Result<()> {
    let start = Instant::now();
    let told = match timeout(options.timeout(), options.connect()).await {
        Ok(Ok(mut stream)) => options.exchange(&mut stream, &options.text).await,
        Ok(Err(error)) => Ok(Err(error)),
        Err(elapsed) => Err(elapsed),
    };
    outcome(told, start).print()
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
        outcome(options.exchange(&mut stream, &line).await, start).print()?;
    }
    Ok(())
}
