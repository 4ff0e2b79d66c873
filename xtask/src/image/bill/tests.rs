//! The bill has what is linked, and says it as CycloneDX 1.6 wants it said (bom-1.6.schema.json and the text of the specification).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Bill, Resolved, list, of};

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn resolved() -> Resolved {
    let library = |id: &str, version: &str, license: Option<&str>, kind: &str| {
        json!({
            "id": id, "name": id, "version": version, "license": license, "source": REGISTRY,
            "targets": [{ "kind": [kind] }, { "kind": ["custom-build"] }],
        })
    };
    let metadata = json!({
        "packages": [
            { "id": "a", "name": "a", "version": "1.0.0", "license": "Apache-2.0", "source": null, "targets": [] },
            library("b", "2.0.0", Some("MIT/Apache-2.0"), "lib"),
            library("c", "3.0.0", None, "lib"),
            library("d", "4.0.0", None, "proc-macro"),
        ],
        "resolve": { "nodes": [
            { "id": "a", "deps": [
                { "pkg": "b", "dep_kinds": [{ "kind": null }] },
                { "pkg": "c", "dep_kinds": [{ "kind": "build" }, { "kind": "dev" }] },
                { "pkg": "d", "dep_kinds": [{ "kind": null }] },
            ] },
            { "id": "b", "deps": [] },
            { "id": "c", "deps": [] },
            { "id": "d", "deps": [{ "pkg": "c", "dep_kinds": [{ "kind": null }] }] },
        ] },
    });
    let lock = "version = 4\n\n[[package]]\nname = \"b\"\nversion = \"2.0.0\"\nsource = \"x\"\nchecksum = \"ff\"\n\n\
                [[package]]\nname = \"a\"\nversion = \"1.0.0\"\n";
    Resolved {
        metadata,
        lock: lock.to_owned(),
    }
}

#[test]
fn what_is_linked_is_listed_with_licence_and_checksum_and_what_only_builds_is_not() {
    let mut bill = Bill::default();
    let root = bill.add(&resolved(), "a").expect("a package");
    let bill = bill.finish(&root, b"program").expect("a bill");
    assert_eq!(
        bill["components"],
        json!([{
            "type": "library", "bom-ref": "pkg:cargo/b@2.0.0", "name": "b", "version": "2.0.0",
            "purl": "pkg:cargo/b@2.0.0", "licenses": [{ "expression": "MIT OR Apache-2.0" }],
            "hashes": [{ "alg": "SHA-256", "content": "ff" }],
        }])
    );
    let described = &bill["metadata"]["component"];
    assert_eq!(described["name"], "a");
    // Whoever has the registry's crate of this name has another one.
    assert_eq!(described.get("purl"), None);
    assert_eq!(
        bill["dependencies"],
        json!([
            { "ref": "cardinal/a@1.0.0", "dependsOn": ["pkg:cargo/b@2.0.0"] },
            { "ref": "pkg:cargo/b@2.0.0", "dependsOn": [] },
        ])
    );
    assert!(Bill::default().add(&resolved(), "z").is_err());
}

