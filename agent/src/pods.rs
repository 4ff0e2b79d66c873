//! Pods that come and go, as a stream of what is on the node.
//!
//! The kernel tells when interfaces or addresses change, and what it names is looked at; a look at everything every five
//! seconds is the net under that.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::datapath::{Discovery, Error, PodWatch};

/// A look without a reason, since a message of the kernel may be lost.
const NET: Duration = Duration::from_secs(5);
/// Pause after a change: an interface and its addresses come in several messages, and each different look may become a
/// generation.
const QUIET: Duration = Duration::from_millis(2);

/// The pods of a node, followed. New interfaces are held and gone ones forgotten until this ends.
#[derive(Debug)]
pub struct Pods {
    found: watch::Receiver<Discovery>,
    task: JoinHandle<PodWatch>,
}

impl Pods {
    /// The next discovery that differs from the one before. Safe to cancel.
    pub async fn changed(&mut self) -> Option<Discovery> {
        self.found.changed().await.ok()?;
        Some(self.found.borrow_and_update().clone())
    }

    /// Looks no more. New interfaces are held as long as the result lives, and no other gate is touched.
    pub async fn end(self) -> Option<PodWatch> {
        drop(self.found);
        match self.task.await {
            Ok(mut pods) => {
                tokio::task::block_in_place(|| pods.only_hold());
                Some(pods)
            }
            Err(error) => {
                tracing::error!(%error, "the pods of the node were not followed to the end; new ones are not held");
                None
            }
        }
    }
}

/// Looks now, and again whenever something changes.
///
/// # Errors
/// The kernel does not tell of its interfaces.
pub async fn follow(pods: PodWatch) -> Result<(Discovery, Pods), Error> {
    let (mut pods, first) = look(pods, true).await;
    let first = first?;
    let (sender, found) = watch::channel(first.clone());
    let task = tokio::spawn(async move {
        let mut net = Instant::now() + NET;
        loop {
            let all = tokio::select! {
                () = pods.changed() => false,
                () = sleep_until(net) => true,
                () = sender.closed() => return pods,
            };
            match all {
                true => net = Instant::now() + NET,
                false => sleep(QUIET).await,
            }
            let found;
            (pods, found) = look(pods, all).await;
            match found {
                Ok(found) => {
                    sender.send_if_modified(|last| {
                        let differs = *last != found;
                        *last = found;
                        differs
                    });
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
    Ok((first, Pods { found, task }))
}

async fn look(mut pods: PodWatch, all: bool) -> (PodWatch, Result<Discovery, Error>) {
    tokio::task::spawn_blocking(move || {
        let found = pods.look(all);
        (pods, found)
    })
    .await
    .expect("a look does not panic")
}
