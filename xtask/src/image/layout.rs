//! An OCI layout (OCI image specification 1.1, "Image Layout"): blobs by their digest, and an index that names the image.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// Type of the bill of materials.
const BILL: &str = "application/vnd.cyclonedx+json";

/// An image of one layer.
pub(super) struct Image<'a> {
    pub(super) version: &'a str,
    /// The layer's archive.
    pub(super) layer: Vec<u8>,
    pub(super) entrypoint: &'a str,
}

/// A blob that was written.
struct Blob {
    digest: String,
    size: usize,
}

impl Blob {
    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.size })
    }
}

/// Writes a layout anew; gives the digest of the image's manifest.
pub(super) fn write(folder: &Path, tag: &str, image: &Image<'_>, bill: &Value) -> Result<String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("failed to remove {}", folder.display()));
        }
        _ => {}
    }
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("failed to make {}", blobs.display()))?;
    let blob = |bytes: &[u8]| blob(&blobs, bytes);

    let layer = blob(&image.layer)?;
    let config = blob(&bytes(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": { "Entrypoint": [image.entrypoint] },
        // The layer is not compressed: its digest is that of its content.
        "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
    })))?;
    let manifest = blob(&bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(CONFIG),
        "layers": [layer.descriptor(LAYER)],
        "annotations": {
            "org.opencontainers.image.title": "cardinal-agent",
            "org.opencontainers.image.version": image.version,
            "org.opencontainers.image.licenses": "Apache-2.0",
        },
    })))?;

    let bill = blob(&bytes(bill))?;
    let empty = blob(b"{}")?;
    let attached = blob(&bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": BILL,
        "config": empty.descriptor(EMPTY),
        "layers": [bill.descriptor(BILL)],
        "subject": manifest.descriptor(MANIFEST),
    })))?;

    let mut named = manifest.descriptor(MANIFEST);
    named["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    named["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let mut referring = attached.descriptor(MANIFEST);
    referring["artifactType"] = json!(BILL);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [named, referring] });
    for (name, content) in [
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ("index.json", index),
    ] {
        let file = folder.join(name);
        fs::write(&file, bytes(&content))
            .with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(manifest.digest)
}

fn blob(blobs: &Path, content: &[u8]) -> Result<Blob> {
    let hash = hexadecimal(&Sha256::digest(content));
    let file: PathBuf = blobs.join(&hash);
    fs::write(&file, content).with_context(|| format!("failed to write {}", file.display()))?;
    Ok(Blob {
        digest: format!("sha256:{hash}"),
        size: content.len(),
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
