//! Bytes passed both ways without a look at them.

use std::rc::Rc;

use hyper_util::rt::TokioIo;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::prefixed::Prefixed;
use super::worker::Worker;
use crate::route::RouteTable;
use crate::upstream::Switched;

/// Bytes read at a time in each direction.
pub(super) const BUFFER: usize = 16 * 1024;

/// Bytes both ways.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

/// What a client's connection becomes once its request was answered by a switch of protocols.
pub(super) enum OnUpgrade {
    /// The connection itself.
    Http1(oneshot::Receiver<Box<dyn Duplex>>),
    /// One stream of it.
    Http2(hyper::upgrade::OnUpgrade),
}

impl OnUpgrade {
    async fn switched(self) -> Result<Box<dyn Duplex>, Box<dyn std::error::Error>> {
        match self {
            Self::Http1(handed) => Ok(handed.await?),
            Self::Http2(upgrade) => Ok(Box::new(TokioIo::new(upgrade.await?))),
        }
    }
}

/// Joins both sides of a WebSocket once the client has switched protocols as the upstream did, for as long as tables allow it.
pub(super) fn upgraded(
    worker: &Rc<Worker>,
    client: OnUpgrade,
    upstream: Switched,
    allowed: impl Fn(&RouteTable) -> bool + 'static,
) {
    let open = worker.opened();
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let _open = open;
        let mut client = match client.switched().await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%error, "upgrade failed");
                return;
            }
        };
        let mut upstream = Prefixed::behind(upstream.ahead, upstream.stream);
        let copied =
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER);
        tokio::select! {
            copied = copied => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "upgraded connection broke");
                }
            }
            () = worker.forbidden(allowed) => {
                tracing::info!("upgraded connection ended: the call is no longer declared");
            }
        }
    });
}
