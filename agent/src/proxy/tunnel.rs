//! Bytes passed both ways without a look at them.

use std::rc::Rc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::worker::Worker;

/// Bytes read at a time in each direction.
pub(super) const BUFFER: usize = 16 * 1024;

/// Joins both sides of a WebSocket once both have switched protocols.
pub(super) fn upgraded(worker: &Rc<Worker>, client: OnUpgrade, upstream: OnUpgrade) {
    let open = worker.opened();
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
        if let Err(error) = copied.await {
            tracing::debug!(%error, "upgraded connection broke");
        }
    });
}
