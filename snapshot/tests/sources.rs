//! Where documents come from makes no difference: a folder, and a cluster with its objects, make the same snapshot, word for word.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use snapshot::{Kind, Snapshot, SourceFile, parse, take};

/// Kinds that no example has.
const WITHOUT_EXAMPLE: [&str; 3] = ["ListenerSet", "ReferenceGrant", "Node"];

/// Folders of examples, each a whole configuration.
fn folders() -> Vec<PathBuf> {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies");
    let valid = fs::read_dir(policies.join("valid")).expect("the folder is there");
    let mut folders: Vec<PathBuf> = valid
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.is_dir())
        .collect();
    for name in ["openchoreo/first", "openchoreo/release-1.2"] {
        folders.push(policies.join(name));
    }
    folders.sort();
    folders
}

fn texts(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            texts.extend(self::texts(&path));
        } else if path.extension().is_some_and(|name| name == "yaml") {
            let text = fs::read_to_string(&path).expect("it can be read");
            // A table in a file of its own is no object: the route that leads there leads to the other one.
            texts.push(text.replace(
                "kind: RoutingTable, name: routing }",
                "kind: RoutingTable, name: tenants }",
            ));
        }
    }
    texts
}

/// The kind and the name of an object; enough for these files.
fn named(object: &str) -> Option<(String, String)> {
    let after = |text: &str, key: &str| {
        let rest = text.split_once(key)?.1.trim_start();
        let end = rest.find([',', ' ', '}', '\n']).unwrap_or(rest.len());
        Some(rest[..end].to_owned())
    };
    let kind = after(object, "\nkind:")?;
    let metadata = object.split_once("\nmetadata:")?.1;
    let name = after(metadata, "name:")?;
    let namespace = metadata
        .split_once("\nspec:")
        .map_or(metadata, |parts| parts.0);
    let namespace = after(namespace, "namespace:").unwrap_or_default();
    Some((kind, format!("{namespace}/{name}")))
}

/// The objects of a folder, each with the path that a cluster's has. A cluster says by their class whose its gateways are.
fn objects(folder: &Path) -> (BTreeSet<String>, Vec<SourceFile>) {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let mut kinds = BTreeSet::new();
    let class = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: { name: cardinal }
spec: { controllerName: cardinal.dev/gateway-controller }
";
    // Sockets and loopback are the node's own: a folder is about them, and no document of a cluster is (closed.rs).
    let elsewhere = |text: String| {
        let mut text = text;
        for path in ["/run/shop/next.sock", "/run/broker.sock"] {
            let socket = format!("unix: {{ path: {path} }}");
            text = text.replace(&socket, "ip: { address: 192.0.2.99, port: 9999 }");
        }
        text = text.replace("value: 127.0.0.1", "value: 192.0.2.98");
        assert!(
            !text.contains("unix:") && !text.contains("127.0.0.1"),
            "{text}"
        );
        text
    };
    let texts = texts(folder).into_iter().map(elsewhere);
    let texts = texts.chain([class.to_owned()]);
    for text in texts {
        for object in format!("\n{text}").split("\n---") {
            let Some((kind, name)) = named(object) else {
                assert!(!object.contains("kind:"), "{object}");
                continue;
            };
            all.insert(format!("{kind}/{name}"), object.to_owned());
            kinds.insert(kind);
        }
    }
    let files = all.into_iter();
    let files = files.map(|(path, text)| SourceFile {
        path,
        bytes: text.into_bytes(),
    });
    (kinds, files.collect())
}

/// All that a snapshot says. The order of warnings says nothing.
fn said(mut snapshot: Snapshot) -> String {
    snapshot.warnings.sort();
    format!("{snapshot:#?}")
}

#[test]
fn a_folder_and_a_cluster_with_its_objects_make_the_same_snapshot() {
    let mut seen = BTreeSet::new();
    for folder in folders() {
        let name = folder.display();
        let (kinds, mut objects) = objects(&folder);
        seen.extend(kinds);
        let folder = parse(&objects).unwrap_or_else(|error| panic!("{name}: {error}"));
        // A cluster tells of its objects in no order.
        objects.reverse();
        let cluster = take(objects);
        let verdicts = cluster.report.objects.iter();
        let refused: Vec<_> = verdicts.filter(|(_, verdict)| !verdict.accepted).collect();
        assert!(refused.is_empty(), "{name}: {refused:?}");
        assert_eq!(folder.digest, cluster.snapshot.digest, "{name}");
        let (folder, cluster) = (said(folder), said(cluster.snapshot));
        let differs = folder.lines().zip(cluster.lines()).find(|(a, b)| a != b);
        assert_eq!(differs, None, "{name}");
        assert_eq!(folder.len(), cluster.len(), "{name}");
    }
    let kinds = Kind::ALL.iter().map(|kind| kind.as_str());
    let missing: BTreeSet<&str> = kinds.filter(|kind| !seen.contains(*kind)).collect();
    assert_eq!(missing, BTreeSet::from(WITHOUT_EXAMPLE));
}
