//! Files that an agent left: what it keeps for its next start, and the socket of its admin interface.
//!
//! Files are known by their names. A folder goes when nothing is left in it, unless something is mounted there.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::config::KEPT;
use crate::datapath::remove_empty;
use crate::lock::{LockError, StateLock};

/// Why files cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// The state folder.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Something in it, or the socket.
    #[error("failed to look at {}", path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Files of an agent's, and what is beside them. No agent can use them while this lives.
#[derive(Debug)]
pub(super) struct Files {
    /// In the order in which they are removed: what is in a folder comes before it.
    left: Vec<Left>,
    kept: Vec<String>,
    _lock: Option<StateLock>,
}

#[derive(Debug)]
struct Left {
    what: String,
    path: PathBuf,
    is_folder: bool,
}

impl Files {
    /// Looks for what an agent left in its state folder and at the path of its socket.
    pub(super) fn find(state: &Path, admin: &Path) -> Result<Self, FilesError> {
        let mut files = Self {
            left: Vec::new(),
            kept: Vec::new(),
            _lock: StateLock::of_used(state)?,
        };
        let objects = state.join(KEPT);
        let mut known = vec![StateLock::file(state)];
        known.extend(kubernetes::kept_files(&objects));
        files.folder(&objects, &known)?;
        files.folder(state, &known)?;
        files.socket(admin)?;
        Ok(files)
    }

    /// What is to be removed.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.left.iter().map(|left| &*left.what)
    }

    /// What is somebody else's and stays.
    pub(super) fn kept(&self) -> &[String] {
        &self.kept
    }

    /// Removes everything, and tells of each how it went.
    pub(super) fn remove(self, mut tell: impl FnMut(&str, io::Result<()>)) {
        for Left {
            what,
            path,
            is_folder,
        } in &self.left
        {
            let gone = match is_folder {
                true => remove_empty(path),
                false => fs::remove_file(path).map(|()| true),
            };
            match gone {
                Ok(true) => tell(what, Ok(())),
                Ok(false) => {}
                Err(error) => tell(what, Err(error)),
            }
        }
    }

    fn add(&mut self, kind: &str, path: PathBuf) {
        self.left.push(Left {
            what: format!("{kind} {}", path.display()),
            is_folder: kind == FOLDER,
            path,
        });
    }

    /// The known files of a folder; and the folder, unless somebody else has something in it or mounted it.
    fn folder(&mut self, folder: &Path, known: &[PathBuf]) -> Result<(), FilesError> {
        let look = |source| FilesError::Look {
            path: folder.to_owned(),
            source,
        };
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(look(error)),
        };
        let mut is_ours = !is_mount(folder).map_err(look)?;
        for entry in entries {
            let path = entry.map_err(look)?.path();
            if known.contains(&path) {
                self.add(FILE, path);
            } else if !self.left.iter().any(|left| left.path == path) {
                is_ours = false;
                // A folder of ours that somebody uses too was told with what is in it.
                if path != folder.join(KEPT) {
                    self.kept.push(format!("{} is no agent's", path.display()));
                }
            }
        }
        if is_ours {
            self.add(FOLDER, folder.to_owned());
        }
        Ok(())
    }

    /// A socket that nobody answers, and the folder that was made for it.
    fn socket(&mut self, path: &Path) -> Result<(), FilesError> {
        let look = |source| FilesError::Look {
            path: path.to_owned(),
            source,
        };
        match fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => {
                let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
                if UnixStream::connect(path).is_err_and(refused) {
                    self.add("socket", path.to_owned());
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(look(error)),
        }
        // A socket may be anywhere; a folder of this name is nobody else's.
        match path.parent().filter(|folder| folder.ends_with(OURS)) {
            Some(folder) => self.folder(folder, &[]),
            None => Ok(()),
        }
    }
}

/// The folder that an agent makes for its socket, unless it is told another one.
const OURS: &str = "cardinal";

const FILE: &str = "file";
const FOLDER: &str = "folder";

/// Whether something is mounted on a folder (proc_pid_mountinfo(5), field 5).
fn is_mount(folder: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let folder = folder.to_str();
    Ok(mounts
        .lines()
        .any(|mount| folder.is_some() && mount.split(' ').nth(4) == folder))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::{Files, is_mount};
    use crate::lock::StateLock;

    #[test]
    fn what_an_agent_keeps_goes_and_what_others_put_there_stays() {
        let root = tempfile::tempdir().expect("folder");
        let state = root.path().join("state");
        let socket = root.path().join("cardinal/admin.sock");
        fs::create_dir_all(state.join("kubernetes")).expect("folder");
        fs::create_dir(root.path().join("cardinal")).expect("folder");
        for name in ["kubernetes/objects.jsonl", "kubernetes/objects.jsonl.new"] {
            fs::write(state.join(name), "").expect("file");
        }
        drop(UnixListener::bind(&socket).expect("socket"));
        let running = StateLock::take(&state).expect("free");
        let error = Files::find(&state, &socket).expect_err("an agent runs");
        assert!(
            error.to_string().contains("another cardinal-agent"),
            "{error}"
        );
        drop(running);

        let theirs = state.join("theirs");
        fs::write(&theirs, "").expect("file");
        let found = Files::find(&state, &socket).expect("looks");
        assert_eq!(
            found.kept(),
            [format!("{} is no agent's", theirs.display())]
        );
        // Its folder is not in the list: it cannot go.
        assert_eq!(found.names().count(), 6, "{found:?}");
        found.remove(|what, gone| assert!(gone.is_ok(), "{what}: {gone:?}"));
        assert!(!socket.exists() && !root.path().join("cardinal").exists());
        assert!(theirs.exists() && !state.join("kubernetes").exists());

        fs::remove_file(&theirs).expect("file");
        let found = Files::find(&state, &socket).expect("looks");
        assert!(found.names().eq([format!("folder {}", state.display())]));
        found.remove(|what, gone| assert!(gone.is_ok(), "{what}: {gone:?}"));
        assert!(!state.exists());
        let found = Files::find(&state, &socket).expect("looks");
        assert!(found.names().next().is_none() && found.kept().is_empty());
    }

    #[test]
    fn the_socket_of_a_living_agent_and_folders_of_other_names_stay() {
        let root = tempfile::tempdir().expect("folder");
        let socket = root.path().join("admin.sock");
        let _listening = UnixListener::bind(&socket).expect("socket");
        let found = Files::find(&root.path().join("state"), &socket).expect("looks");
        assert!(found.names().next().is_none(), "{found:?}");
    }

    #[test]
    fn mounts_are_told_from_folders() {
        assert!(is_mount("/proc".as_ref()).expect("readable"));
        assert!(!is_mount("/proc/self".as_ref()).expect("readable"));
    }
}
