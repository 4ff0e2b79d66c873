//! One exchange over a connection of its own, read whole: for the agent's own errands, not for requests of
//! others.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::Stream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnceError {
    /// The request or the head of its answer.
    #[error("the connection broke")]
    Http(#[from] hyper::Error),
    /// The body of the answer.
    #[error("the answer is longer than {limit} bytes, or broke")]
    Body {
        limit: usize,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Sends a request and reads the answer, of at most `limit` bytes. Needs a runtime that takes local tasks.
pub(crate) async fn once(
    stream: Stream,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<(StatusCode, Bytes), OnceError> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with this exchange, and the connection with it.
    let mut driver = JoinSet::new();
    driver.spawn_local(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), limit);
    let bytes = body
        .collect()
        .await
        .map_err(|source| OnceError::Body { limit, source })?
        .to_bytes();
    Ok((status, bytes))
}
