//! The bill of materials: what is linked into the agent's program, as CycloneDX 1.6 has it, out of what cargo resolved.
//!
//! That is the agent's crates, those of the eBPF programs that are inside of it, and the compiler's own library. Crates that only
//! build or test, and macros, which run in the compiler, are not linked. Package URLs are those of the registry; a crate of this
//! repository has none, since another one may have its name there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::layout::hexadecimal;
use crate::{ebpf, shell};

/// What is linked into the agent's program on a target; the programs of the kernel are inside of it.
pub(super) fn of(target: &str, program: &[u8]) -> Result<Value> {
    let mut bill = Bill::default();
    let root = bill.add(&resolved(&shell::root(), target)?, "cardinal-agent")?;
    let programs = bill.add(&resolved(&ebpf::programs(), ebpf::TARGET)?, "agent-ebpf")?;
    let library = bill.library(&shell::output(shell::command("rustc").arg("--version"))?)?;
    let needed = bill.dependencies.entry(root.clone()).or_default();
    needed.extend([programs, library]);
    bill.finish(&root, program)
}

/// What cargo resolved for a workspace, and its lock file.
struct Resolved {
    metadata: Value,
    lock: String,
}

fn resolved(workspace: &Path, target: &str) -> Result<Resolved> {
    let mut cargo = shell::cargo();
    cargo.current_dir(workspace).args([
        "metadata",
        "--locked",
        "--format-version",
        "1",
        "--filter-platform",
        target,
    ]);
    let metadata = shell::output(&mut cargo)?;
    let lock = workspace.join("Cargo.lock");
    Ok(Resolved {
        metadata: serde_json::from_str(&metadata).context("cargo's metadata is no JSON")?,
        lock: std::fs::read_to_string(&lock)
            .with_context(|| format!("failed to read {}", lock.display()))?,
    })
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

/// Components and what each needs, by their references.
#[derive(Default)]
struct Bill {
    components: BTreeMap<String, Value>,
    dependencies: BTreeMap<String, BTreeSet<String>>,
}

impl Bill {
    /// Adds the crates that are linked into a package's program; gives the package's reference.
    fn add(&mut self, resolved: &Resolved, package: &str) -> Result<String> {
        let Resolved { metadata, lock } = resolved;
        let checksums = checksums(lock);
        let packages: BTreeMap<&str, &Value> = list(&metadata["packages"])
            .iter()
            .filter_map(|package| Some((package["id"].as_str()?, package)))
            .collect();
        let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"]["nodes"])
            .iter()
            .filter_map(|node| Some((node["id"].as_str()?, node)))
            .collect();
        let of = |id: &str| {
            let package = packages.get(id).copied();
            package.with_context(|| format!("cargo resolved {id} and does not know it"))
        };
        let (root, described) = packages
            .iter()
            .find(|(_, found)| found["name"] == package)
            .with_context(|| format!("cargo knows no package {package}"))?;
        let mut met = BTreeSet::new();
        let mut waiting = vec![*root];
        while let Some(id) = waiting.pop() {
            if !met.insert(id) {
                continue;
            }
            let package = of(id)?;
            let node = nodes.get(id).context("cargo resolved no such package")?;
            let mut needed = BTreeSet::new();
            for dependency in list(&node["deps"]) {
                let links = |kind: &Value| kind["kind"].is_null();
                let id = dependency["pkg"].as_str().unwrap_or_default();
                if list(&dependency["dep_kinds"]).iter().any(links) && !is_macro(of(id)?) {
                    needed.insert(reference(of(id)?));
                    waiting.push(id);
                }
            }
            let reference = reference(package);
            self.components
                .insert(reference.clone(), component(package, &checksums));
            self.dependencies
                .entry(reference)
                .or_default()
                .extend(needed);
        }
        Ok(reference(described))
    }

    /// Adds the compiler's own library, as the compiler names its version; gives the library's reference.
    fn library(&mut self, compiler: &str) -> Result<String> {
        let version = compiler.split(' ').nth(1);
        let version = version.with_context(|| format!("`{compiler}` names no version"))?;
        let reference = format!("pkg:generic/rust-std@{version}");
        let component = json!({
            "type": "library",
            "bom-ref": reference,
            "name": "rust-std",
            "version": version,
            "description": "Rust's standard library, with the C library musl that is linked with it",
            "purl": reference,
            "licenses": [{ "expression": "(MIT OR Apache-2.0) AND MIT" }],
        });
        self.components.insert(reference.clone(), component);
        self.dependencies.entry(reference.clone()).or_default();
        Ok(reference)
    }

    /// The bill of a program, which is one of the components.
    fn finish(mut self, root: &str, program: &[u8]) -> Result<Value> {
        let described = self.components.remove(root);
        let mut described = described.context("the program is no component")?;
        described["type"] = json!("application");
        let hash = hexadecimal(&Sha256::digest(program));
        described["hashes"] = json!([{ "alg": "SHA-256", "content": hash }]);
        let dependencies = self.dependencies.iter();
        let dependencies = dependencies.map(|(from, to)| json!({ "ref": from, "dependsOn": to }));
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": { "component": described },
            "components": self.components.values().collect::<Vec<_>>(),
            "dependencies": dependencies.collect::<Vec<_>>(),
        }))
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

fn is_macro(package: &Value) -> bool {
    let targets = list(&package["targets"]).iter();
    let mut kinds = targets.flat_map(|target| list(&target["kind"]));
    kinds.any(|kind| kind == "proc-macro")
}

/// Where a package comes from; a crate of this repository from nowhere.
fn purl(package: &Value) -> Option<String> {
    let is_ours = package["source"].is_null();
    let version = text(package, "version").replace('+', "%2B");
    let purl = || format!("pkg:cargo/{}@{version}", text(package, "name"));
    (!is_ours).then(purl)
}

fn reference(package: &Value) -> String {
    let ours = || {
        format!(
            "cardinal/{}@{}",
            text(package, "name"),
            text(package, "version")
        )
    };
    purl(package).unwrap_or_else(ours)
}

fn component(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Value {
    let [name, version] = ["name", "version"].map(|field| text(package, field).to_owned());
    let mut component = json!({
        "type": "library",
        "bom-ref": reference(package),
        "name": name,
        "version": version,
    });
    if let Some(purl) = purl(package) {
        component["purl"] = json!(purl);
    }
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
mod tests;