/// Breaches of what CycloneDX 1.6 asks of the fields that we write.
fn breaches(bill: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |holds: bool, what: &str, of: &Value| {
        if !holds {
            found.push(format!("{what}: {of}"));
        }
    };
    let fields = |value: &Value| -> BTreeSet<String> {
        let fields = value.as_object().into_iter().flatten();
        fields.map(|(name, _)| name.clone()).collect()
    };
    let known = |value: &Value, names: &[&str]| {
        let fields = fields(value);
        fields.iter().all(|name| names.contains(&&**name))
    };
    let filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    check(
        known(
            bill,
            &[
                "bomFormat",
                "specVersion",
                "version",
                "metadata",
                "components",
                "dependencies",
            ],
        ),
        "a field that a bill has not",
        &json!(fields(bill)),
    );
    check(
        bill["bomFormat"] == "CycloneDX",
        "format",
        &bill["bomFormat"],
    );
    check(
        bill["specVersion"] == "1.6",
        "version of the format",
        &bill["specVersion"],
    );
    check(
        bill["version"].as_u64() >= Some(1),
        "version of the bill",
        &bill["version"],
    );
    let components = list(&bill["components"]);
    let described = &bill["metadata"]["component"];
    let mut references = BTreeSet::new();
    for component in components.iter().chain([described]) {
        let names = [
            "type",
            "bom-ref",
            "name",
            "version",
            "description",
            "purl",
            "licenses",
            "hashes",
        ];
        check(
            known(component, &names),
            "a field that a component has not",
            component,
        );
        let kind = &component["type"];
        check(
            kind == "library" || kind == "application",
            "type",
            component,
        );
        check(
            filled(&component["name"]) && filled(&component["version"]),
            "name or version",
            component,
        );
        let reference = component["bom-ref"].as_str().unwrap_or_default();
        check(
            !reference.is_empty() && references.insert(reference),
            "reference",
            component,
        );
        if let Some(purl) = component.get("purl") {
            // purl-spec: pkg:type/name@version, nothing in our names has to be escaped.
            let rest = purl.as_str().and_then(|purl| purl.strip_prefix("pkg:"));
            let rest = rest.and_then(|rest| rest.split_once('/'));
            let named = rest.and_then(|(_, rest)| rest.split_once('@'));
            let same = named.is_some_and(|(name, version)| {
                component["name"] == name
                    && component["version"] == version.replace("%2B", "+").as_str()
            });
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/@%".contains(c);
            let escaped = purl.as_str().is_some_and(|purl| purl.chars().all(plain));
            check(same && escaped, "purl", component);
        }
        for license in list(&component["licenses"]) {
            check(
                known(license, &["expression"]) && filled(&license["expression"]),
                "license",
                component,
            );
            let expression = license["expression"].as_str().unwrap_or_default();
            check(!expression.contains('/'), "SPDX expression", component);
        }
        check(
            list(&component["licenses"]).len() <= 1,
            "one expression at most",
            component,
        );
        for hash in list(&component["hashes"]) {
            let content = hash["content"].as_str().unwrap_or_default();
            let hexadecimal = content
                .bytes()
                .all(|one| one.is_ascii_digit() || (b'a'..=b'f').contains(&one));
            check(
                hash["alg"] == "SHA-256" && content.len() == 64 && hexadecimal,
                "hash",
                component,
            );
        }
    }
    let mut described = BTreeSet::new();
    for dependency in list(&bill["dependencies"]) {
        check(
            known(dependency, &["ref", "dependsOn"]),
            "a field that a dependency has not",
            dependency,
        );
        let from = dependency["ref"].as_str().unwrap_or_default();
        check(
            references.contains(from) && described.insert(from),
            "ref",
            dependency,
        );
        let mut met = BTreeSet::new();
        for to in list(&dependency["dependsOn"]) {
            let to = to.as_str().unwrap_or_default();
            check(
                references.contains(to) && met.insert(to),
                "dependsOn",
                dependency,
            );
        }
    }
    check(
        described == references,
        "a component without dependencies",
        &json!(null),
    );
    found
}

#[test]
fn the_bill_of_the_agent_is_one_of_cyclonedx() {
    let bill = of("x86_64-unknown-linux-musl", b"program").expect("a bill");
    assert_eq!(breaches(&bill), [""; 0]);
    let place = |name: &str| {
        let mut components = list(&bill["components"]).iter();
        components.position(|one| one["name"] == name)
    };
    let component = |name: &str| place(name).map(|at| &bill["components"][at]);
    for name in [
        "tokio",
        "aws-lc-sys",
        "aya-ebpf",
        "agent-common",
        "rust-std",
    ] {
        assert!(component(name).is_some(), "{name} is linked");
    }
    for name in ["serde_derive", "proptest", "cc", "xtask"] {
        assert!(component(name).is_none(), "{name} is not linked");
    }
    let tokio = component("tokio").expect("linked");
    assert!(tokio["hashes"][0]["content"].is_string() && tokio["licenses"][0].is_object());
    // SHA-256 of `program`.
    assert_eq!(bill["metadata"]["component"]["hashes"][0]["content"], HASH);
    let of_tokio = format!("/components/{}", place("tokio").expect("linked"));
    for (pointer, wrong) in [
        (
            format!("{of_tokio}/hashes/0/content"),
            json!("F".repeat(64)),
        ),
        (format!("{of_tokio}/purl"), json!("pkg:cargo/another@1.0.0")),
        (format!("{of_tokio}/bom-ref"), json!("")),
        (
            format!("{of_tokio}/licenses/0/expression"),
            json!("MIT/Apache-2.0"),
        ),
        (
            "/dependencies/0/dependsOn".to_owned(),
            json!(["pkg:cargo/none@1.0.0"]),
        ),
        ("/specVersion".to_owned(), json!("1.7")),
    ] {
        let mut changed = bill.clone();
        *changed.pointer_mut(&pointer).expect("it is there") = wrong;
        assert_ne!(breaches(&changed), [""; 0], "{pointer}");
    }
}

const HASH: &str = "1310ca2c8932dbd118668bd97442558a3e1f546b5e15c69699dfbd6024f548d8";
