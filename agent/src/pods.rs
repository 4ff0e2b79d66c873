//! Pods that come and go, as a stream of what is on the node.
//!
//! The kernel tells when interfaces or addresses change; a scan every five seconds is the net under that.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::datapath::{Changes, Discovery, Error, scan};

/// A scan without a reason, since a message of the kernel may be lost.
const NET: Duration = Duration::from_secs(5);
/// Pause after a change: interfaces and their addresses come in several messages.
const QUIET: Duration = Duration::from_millis(20);

/// Scans now, and again whenever something changes. The receiver gets each discovery that differs from the one before, the first
/// one always.
pub async fn watch() -> Result<(Discovery, mpsc::Receiver<Discovery>), Error> {
    let mut changes = Changes::listen()?;
    let first = blocking_scan().await?;
    let (sender, receiver) = mpsc::channel(1);
    let mut last = first.clone();
    tokio::spawn(async move {
        loop {
            let net = Instant::now() + NET;
            tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => sleep(QUIET).await,
                    Err(error) => {
                        tracing::error!(%error, "changes of interfaces are not told any more; the node is scanned every {} s", NET.as_secs());
                        sleep_until(net).await;
                    }
                },
                () = sleep_until(net) => {}
            }
            match blocking_scan().await {
                Ok(found) if found == last => {}
                Ok(found) => {
                    last.clone_from(&found);
                    if sender.send(found).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "failed to look for pods; those that are known stay as they are"
                    );
                }
            }
        }
    });
    Ok((first, receiver))
}

async fn blocking_scan() -> Result<Discovery, Error> {
    tokio::task::spawn_blocking(scan)
        .await
        .expect("a scan does not panic")
}
