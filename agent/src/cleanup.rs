//! `cardinal-agent cleanup`: takes all that an agent left off a node, and says what that was.
//!
//! It does not need an agent and does not run beside one. What it shows is what it would remove; what it finds beside that is
//! named and stays.

use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context as _;

use crate::config::CleanupArgs;
use crate::datapath::{Error, Leftovers};
use crate::explain::chain;

/// Shows what there is, and removes it if that was asked for.
///
/// # Errors
///
/// An agent runs on the node, the node cannot be read, something cannot be removed, or output fails.
pub fn run(args: &CleanupArgs) -> anyhow::Result<()> {
    let found = Leftovers::find(&args.bpffs).map_err(|error| match error {
        running @ Error::AlreadyRunning { .. } => anyhow::Error::new(running)
            .context("nothing is removed under a running agent; stop it first"),
        error => anyhow::Error::new(error),
    })?;
    let mut out = io::stdout().lock();
    for kept in found.kept() {
        writeln!(out, "stays    {kept}")?;
    }
    let socket = is_dead_socket(&args.admin)?;
    if found.things().is_empty() && !socket {
        writeln!(out, "nothing of an agent's is left on this node")?;
        return Ok(());
    }
    if !args.yes {
        for thing in found.things() {
            writeln!(out, "found    {}", thing.what)?;
        }
        if socket {
            writeln!(out, "found    socket {}", args.admin.display())?;
        }
        writeln!(
            out,
            "nothing was removed. With --yes all that was found goes, and no cell of this node is enforced any more"
        )?;
        return Ok(());
    }
    let (mut failed, mut printed) = (0, Ok(()));
    found.remove(|what, result| {
        let line = match result {
            Ok(()) => writeln!(out, "removed  {what}"),
            Err(error) => {
                failed += 1;
                writeln!(out, "FAILED   {what}: {}", chain(&error))
            }
        };
        // Removing goes on when nobody reads any more.
        if printed.is_ok() {
            printed = line;
        }
    });
    if socket {
        std::fs::remove_file(&args.admin)
            .with_context(|| format!("failed to remove socket {}", args.admin.display()))?;
        writeln!(out, "removed  socket {}", args.admin.display())?;
    }
    printed?;
    anyhow::ensure!(
        failed == 0,
        "{failed} of the things above could not be removed"
    );
    Ok(())
}

/// Whether there is a socket that nobody answers.
fn is_dead_socket(path: &Path) -> anyhow::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => Ok(UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)),
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("failed to look at {}", path.display())),
    }
}
