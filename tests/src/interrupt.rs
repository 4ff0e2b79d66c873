//! Ctrl-C and SIGTERM as a condition that long work asks for, so that everything is dropped, and so removed, in order.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on the signals no longer end the process; [`check`] tells of them.
///
/// # Errors
/// The system refuses a signal handler.
pub fn watch() -> Result<()> {
    let (ready, is_ready) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let watched = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .and_then(|runtime| {
                runtime.block_on(async {
                    use tokio::signal::unix::{SignalKind, signal};
                    let (mut interrupt, mut terminate, mut hang_up) = (
                        signal(SignalKind::interrupt())?,
                        signal(SignalKind::terminate())?,
                        signal(SignalKind::hangup())?,
                    );
                    // The one who waits may have given up only if it is gone, and then nobody is interested.
                    let _gone = ready.send(Ok(()));
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hang_up.recv() => {}
                    }
                    INTERRUPTED.store(true, Ordering::Relaxed);
                    // The handlers stay until the process ends: a second Ctrl-C must not break the cleaning up.
                    std::future::pending::<std::io::Result<()>>().await
                })
            });
        if let Err(error) = watched {
            let _gone = ready.send(Err(error));
        }
    });
    is_ready
        .recv()
        .context("the watcher of signals ended")?
        .context("failed to watch signals")
}

/// Fails once a signal came.
///
/// # Errors
/// A signal came.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps until a signal comes.
pub fn wait() {
    while check().is_ok() {
        std::thread::sleep(Duration::from_millis(100));
    }
}
