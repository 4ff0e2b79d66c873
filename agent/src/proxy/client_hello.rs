//! The server name of a TLS connection that may stay closed: read ahead, and given back.

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::net::TcpStream;

use super::prefixed::Prefixed;

/// Bytes of a `ClientHello` that are read at most.
const MAX: usize = 16 * 1024;

/// Until the `ClientHello` is complete.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no readable `ClientHello`.
pub(super) enum NoHello {
    /// Not one, not acceptable, or not in time; with the alert to answer.
    Refused(String, Vec<u8>),
    /// The client left.
    Gone(io::Error),
}

/// Reads ahead to the end of the `ClientHello` and gives its one server name in lower case.
/// Encrypted `ClientHello`s are opaque: their outer name counts.
pub(super) async fn read(stream: &mut Prefixed<TcpStream>) -> Result<Option<String>, NoHello> {
    match tokio::time::timeout(PATIENCE, name(stream)).await {
        Ok(name) => name,
        Err(_) => Err(NoHello::Refused(
            "no ClientHello in time".into(),
            Vec::new(),
        )),
    }
}

async fn name(stream: &mut Prefixed<TcpStream>) -> Result<Option<String>, NoHello> {
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        let mut ahead = &stream.ahead()[fed..];
        while !ahead.is_empty() {
            fed += acceptor.read_tls(&mut ahead).map_err(NoHello::Gone)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Ok(hello.server_name().map(str::to_ascii_lowercase));
                }
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    alert.write_all(&mut bytes).map_err(NoHello::Gone)?;
                    return Err(NoHello::Refused(error.to_string(), bytes));
                }
            }
        }
        if fed >= MAX {
            let why = format!("ClientHello is longer than {MAX} bytes");
            return Err(NoHello::Refused(why, Vec::new()));
        }
        if stream.read_ahead().await.map_err(NoHello::Gone)? == 0 {
            return Err(NoHello::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}
