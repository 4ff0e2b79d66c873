//! One agent per state folder.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};

/// The file that is locked.
const FILE: &str = "agent.lock";

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent has it.
    #[error("another cardinal-agent{holder} uses state folder `{}`; stop it, or give this one its own --state", folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// ` (pid N)` where it is known.
        holder: String,
    },
    /// It cannot be written.
    #[error("failed to use state folder `{}`; is it writable for this user? --state names another one", folder.display())]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A held lock; the kernel gives it back when the process ends, however it ends.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// The lock's file in a state folder.
    pub fn file(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// Takes the lock of a folder that an agent has used; none of one that no agent has.
    pub fn of_used(folder: &Path) -> Result<Option<Self>, LockError> {
        Self::file(folder)
            .exists()
            .then(|| Self::take(folder))
            .transpose()
    }

    /// Makes the folder if it is missing and takes its lock.
    pub fn take(folder: &Path) -> Result<Self, LockError> {
        let unusable = |source| LockError::Unusable {
            folder: folder.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(unusable)?;
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(Self::file(folder))
            .map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(unusable)?;
                let holder = match pid.trim() {
                    "" => String::new(),
                    pid => format!(" (pid {pid})"),
                };
                return Err(LockError::Held {
                    folder: folder.to_owned(),
                    holder,
                });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        file.set_len(0).map_err(unusable)?;
        file.rewind().map_err(unusable)?;
        writeln!(file, "{}", std::process::id()).map_err(unusable)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::StateLock;

    #[test]
    fn a_second_agent_is_told_who_holds_the_folder() {
        let folder = tempfile::tempdir().expect("folder");
        let state = folder.path().join("state");
        let first = StateLock::take(&state).expect("free");
        let error = StateLock::take(&state).expect_err("held").to_string();
        assert!(
            error.contains("another cardinal-agent (pid ") && error.contains("--state"),
            "{error}"
        );
        drop(first);
        StateLock::take(&state).expect("free again");
    }

    #[test]
    fn an_unusable_folder_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("file");
        let error = StateLock::take(&file.join("state"))
            .expect_err("under a file")
            .to_string();
        assert!(
            error.contains("state folder") && error.contains("--state names another one"),
            "{error}"
        );
    }
}
