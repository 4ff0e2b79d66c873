//! The other side of the socket: what `cardinal-agent status` uses.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers on admin socket `{}` (is it running, and is this its --admin?)", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The exchange broke.
    #[error("agent on admin socket `{}` broke off", path.display())]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: hyper::Error,
    },
}

/// Fetches a path of the admin interface.
pub async fn get(socket: &Path, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
    exchange(socket, Method::GET, path, Bytes::new()).await
}

/// Sends JSON to a path of the admin interface.
pub async fn post(
    socket: &Path,
    path: &str,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), ClientError> {
    exchange(socket, Method::POST, path, body.into()).await
}

async fn exchange(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<(StatusCode, Bytes), ClientError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| ClientError::Connect {
            path: socket.to_owned(),
            source,
        })?;
    let failed = |source| ClientError::Exchange {
        path: socket.to_owned(),
        source,
    };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "admin")
        .body(Full::new(body))
        .expect("paths are constants of the callers");
    let response = sender.send_request(request).await.map_err(failed)?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(failed)?
        .to_bytes();
    driver.abort();
    Ok((status, body))
}
