//! The programs' log, in debug builds only: an object built with `cargo xtask build-ebpf --logs` has a map of lines, which
//! come out through [`tracing`] at debug level. The production object has no such map; what it tells are events.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Weak};
use std::thread;

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::Error;

/// How long the reader outlives the datapath, in milliseconds.
const LINGER: u16 = 200;

/// Lines are read as long as this lives.
#[derive(Debug)]
pub(super) struct Logs {
    _alive: Arc<()>,
}

impl Logs {
    /// Starts reading, if the object logs.
    pub(super) fn start(ebpf: &mut Ebpf) -> Result<Option<Self>, Error> {
        let mut logger = match EbpfLogger::init(ebpf) {
            Ok(logger) => logger,
            Err(aya_log::Error::MapNotFound) => return Ok(None),
            Err(error) => {
                return Err(Error::kernel("read the programs' log")(
                    std::io::Error::other(error),
                ));
            }
        };
        let alive = Arc::new(());
        let watched: Weak<()> = Arc::downgrade(&alive);
        // A thread, not a task: the datapath opens where no runtime is, and a debug build may pay for one.
        thread::Builder::new()
            .name("cardinal-logs".into())
            .spawn(move || {
                while watched.strong_count() > 0 {
                    let mut ready = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut ready, PollTimeout::from(LINGER)) {
                        Ok(_) | Err(Errno::EINTR) => logger.flush(),
                        Err(error) => {
                            tracing::error!(%error, "the programs' log cannot be read any more");
                            return;
                        }
                    }
                }
            })
            .map_err(Error::kernel("start the reader of the programs' log"))?;
        tracing::warn!(
            "the eBPF object is a debug build: its programs log every verdict, which costs much; RUST_LOG=debug shows it"
        );
        Ok(Some(Self { _alive: alive }))
    }
}
