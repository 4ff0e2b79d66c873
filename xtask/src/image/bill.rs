//! The bill of materials: what is linked into a program, as CycloneDX 1.6 has it, out of what cargo resolved.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::shell;

/// The crates that are linked into a package's program on a target.
pub(super) fn of(package: &str, target: &str) -> Result<Value> {
    let metadata = shell::output(shell::cargo().args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        target,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo's metadata is no JSON")?;
    let lock = shell::root().join("Cargo.lock");
    let lock = std::fs::read_to_string(&lock)
        .with_context(|| format!("failed to read {}", lock.display()))?;
    bill(&metadata, &checksums(&lock), package)
}

/// Checksums of the lock file by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let value = |block: &str, key: &str| {
        block.lines().find_map(|line| {
            line.strip_prefix(key)?
                .strip_prefix(" = \"")?
                .strip_suffix('"')
                .map(str::to_owned)
        })
    };
    lock.split("[[package]]")
        .skip(1)
        .filter_map(|block| {
            let name = value(block, "name")?;
            Some(((name, value(block, "version")?), value(block, "checksum")?))
        })
        .collect()
}

fn bill(
    metadata: &Value,
    checksums: &BTreeMap<(String, String), String>,
    package: &str,
) -> Result<Value> {
    let packages: BTreeMap<&str, &Value> = list(&metadata["packages"])
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"]["nodes"])
        .iter()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let (root, _) = packages
        .iter()
        .find(|(_, found)| found["name"] == package)
        .with_context(|| format!("cargo knows no package {package}"))?;
    let mut linked: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut waiting = vec![*root];
    while let Some(id) = waiting.pop() {
        if linked.contains_key(id) {
            continue;
        }
        let node = nodes.get(id).context("cargo resolved no such package")?;
        let needed: BTreeSet<&str> = list(&node["deps"])
            .iter()
            .filter(|needed| {
                // What only builds or tests is not linked.
                list(&needed["dep_kinds"])
                    .iter()
                    .any(|kind| kind["kind"].is_null())
            })
            .filter_map(|needed| needed["pkg"].as_str())
            .collect();
        waiting.extend(&needed);
        linked.insert(id, needed);
    }
    let component = |id: &str| component(packages[id], checksums);
    let components: Vec<_> = linked
        .keys()
        .filter(|id| *id != root)
        .map(|id| component(id))
        .collect();
    let mut described = component(root);
    described["type"] = json!("application");
    let reference = |id: &str| purl(packages[id]);
    let dependencies: Vec<_> = linked
        .iter()
        .map(|(id, needed)| {
            let needed: BTreeSet<_> = needed.iter().map(|id| reference(id)).collect();
            json!({ "ref": reference(id), "dependsOn": needed })
        })
        .collect();
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": { "component": described },
        "components": components,
        "dependencies": dependencies,
    }))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn purl(package: &Value) -> String {
    let text = |field: &str| package[field].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", text("name"), text("version"))
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Value {
    let text = |field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let (name, version) = (text("name"), text("version"));
    let mut component = json!({
        "type": "library",
        "bom-ref": purl(package),
        "name": name,
        "version": version,
        "purl": purl(package),
    });
    if let Some(license) = package["license"].as_str() {
        // An older spelling of `OR`.
        let expression = license.replace('/', " OR ");
        component["licenses"] = json!([{ "expression": expression }]);
    }
    // Crates of this repository have none.
    if let Some(checksum) = checksums.get(&(name, version)) {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    component
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_with_licence_and_checksum_and_what_only_builds_is_not() {
        let metadata = json!({
            "packages": [
                { "id": "a", "name": "a", "version": "1.0.0", "license": "Apache-2.0" },
                { "id": "b", "name": "b", "version": "2.0.0", "license": "MIT/Apache-2.0" },
                { "id": "c", "name": "c", "version": "3.0.0", "license": null },
            ],
            "resolve": { "nodes": [
                { "id": "a", "deps": [
                    { "pkg": "b", "dep_kinds": [{ "kind": null }] },
                    { "pkg": "c", "dep_kinds": [{ "kind": "build" }, { "kind": "dev" }] },
                ] },
                { "id": "b", "deps": [] },
                { "id": "c", "deps": [] },
            ] },
        });
        let lock = "version = 4\n\n[[package]]\nname = \"b\"\nversion = \"2.0.0\"\nsource = \"x\"\nchecksum = \"ff\"\n\n\
                    [[package]]\nname = \"a\"\nversion = \"1.0.0\"\n";
        let bill = bill(&metadata, &checksums(lock), "a").expect("a bill");
        assert_eq!(
            bill["components"],
            json!([{
                "type": "library", "bom-ref": "pkg:cargo/b@2.0.0", "name": "b", "version": "2.0.0",
                "purl": "pkg:cargo/b@2.0.0", "licenses": [{ "expression": "MIT OR Apache-2.0" }],
                "hashes": [{ "alg": "SHA-256", "content": "ff" }],
            }])
        );
        assert_eq!(bill["metadata"]["component"]["name"], "a");
        assert_eq!(
            bill["dependencies"][0],
            json!({ "ref": "pkg:cargo/a@1.0.0", "dependsOn": ["pkg:cargo/b@2.0.0"] })
        );
        assert!(super::bill(&metadata, &BTreeMap::new(), "z").is_err());
    }
}
