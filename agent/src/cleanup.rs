//! `cardinal-agent cleanup`: takes all that an agent left off a node, and says what that was.
//!
//! It does not need an agent and does not run beside one. What it shows is what it would remove; what it finds beside that is
//! named and stays. With `--stay` it is what runs on a node in the place of an agent, until the last node is clean.

mod files;

use std::io::{self, Write};

use tokio::signal::unix::{SignalKind, signal};

use crate::causes::chain;
use crate::config::CleanupArgs;
use crate::datapath::{Error, Leftovers};
use files::Files;

/// Shows what there is, and removes it if that was asked for.
///
/// # Errors
///
/// An agent runs on the node, the node cannot be read, something cannot be removed, or output fails.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    clean(args, &mut out)?;
    if args.stay {
        stay(args, &mut out)?;
    }
    Ok(())
}

fn clean(args: &CleanupArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let found = Found::find(args)?;
    for kept in found.kernel.kept().iter().chain(found.files.kept()) {
        writeln!(out, "stays    {kept}")?;
    }
    if found.names().next().is_none() {
        writeln!(out, "nothing of an agent's is left on this node")?;
    } else if args.yes {
        found.remove(out)?;
    } else {
        for name in found.names() {
            writeln!(out, "found    {name}")?;
        }
        writeln!(
            out,
            "nothing was removed. With --yes all that was found goes, and no cell of this node is enforced any more"
        )?;
    }
    Ok(())
}

/// Looks again, and holds the node until a signal comes.
fn stay(args: &CleanupArgs, out: &mut impl Write) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        // The first process of a container has only the handlers that it asks for.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let found = Found::find(args)?;
        // A folder judges nothing, and stays when somebody else has something in it.
        let pins = found.kernel.things().iter();
        let pins = pins.filter(|thing| !thing.is_folder());
        let left = pins.map(|thing| &*thing.what).chain(found.files.names());
        let left: Vec<_> = left.collect();
        anyhow::ensure!(left.is_empty(), "still there: {}", left.join(", "));
        writeln!(
            out,
            "this node is clean, and no agent starts on it until this ends"
        )?;
        out.flush()?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

/// What was found. No agent can start on the node while this lives.
struct Found {
    kernel: Leftovers,
    files: Files,
}

impl Found {
    fn find(args: &CleanupArgs) -> anyhow::Result<Self> {
        const RUNNING: &str = "nothing is removed under a running agent; stop it first";
        let kernel = Leftovers::find(&args.bpffs).map_err(|error| match error {
            running @ Error::AlreadyRunning { .. } => anyhow::Error::new(running).context(RUNNING),
            error => anyhow::Error::new(error),
        })?;
        let files = Files::find(&args.state, &args.admin).map_err(|error| match error {
            files::FilesError::Lock(running @ crate::lock::LockError::Held { .. }) => {
                anyhow::Error::new(running).context(RUNNING)
            }
            error => anyhow::Error::new(error),
        })?;
        Ok(Self { kernel, files })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let kernel = self.kernel.things().iter().map(|thing| &*thing.what);
        kernel.chain(self.files.names())
    }

    /// Removes everything: what judges packets first, the files last.
    fn remove(self, out: &mut impl Write) -> anyhow::Result<()> {
        let (mut failed, mut printed) = (0, Ok(()));
        let mut tell = |what: &str, result: Result<(), String>| {
            let line = match result {
                Ok(()) => writeln!(out, "removed  {what}"),
                Err(why) => {
                    failed += 1;
                    writeln!(out, "FAILED   {what}: {why}")
                }
            };
            // Removing goes on when nobody reads any more.
            if printed.is_ok() {
                printed = line;
            }
        };
        self.kernel
            .remove(|what, result| tell(what, result.map_err(|error| chain(&error))));
        self.files
            .remove(|what, result| tell(what, result.map_err(|error| error.to_string())));
        printed?;
        anyhow::ensure!(
            failed == 0,
            "{failed} of the things above could not be removed"
        );
        Ok(())
    }
}
