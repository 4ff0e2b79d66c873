//! Notices that a folder changed, whatever way it was written.
//!
//! Events of the file system wake it; a slow poll is the net under them, since an event can be lost and a
//! folder can be replaced as a whole. A burst of writes is one change: it is over when nothing was written
//! for [`QUIET`], and at the latest after [`LONGEST`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::{Fingerprint, Loaded, SourceError, fingerprint, load};

/// A burst is over when nothing was written for this long.
const QUIET: Duration = Duration::from_millis(100);
/// A burst that does not end is read anyway after this long.
const LONGEST: Duration = Duration::from_secs(2);
/// How often the folder is read without an event.
const POLL: Duration = Duration::from_secs(5);

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("failed to watch `{}`; is `fs.inotify.max_user_watches` exhausted?", folder.display())]
pub struct WatchError {
    folder: PathBuf,
    #[source]
    source: notify::Error,
}

/// A watched folder.
pub struct FolderWatch {
    folder: PathBuf,
    digest: String,
    /// What the files look like from outside, if they looked alike at two reads a poll apart: files that are written twice in one
    /// tick of the clock look alike at once.
    settled: Option<Fingerprint>,
    failed: bool,
    events: mpsc::Receiver<()>,
    watcher: RecommendedWatcher,
    poll_at: Instant,
}

