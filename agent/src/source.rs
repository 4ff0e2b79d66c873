//! Where documents come from: a folder, watched, or a cluster (`cluster`).
//!
//! Flows in: the file system. Flows out: the bytes of all documents at one moment. What it does not
//! do: look at what the bytes mean.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use snapshot::SourceFile;

pub mod cluster;
mod watch;

pub use watch::{FolderWatch, WatchError};

/// Largest number of files in a folder; more is a mistaken path rather than a configuration.
const MAX_FILES: usize = 10_000;
/// How deep folders may be nested; this bounds circles of symbolic links.
const MAX_DEPTH: usize = 8;
/// Largest file in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// How often a read that met a concurrent change is tried again before the caller is told.
const READ_ATTEMPTS: usize = 20;
/// Pause between such attempts.
const READ_PAUSE: Duration = Duration::from_millis(25);

/// Why a folder could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The folder or a file in it is unreadable.
    #[error("failed to read `{}`", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not a folder.
    #[error("`{}` is not a folder; expected a folder of documents", .0.display())]
    NotAFolder(PathBuf),
    /// Nothing in it.
    #[error("no documents in `{}`; expected files that end in .yaml, .yml or .json", .0.display())]
    Empty(PathBuf),
    /// A file is too large to be a document.
    #[error("`{}` has {bytes} bytes; documents have at most {MAX_FILE_BYTES}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// Too many files.
    #[error("more than {MAX_FILES} documents in `{}`", .0.display())]
    TooMany(PathBuf),
    /// A link whose end is missing: its document would be lost without a word.
    #[error("`{}` is a symbolic link to nothing; expected a document behind it", .0.display())]
    Dangling(PathBuf),
    /// A pipe, socket or device with the name of a document.
    #[error("`{}` has the name of a document and is not a file", .0.display())]
    NotAFile(PathBuf),
    /// Folders in folders without end.
    #[error("`{}` is nested deeper than {MAX_DEPTH} folders; does a symbolic link lead in a circle?", .0.display())]
    TooDeep(PathBuf),
    /// Somebody writes faster than we read.
    #[error("`{}` kept changing while it was read", .0.display())]
    Unstable(PathBuf),
}

/// All documents of a folder at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The files, by path relative to the folder.
    pub files: Vec<SourceFile>,
    /// SHA-256 over names and bytes, lower-case hex.
    pub digest: String,
    /// What the files looked like from outside.
    fingerprint: Fingerprint,
}

/// What a file looked like from outside; equal fingerprints mean that nothing was written.
type Fingerprint = BTreeMap<PathBuf, (u64, u64, u64, i64, i64)>;

/// Reads a folder so that all files belong together: if anything changed meanwhile, again.
pub fn load(folder: &Path) -> Result<Loaded, SourceError> {
    let mut last = SourceError::Unstable(folder.to_owned());
    for attempt in 0..READ_ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(READ_PAUSE);
        }
        last = match attempt_to_load(folder) {
            Ok(Some(loaded)) => return Ok(loaded),
            Ok(None) => SourceError::Unstable(folder.to_owned()),
            // Kubernetes turns `..data` to another folder first and removes the links of deleted keys after it.
            Err(error @ SourceError::Dangling(_)) => error,
            Err(error) => return Err(error),
        };
    }
    Err(last)
}

/// One attempt; nothing if the folder changed meanwhile.
fn attempt_to_load(folder: &Path) -> Result<Option<Loaded>, SourceError> {
    let before = fingerprint(folder)?;
    match read(folder, &before) {
        Ok((files, digest)) => Ok((fingerprint(folder)? == before).then_some(Loaded {
            files,
            digest,
            fingerprint: before,
        })),
        // A file may vanish between listing and reading; that is a change like any other.
        Err(SourceError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn read(folder: &Path, listing: &Fingerprint) -> Result<(Vec<SourceFile>, String), SourceError> {
    let mut hasher = Sha256::new();
    let mut files = Vec::with_capacity(listing.len());
    for path in listing.keys() {
        let bytes = fs::read(path).map_err(|source| SourceError::Read {
            path: path.clone(),
            source,
        })?;
        let relative = path
            .strip_prefix(folder)
            .unwrap_or(path)
            .to_string_lossy()
            .into_owned();
        hasher.update((relative.len() as u64).to_be_bytes());
        hasher.update(&relative);
        hasher.update((bytes.len() as u64).to_be_bytes());
        hasher.update(&bytes);
        files.push(SourceFile {
            path: relative,
            bytes,
        });
    }
    if files.is_empty() {
        return Err(SourceError::Empty(folder.to_owned()));
    }
    let digest = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((files, digest))
}

/// Lists documents with what changes when they are written. Symbolic links are followed, since that is
/// how Kubernetes mounts a ConfigMap; names that start with a dot are not documents, which leaves out
/// Kubernetes' own `..data` and editors' temporary files.
fn fingerprint(folder: &Path) -> Result<Fingerprint, SourceError> {
    let metadata = stat(folder)?;
    if !metadata.is_dir() {
        return Err(SourceError::NotAFolder(folder.to_owned()));
    }
    let mut found = Fingerprint::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((current, depth)) = folders.pop() {
        let failed = |source| SourceError::Read {
            path: current.clone(),
            source,
        };
        for entry in fs::read_dir(&current).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let document = path
                .extension()
                .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known));
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    if document && fs::symlink_metadata(&path).is_ok() {
                        return Err(SourceError::Dangling(path));
                    }
                    // Deleted since it was listed.
                    continue;
                }
                Err(source) => return Err(SourceError::Read { path, source }),
            };
            if metadata.is_dir() {
                if depth == MAX_DEPTH {
                    return Err(SourceError::TooDeep(path));
                }
                folders.push((path, depth + 1));
                continue;
            }
            if !document {
                continue;
            }
            if !metadata.is_file() {
                return Err(SourceError::NotAFile(path));
            }
            if metadata.len() > MAX_FILE_BYTES {
                return Err(SourceError::TooLarge {
                    path,
                    bytes: metadata.len(),
                });
            }
            let seen = (
                metadata.dev(),
                metadata.ino(),
                metadata.len(),
                metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
                metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
            );
            found.insert(path, seen);
            if found.len() > MAX_FILES {
                return Err(SourceError::TooMany(folder.to_owned()));
            }
        }
    }
    Ok(found)
}

