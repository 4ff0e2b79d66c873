//! Bytes passed both ways without a look at them.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::prefixed::Prefixed;
use super::worker::Worker;
use crate::route::RouteTable;
use crate::upstream::Switched;

/// Bytes read at a time in each direction.
pub(super) const BUFFER: usize = 16 * 1024;

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
        let client = match client.await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%error, "upgrade failed");
                return;
            }
        };
        let mut client = TokioIo::new(client);
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
