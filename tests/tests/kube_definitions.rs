//! Definitions of Cardinal's kinds at a real API server: its rules for schemas, and its judgement of the example documents.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tests::kube::{Setup, World, root};

const KINDS: [&str; 3] = ["Cell", "Platform", "RoutingTable"];

/// Documents of policies/invalid that a schema can refuse: what they lack, or have too much, is in one object's own fields.
const REFUSED: [&str; 33] = [
    "address-with-length.yaml",
    "affinity-time-too-long.yaml",
    "bad-name.yaml",
    "cell-compat.yaml",
    "cell-of-labels-with-compat.yaml",
    "cell-of-labels-with-connections.yaml",
    "cell-of-nothing.yaml",
    "cell-without-components.yaml",
    "component-twice.yaml",
    "east-of-another-organization.yaml",
    "endpoint-port-zero.yaml",
    "endpoint-type.yaml",
    "field-missing.yaml",
    "jwt-algorithm-unknown.yaml",
    "number-as-text.yaml",
    "operation-method.yaml",
    "platform-cells.yaml",
    "south-hosts-and-cidrs.yaml",
    "south-hosts-over-tcp.yaml",
    "south-single-address.yaml",
    "south-wildcard.yaml",
    "table-both-forms.yaml",
    "table-duration.yaml",
    "table-key-certificate.yaml",
    "table-key-claim-trust.yaml",
    "table-two-keys.yaml",
    "table-url-and-endpoints.yaml",
    "table-url.yaml",
    "text-as-number.yaml",
    "traffic-distribution.yaml",
    "unknown-field.yaml",
    "workloads-both.yaml",
    "workloads-select-all.yaml",
];

/// YAML documents of Cardinal's kinds in a file.
fn documents(file: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(file)?;
    Ok(format!("\n{text}")
        .split("\n---")
        .filter(|document| {
            KINDS
                .iter()
                .any(|kind| document.contains(&format!("\nkind: {kind}\n")))
        })
        .map(str::to_owned)
        .collect())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("failed to read {}", folder.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Makes the namespaces that documents name.
fn make_namespaces(world: &World, documents: &[String], made: &mut BTreeSet<String>) -> Result<()> {
    for document in documents {
        for rest in document.split("namespace: ").skip(1) {
            let name: String = rest
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
                .collect();
            if !name.is_empty() && made.insert(name.clone()) {
                let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
                world.apply(&namespace.to_string())?;
            }
        }
    }
    Ok(())
}

#[test]
fn kube_an_api_server_takes_the_definitions_and_judges_documents_by_them() -> Result<()> {
    let world = World::up(&Setup::default())?;
    world.apply_folder(&root().join("deploy/crds"))?;
    let mut made = BTreeSet::from(["default".to_owned()]);
    let mut taken = 0;
    for folder in ["valid", "demo", "quickstart"] {
        for file in files(&root().join("policies").join(folder))? {
            let documents = documents(&file)?;
            make_namespaces(&world, &documents, &mut made)?;
            for document in documents {
                world
                    .check(&document)
                    .with_context(|| format!("{} is refused", file.display()))?;
                taken += 1;
            }
        }
    }
    ensure!(taken >= 8, "only {taken} documents were found");

    let mut refused = Vec::new();
    for file in files(&root().join("policies/invalid"))? {
        let documents = documents(&file)?;
        make_namespaces(&world, &documents, &mut made)?;
        if documents
            .iter()
            .any(|document| world.check(document).is_err())
        {
            refused.push(
                file.file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
            );
        }
    }
    println!("refused: {refused:?}");
    for file in REFUSED {
        if !refused.iter().any(|name| name == file) {
            bail!("the API server takes {file}");
        }
    }
    Ok(())
}
