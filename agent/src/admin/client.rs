//! The other side of the socket: what `cardinal-agent status` uses.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
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

/// Fetches a path that answers in lines, and shows each as it comes, without its end.
///
/// # Errors
///
/// Nobody answers, the answer is no success, the exchange breaks, or a line cannot be shown.
pub async fn lines(
    socket: &Path,
    path: &str,
    show: &mut impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut response = send(socket, Method::GET, path, Bytes::new()).await?;
    let status = response.status();
    let mut rest = Vec::new();
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame.map_err(|source| ClientError::Exchange {
            path: socket.to_owned(),
            source,
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        rest.extend_from_slice(&data);
        if status != StatusCode::OK {
            continue;
        }
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            show(&rest[..end])?;
            rest.drain(..=end);
        }
    }
    anyhow::ensure!(
        status == StatusCode::OK,
        "the agent answered {status}: {}",
        String::from_utf8_lossy(&rest).trim()
    );
    Ok(())
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
    let response = send(socket, method, path, body).await?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|source| ClientError::Exchange {
            path: socket.to_owned(),
            source,
        })?;
    Ok((status, body.to_bytes()))
}

/// The exchange ends with the response's body.
async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    body: Bytes,
) -> Result<Response<Incoming>, ClientError> {
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
    tokio::spawn(async move {
        // What goes wrong the reader of the body is told too.
        if let Err(error) = connection.await {
            tracing::debug!(%error, "admin connection ended early");
        }
    });
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, "admin")
        .body(Full::new(body))
        .expect("paths are constants of the callers, with words that were checked");
    sender.send_request(request).await.map_err(failed)
}
