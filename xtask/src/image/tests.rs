//! The archive is one that tar reads, and the layout says nothing but what is in it.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{files, layout};

struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("cardinal-image-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a temporary folder");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("the folder can be removed");
    }
}

#[test]
fn tar_reads_the_layer() {
    let folder = Folder::new("tar");
    let archive = folder.0.join("layer.tar");
    fs::write(&archive, files(b"program", &[b'x'; 513])).expect("written");
    let tar = |arguments: &[&str]| {
        let output = Command::new("tar")
            .args(arguments)
            .env("TZ", "UTC")
            .current_dir(&folder.0)
            .output()
            .expect("tar runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).expect("text")
    };
    let file = |name: &str| tar(&["-xOf", "layer.tar", name]);
    assert_eq!(file("usr/bin/cardinal-agent"), "program");
    assert_eq!(file("etc/ssl/certs/ca-certificates.crt").len(), 513);
    let listing = tar(&["--numeric-owner", "-tvf", "layer.tar"]);
    let last = listing.lines().last().unwrap_or_default();
    let words: Vec<_> = last.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "-rwxr-xr-x",
            "0/0",
            "7",
            "1970-01-01",
            "00:00",
            "usr/bin/cardinal-agent"
        ]
    );
    assert_eq!(listing.lines().count(), 7);
}

#[test]
fn a_layout_is_the_same_twice_and_every_blob_is_what_its_name_says() {
    let (one, two) = (Folder::new("one"), Folder::new("two"));
    let write = |folder: &Folder, program: &[u8]| {
        let image = layout::Image {
            version: "1.2.3",
            layer: files(program, b"roots"),
            entrypoint: "/usr/bin/cardinal-agent",
        };
        layout::write(
            &folder.0,
            "latest",
            &image,
            &json!({ "bomFormat": "CycloneDX" }),
        )
        .expect("a layout")
    };
    let digest = write(&one, b"program");
    assert_eq!(digest, write(&two, b"program"));
    assert_ne!(digest, write(&two, b"another"));

    let read = |name: &str| -> Value {
        let bytes = fs::read(one.0.join(name)).expect("a file");
        serde_json::from_slice(&bytes).expect("JSON")
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let hash = digest.strip_prefix("sha256:").expect("SHA-256");
        let bytes = fs::read(one.0.join("blobs/sha256").join(hash)).expect("a blob");
        assert_eq!(layout::hexadecimal(&Sha256::digest(&bytes)), hash);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    };
    assert_eq!(read("oci-layout")["imageLayoutVersion"], "1.0.0");
    let index = read("index.json");
    let manifests = index["manifests"].as_array().expect("manifests");
    assert_eq!(manifests[0]["digest"], digest.as_str());
    let mut met = BTreeSet::new();
    for descriptor in manifests {
        let manifest: Value = serde_json::from_slice(&blob(descriptor)).expect("a manifest");
        blob(&manifest["config"]);
        for layer in manifest["layers"].as_array().expect("layers") {
            blob(layer);
            met.insert(layer["mediaType"].as_str().expect("a type").to_owned());
        }
        // The second one is about the first.
        if let Some(subject) = manifest.get("subject") {
            assert_eq!(subject["digest"], digest.as_str());
        }
    }
    assert!(met.contains("application/vnd.cyclonedx+json"), "{met:?}");
}
