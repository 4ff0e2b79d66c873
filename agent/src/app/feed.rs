//! Where documents come from, and how they change.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kubernetes::Cluster;
use snapshot::{Mistake, Snapshot};
use tokio::sync::mpsc;

use crate::compile;
use crate::reconcile::Documents;
use crate::source::cluster::{ClusterWatch, Found, Taken};
use crate::source::{self, FolderWatch, Loaded, SourceError};

/// The documents of a folder, read and right.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    loaded: Loaded,
    snapshot: Snapshot,
}

pub(super) fn read_folder(path: &Path) -> anyhow::Result<Folder> {
    let loaded = source::load(path)?;
    let snapshot = snapshot::parse(&loaded.files).map_err(|rejections| {
        anyhow::anyhow!(
            "documents in `{}` are refused:\n{rejections}",
            path.display()
        )
    })?;
    Ok(Folder {
        path: path.to_owned(),
        loaded,
        snapshot,
    })
}

/// What changed.
pub(super) enum Change {
    Documents(Result<Loaded, SourceError>),
    Objects(Taken),
}

/// Changes of the documents, wherever they come from.
pub(super) enum Feed {
    /// From a task that lives as long as the receiver.
    Folder(mpsc::Receiver<Result<Loaded, SourceError>>),
    Cluster(Box<ClusterWatch>),
}

impl Feed {
    /// The first documents, and those to come. Waits for the cluster for as long as nothing is known of it.
    pub(super) async fn begin(
        folder: Option<Folder>,
        cluster: Option<&Cluster>,
    ) -> anyhow::Result<(Self, Documents)> {
        if let Some(folder) = folder {
            let changes = watch_folder(&folder.path, &folder.loaded)?;
            let documents = Documents::of_folder(folder.snapshot, folder.loaded.digest);
            return Ok((Self::Folder(changes), documents));
        }
        let cluster = cluster.context("there is no source of documents")?;
        let mut watch = ClusterWatch::new(cluster);
        let first = watch.changed().await;
        let mut first = first.context("the cluster is not followed any more")?;
        // One bad object among all of a cluster keeps no node from starting.
        while let Err(mistakes) = compile::route::compile(&first.snapshot, 0) {
            match watch.without(&first.found, &mistakes) {
                Some(others) => first = others,
                None => break,
            }
        }
        Ok((Self::Cluster(Box::new(watch)), Documents::of_cluster(first)))
    }

    /// Changes that a cluster's objects have come through, those of their statuses too; 0 for a folder, whose documents come all at
    /// once.
    pub(super) fn changes(&self) -> u64 {
        match self {
            Self::Folder(_) => 0,
            Self::Cluster(watch) => watch.changes(),
        }
    }

    /// The same objects without those of which no tables could be made; none from a folder, which is taken or refused as a whole.
    pub(super) fn without(&mut self, found: &Found, mistakes: &[Mistake]) -> Option<Taken> {
        match self {
            Self::Folder(_) => None,
            Self::Cluster(watch) => watch.without(found, mistakes),
        }
    }

    pub(super) async fn next(&mut self) -> Option<Change> {
        match self {
            Self::Folder(changes) => Some(Change::Documents(changes.recv().await?)),
            Self::Cluster(watch) => Some(Change::Objects(watch.changed().await?)),
        }
    }
}

/// Changes of a folder that was just read.
fn watch_folder(
    folder: &Path,
    loaded: &Loaded,
) -> anyhow::Result<mpsc::Receiver<Result<Loaded, SourceError>>> {
    let mut watch = FolderWatch::new(folder, loaded)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let changed = watch.changed().await;
            if sender.send(changed).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