impl FolderWatch {
    /// Watches a folder that was just loaded.
    pub fn new(folder: &Path, loaded: &Loaded) -> Result<Self, WatchError> {
        // One slot is enough: it says that something happened since the last read.
        let (sender, events) = mpsc::channel(1);
        let failed = |source| WatchError {
            folder: folder.to_owned(),
            source,
        };
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let reading = event.as_ref().is_ok_and(|event| event.kind.is_access());
                if !reading {
                    // A full channel has the same news already, a closed one no reader.
                    let _full = sender.try_send(());
                }
            })
            .map_err(failed)?;
        watcher
            .watch(folder, RecursiveMode::Recursive)
            .map_err(failed)?;
        Ok(Self {
            folder: folder.to_owned(),
            digest: loaded.digest.clone(),
            settled: None,
            failed: false,
            events,
            watcher,
            poll_at: Instant::now() + POLL,
        })
    }

    /// Waits for the next change and reads the folder. An unreadable folder is reported once, until it is
    /// readable again. A dropped future may lose an event, which the next poll makes up for.
    pub async fn changed(&mut self) -> Result<Loaded, SourceError> {
        loop {
            tokio::select! {
                event = self.events.recv() => {
                    if event.is_none() {
                        sleep_until(self.poll_at).await;
                    } else {
                        self.settle().await;
                        self.settled = None;
                    }
                }
                () = sleep_until(self.poll_at) => self.rearm(),
            }
            self.poll_at = Instant::now() + POLL;
            let (folder, settled) = (self.folder.clone(), self.settled.take());
            let read = move || match settled {
                // Of thousands of files nothing is read that did not change.
                Some(known) if fingerprint(&folder)? == known => Ok(Err(known)),
                _ => load(&folder).map(Ok),
            };
            let loaded = tokio::task::spawn_blocking(read)
                .await
                .expect("reading a folder does not panic");
            match loaded {
                Ok(Ok(loaded)) if loaded.digest != self.digest || self.failed => {
                    self.failed = false;
                    self.digest.clone_from(&loaded.digest);
                    return Ok(loaded);
                }
                Ok(Ok(loaded)) => self.settled = Some(loaded.fingerprint),
                Ok(Err(known)) => self.settled = Some(known),
                Err(error) if !self.failed => {
                    self.failed = true;
                    return Err(error);
                }
                Err(_) => {}
            }
        }
    }

    /// Waits until a burst is over.
    async fn settle(&mut self) {
        let end = Instant::now() + LONGEST;
        loop {
            let quiet = (Instant::now() + QUIET).min(end);
            match timeout_at(quiet, self.events.recv()).await {
                Ok(Some(())) if Instant::now() < end => {}
                _ => return,
            }
        }
    }

    /// Watches the folder's path again: it may be another folder by now.
    fn rearm(&mut self) {
        // Both fail while the folder is gone, and then the poll is what notices its return.
        drop(self.watcher.unwatch(&self.folder));
        drop(self.watcher.watch(&self.folder, RecursiveMode::Recursive));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::{FolderWatch, load};
    use crate::source::Loaded;

    async fn next(watch: &mut FolderWatch) -> Loaded {
        timeout(Duration::from_secs(30), watch.changed())
            .await
            .expect("noticed")
            .expect("readable")
    }

    fn watched(folder: &Path) -> FolderWatch {
        FolderWatch::new(folder, &load(folder).expect("loads")).expect("watched")
    }

    #[tokio::test]
    async fn a_burst_of_writes_is_one_change() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("a.yaml"), "0").expect("file");
        let mut watch = watched(folder.path());
        for number in 0..50 {
            fs::write(folder.path().join("a.yaml"), format!("{number}")).expect("file");
            fs::write(folder.path().join(format!("{number}.yaml")), "x").expect("file");
        }
        let loaded = next(&mut watch).await;
        assert_eq!(loaded.files.len(), 51);
        let again = timeout(Duration::from_millis(500), watch.changed()).await;
        assert!(again.is_err(), "one burst gave two changes");
    }

    #[tokio::test]
    async fn editors_and_atomic_renames_are_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("a.yaml");
        fs::write(&path, "one").expect("file");
        let mut watch = watched(folder.path());
        // vim: move the old file away, write a new one, delete the old one
        fs::rename(&path, folder.path().join("a.yaml~")).expect("backup");
        fs::write(&path, "two").expect("file");
        fs::remove_file(folder.path().join("a.yaml~")).expect("backup removed");
        assert_eq!(next(&mut watch).await.files[0].bytes, b"two");
        fs::write(folder.path().join(".a.tmp"), "three").expect("file");
        fs::rename(folder.path().join(".a.tmp"), &path).expect("renamed over");
        assert_eq!(next(&mut watch).await.files[0].bytes, b"three");
        fs::write(folder.path().join("b.yaml"), "new").expect("file");
        assert_eq!(next(&mut watch).await.files.len(), 2);
        fs::remove_file(folder.path().join("b.yaml")).expect("removed");
        assert_eq!(next(&mut watch).await.files.len(), 1);
    }

    #[tokio::test]
    async fn the_link_swap_of_a_config_map_is_one_change() {
        let folder = tempfile::tempdir().expect("folder");
        let version = |name: &str, text: &str| {
            fs::create_dir(folder.path().join(name)).expect("version");
            for file in ["a.yaml", "b.yaml"] {
                fs::write(folder.path().join(name).join(file), text).expect("file");
            }
        };
        version("..1", "one");
        symlink("..1", folder.path().join("..data")).expect("link");
        for file in ["a.yaml", "b.yaml"] {
            symlink(format!("..data/{file}"), folder.path().join(file)).expect("link");
        }
        let mut watch = watched(folder.path());
        version("..2", "two");
        symlink("..2", folder.path().join("..data_tmp")).expect("link");
        fs::rename(
            folder.path().join("..data_tmp"),
            folder.path().join("..data"),
        )
        .expect("swap");
        fs::remove_dir_all(folder.path().join("..1")).expect("old version removed");
        let loaded = next(&mut watch).await;
        assert!(
            loaded.files.iter().all(|file| file.bytes == b"two"),
            "{loaded:?}"
        );
    }

    #[tokio::test]
    async fn a_folder_that_is_replaced_is_noticed() {
        let parent = tempfile::tempdir().expect("folder");
        let folder = parent.path().join("config");
        fs::create_dir(&folder).expect("folder");
        fs::write(folder.join("a.yaml"), "one").expect("file");
        let mut watch = watched(&folder);
        fs::create_dir(parent.path().join("next")).expect("folder");
        fs::write(parent.path().join("next/a.yaml"), "two").expect("file");
        fs::rename(&folder, parent.path().join("old")).expect("moved away");
        fs::rename(parent.path().join("next"), &folder).expect("moved in");
        loop {
            match timeout(Duration::from_secs(30), watch.changed())
                .await
                .expect("noticed")
            {
                Ok(loaded) => break assert_eq!(loaded.files[0].bytes, b"two"),
                // The moment between the two renames may be seen as well.
                Err(error) => assert!(error.to_string().contains("config"), "{error}"),
            }
        }
    }
}
