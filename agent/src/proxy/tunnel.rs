//! Bytes passed both ways without a look at them.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::worker::Worker;
use crate::route::RouteTable;

/// Bytes read at a time in each direction.
pub(super) const BUFFER: usize = 16 * 1024;

/// Joins both sides of a WebSocket once both have switched protocols, for as long as tables allow it.
pub(super) fn upgraded(
    worker: &Rc<Worker>,
    client: OnUpgrade,
    upstream: OnUpgrade,
    allowed: impl Fn(&RouteTable) -> bool + 'static,
) {
    let open = worker.opened();
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let _open = open;
        let sides = async { Ok::<_, hyper::Error>((client.await?, upstream.await?)) };
        let (client, upstream) = match sides.await {
            Ok(sides) => sides,
            Err(error) => {
                tracing::debug!(%error, "upgrade failed");
                return;
            }
        };
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
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
