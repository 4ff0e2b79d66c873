//! When the agent is to end.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// How long the first SIGTERM lets the agent wait for its successor.
    patience: Duration,
    /// Until when it waits.
    until: Option<Instant>,
}

impl Signals {
    /// Listens from here on: who ends an agent that is just starting wants it to end as orderly as any other.
    pub(super) fn listen(patience: Duration) -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            patience,
            until: None,
        })
    }

    /// The next of them. Safe to cancel.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Returns when the agent is to end although it has no successor: at once, or some time after the first SIGTERM. Safe to
    /// cancel.
    pub(super) async fn end(&mut self) {
        loop {
            let until = self.until;
            let patience = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => return,
                _ = self.terminate.recv() => {
                    if self.patience.is_zero() || self.until.is_some() {
                        return;
                    }
                    self.until = Some(Instant::now() + self.patience);
                    tracing::info!(
                        seconds = self.patience.as_secs(),
                        "told to end; serving on until another agent has taken over"
                    );
                }
                () = patience => return,
            }
        }
    }

    /// Whether the agent was told to end and has not ended.
    pub(super) fn told(&self) -> bool {
        self.until.is_some()
    }
}