fn stat(path: &Path) -> Result<fs::Metadata, SourceError> {
    fs::metadata(path).map_err(|source| SourceError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::{SourceError, load};

    #[test]
    fn a_folder_is_read_in_order_without_hidden_files() {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("sub")).expect("subfolder");
        for (name, text) in [
            ("b.yaml", "b"),
            ("a.yml", "a"),
            ("sub/c.json", "c"),
            (".hidden.yaml", "x"),
            ("notes.txt", "x"),
            ("a.yml~", "x"),
            (".#a.yml", "x"),
        ] {
            fs::write(folder.path().join(name), text).expect("file");
        }
        let loaded = load(folder.path()).expect("loads");
        let names: Vec<_> = loaded.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(names, ["a.yml", "b.yaml", "sub/c.json"]);
    }

    #[test]
    fn a_config_map_is_read_through_its_links_once() {
        let folder = tempfile::tempdir().expect("folder");
        let version = folder.path().join("..2026_01");
        fs::create_dir(&version).expect("version");
        fs::write(version.join("cell.yaml"), "one").expect("file");
        symlink("..2026_01", folder.path().join("..data")).expect("link");
        symlink("..data/cell.yaml", folder.path().join("cell.yaml")).expect("link");
        let loaded = load(folder.path()).expect("loads");
        assert_eq!(loaded.files.len(), 1);
        assert_eq!(loaded.files[0].bytes, b"one");
    }

    #[test]
    fn nothing_with_the_name_of_a_document_is_left_out_in_silence() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        fs::write(path.join("a.yaml"), "a").expect("file");

        symlink("nowhere", path.join("notes.txt")).expect("link");
        assert_eq!(load(path).expect("no document").files.len(), 1);

        symlink("nowhere", path.join("b.yaml")).expect("link");
        let error = load(path).expect_err("dangling").to_string();
        assert!(
            error.contains("b.yaml` is a symbolic link to nothing"),
            "{error}"
        );
        fs::remove_file(path.join("b.yaml")).expect("link");

        let _socket = UnixListener::bind(path.join("b.yaml")).expect("socket");
        let error = load(path).expect_err("a socket").to_string();
        assert!(error.contains("b.yaml` has the name"), "{error}");
        fs::remove_file(path.join("b.yaml")).expect("socket");

        symlink(".", path.join("circle")).expect("link");
        let error = load(path).expect_err("a circle").to_string();
        assert!(error.contains("nested deeper than 8 folders"), "{error}");
    }

    #[test]
    fn the_digest_covers_names_and_bytes() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.yaml");
        fs::write(&path, "one").expect("file");
        let first = load(folder.path()).expect("loads").digest;
        fs::write(&path, "two").expect("file");
        let second = load(folder.path()).expect("loads").digest;
        fs::rename(&path, folder.path().join("b.yaml")).expect("rename");
        let third = load(folder.path()).expect("loads").digest;
        assert!(first != second && second != third && first != third);
    }

    #[test]
    fn errors_name_the_path() {
        let folder = tempfile::tempdir().expect("folder");
        let empty = load(folder.path()).expect_err("nothing there");
        assert!(matches!(empty, SourceError::Empty(_)));
        assert!(
            empty
                .to_string()
                .contains("expected files that end in .yaml"),
            "{empty}"
        );
        let missing = load(&folder.path().join("gone")).expect_err("missing");
        assert!(missing.to_string().contains("gone"), "{missing}");
        fs::write(folder.path().join("file"), "x").expect("file");
        let file = load(&folder.path().join("file")).expect_err("a file");
        assert!(file.to_string().contains("is not a folder"), "{file}");
    }
}
