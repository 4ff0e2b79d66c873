//! The last objects on disk, so that a node starts without an API server as it ended.
//!
//! One file, a line of JSON for each object and at the end one that counts them. It is written beside and renamed, so that it is whole or not there;
//! since it holds the keys of listeners' certificates, only its owner may read it. Of Secrets only those are in it whose name some
//! object mentions that may refer to one: the others are nobody's business on a disk.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kinds::Kind;
use crate::object::{Object, Saved};
use crate::store::Objects;

/// The file in its folder.
const FILE: &str = "objects.jsonl";

/// The files of a folder in which objects are kept ([`Settings::keep`](crate::Settings)): the last objects, and newer ones that were
/// not written to their end.
#[must_use]
pub fn kept_files(folder: &Path) -> [PathBuf; 2] {
    [FILE.to_owned(), unfinished()].map(|name| folder.join(name))
}

/// The file beside it that is written first.
fn unfinished() -> String {
    format!("{FILE}.new")
}

/// The last line.
#[derive(Serialize, Deserialize)]
struct End {
    objects: usize,
}

/// A folder with the last objects.
#[derive(Clone, Debug)]
pub(crate) struct Keep {
    folder: PathBuf,
}

impl Keep {
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// The objects; none if nothing was ever kept here.
    pub(crate) fn load(&self) -> io::Result<Option<Vec<Object>>> {
        match read(&self.path()) {
            Ok(objects) => Ok(Some(objects)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces what is kept.
    pub(crate) fn store(&self, objects: &Objects) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let beside = self.folder.join(unfinished());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        let mut out = BufWriter::new(file);
        let named = named(objects)?;
        let needed = |object: &&Arc<Object>| {
            object.id.kind != Kind::Secret || named.contains(&*object.id.name)
        };
        let mut end = End { objects: 0 };
        for object in objects.values().filter(needed) {
            serde_json::to_writer(&mut out, &object.save()?)?;
            out.write_all(b"\n")?;
            end.objects += 1;
        }
        serde_json::to_writer(&mut out, &end)?;
        out.write_all(b"\n")?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&beside, self.path())
    }
}

/// Names in objects that may refer to Secrets, whatever they are names of.
fn named(objects: &Objects) -> serde_json::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let refer = objects
        .values()
        .filter(|one| one.id.kind.refers_to_secrets());
    for object in refer {
        collect(
            &serde_json::from_slice(&object.document.text())?,
            &mut names,
        );
    }
    Ok(names)
}

fn collect(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            names.extend(
                fields
                    .get("name")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            fields.values().for_each(|value| collect(value, names));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, names)),
        _ => {}
    }
}

fn read(path: &Path) -> io::Result<Vec<Object>> {
    let broken = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    let lines: Vec<String> = BufReader::new(fs::File::open(path)?)
        .lines()
        .collect::<io::Result<_>>()?;
    let (end, lines) = lines
        .split_last()
        .ok_or_else(|| broken("the file is empty".to_owned()))?;
    let end: End = serde_json::from_str(end)
        .map_err(|_| broken("the last line does not count the objects".to_owned()))?;
    if end.objects != lines.len() {
        let found = lines.len();
        let wanted = end.objects;
        return Err(broken(format!("expected {wanted} objects, found {found}")));
    }
    let mut objects = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        let saved: Saved = serde_json::from_str(line)
            .map_err(|error| broken(format!("line {}: {error}", index + 1)))?;
        objects.extend(saved.object());
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use super::{FILE, Keep};
    use crate::kinds::Kind;
    use crate::object::{Object, ObjectId};
    use crate::store::Objects;

    fn objects(count: usize) -> Objects {
        (0..count)
            .map(|number| {
                let id = ObjectId {
                    kind: Kind::ConfigMap,
                    namespace: "n".into(),
                    name: format!("s{number}").into(),
                };
                let object = Object {
                    id: id.clone(),
                    api_version: "v1".into(),
                    uid: "u".into(),
                    generation: 2,
                    document: br#"{"kind":"ConfigMap"}"#[..].into(),
                    status: None,
                };
                (id, Arc::new(object))
            })
            .collect()
    }

    #[test]
    fn what_was_stored_is_loaded_and_nobody_else_may_read_it() {
        let folder = tempfile::tempdir().expect("folder");
        let keep = Keep::new(&folder.path().join("kubernetes"));
        assert!(keep.load().expect("nothing there").is_none());
        for count in [3, 2] {
            keep.store(&objects(count)).expect("stored");
            let loaded = keep.load().expect("loads").expect("there");
            let stored: Vec<_> = objects(count).values().map(|one| (**one).clone()).collect();
            assert_eq!(loaded, stored);
        }
        let file = folder.path().join("kubernetes").join(FILE);
        let mode = fs::metadata(file).expect("file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn of_secrets_only_those_that_an_object_names_get_onto_the_disk() {
        let folder = tempfile::tempdir().expect("folder");
        let keep = Keep::new(folder.path());
        let gateway = br#"{"kind":"Gateway","spec":{"listeners":[{"name":"web","tls":{"certificateRefs":[{"name":"web-tls"}]}}]}}"#;
        let route =
            br#"{"kind":"HTTPRoute","spec":{"rules":[{"backendRefs":[{"name":"password"}]}]}}"#;
        let all: Objects = [
            (Kind::Gateway, "g", &gateway[..]),
            (Kind::HttpRoute, "r", &route[..]),
            (Kind::Secret, "web-tls", br#"{"kind":"Secret"}"#),
            (Kind::Secret, "password", br#"{"kind":"Secret"}"#),
        ]
        .into_iter()
        .map(|(kind, name, document)| {
            let id = ObjectId {
                kind,
                namespace: "n".into(),
                name: name.into(),
            };
            let object = Object {
                id: id.clone(),
                api_version: "v1".into(),
                uid: "u".into(),
                generation: 1,
                document: document.into(),
                status: None,
            };
            (id, Arc::new(object))
        })
        .collect();
        keep.store(&all).expect("stored");
        let loaded = keep.load().expect("loads").expect("there");
        let names: Vec<_> = loaded.iter().map(|one| &*one.id.name).collect();
        assert_eq!(names, ["web-tls", "g", "r"]);
    }

    #[test]
    fn half_a_file_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let keep = Keep::new(folder.path());
        keep.store(&objects(3)).expect("stored");
        let path = folder.path().join(FILE);
        let text = fs::read_to_string(&path).expect("file");
        let half: Vec<_> = text.lines().take(2).collect();
        fs::write(&path, half.join("\n")).expect("written");
        let error = keep.load().expect_err("half").to_string();
        assert!(error.contains("does not count the objects"), "{error}");
        // A file that lost a line in the middle.
        let without: Vec<_> = text.lines().skip(1).collect();
        fs::write(&path, without.join("\n")).expect("written");
        let error = keep.load().expect_err("a line is missing");
        assert_eq!(error.to_string(), "expected 3 objects, found 2");
    }
}
