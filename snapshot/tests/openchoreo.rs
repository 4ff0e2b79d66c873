//! Cells by OpenChoreo's labels: of a folder and of a cluster's objects, alone and with a document that turns egress control on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use snapshot::model::{Border, Cell, ComponentKind, Gate, Workloads};
use snapshot::{Kind, Snapshot, SourceFile, Taken, parse, take};

const GENERATIONS: [&str; 2] = ["first", "release-1.2"];

fn policies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/openchoreo")
}

fn files(folder: &Path) -> Vec<SourceFile> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(file(&path));
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn file(path: &Path) -> SourceFile {
    SourceFile {
        path: path.display().to_string(),
        bytes: fs::read(path).expect("it can be read"),
    }
}

fn egress(generation: &str) -> SourceFile {
    file(&policies().join("egress").join(format!("{generation}.yaml")))
}

fn taken(files: &[SourceFile]) -> Snapshot {
    parse(files).unwrap_or_else(|rejections| panic!("{rejections}"))
}

/// The objects of a cluster: one a document.
fn objects(files: &[SourceFile]) -> Vec<SourceFile> {
    let mut objects = Vec::new();
    for file in files {
        let text = std::str::from_utf8(&file.bytes).expect("it is text");
        for document in text.split("---\n") {
            objects.push(SourceFile {
                path: format!("object-{}", objects.len()),
                bytes: document.as_bytes().to_vec(),
            });
        }
    }
    objects
}

fn border(border: Border) -> &'static str {
    match border {
        Border::Open => "open",
        Border::Declared => "declared",
    }
}

/// What a snapshot says of its cells, apart from where that is written.
fn told(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for cell in snapshot.cells.values() {
        lines.push(format!(
            "{} ingress {} egress {} east {} south {}",
            cell.id,
            border(cell.borders.ingress),
            border(cell.borders.egress),
            cell.east.len(),
            cell.south.len(),
        ));
        lines.extend(cell.components.values().map(|component| {
            let addresses = component.workloads.addresses().iter();
            let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
            let endpoints = component.endpoints.values();
            let endpoints: Vec<String> = endpoints
                .map(|one| format!("{}:{}", one.id.endpoint, one.port))
                .collect();
            let kind = match component.kind {
                ComponentKind::Service => "service",
                ComponentKind::WebApplication => "web",
                ComponentKind::Task => "task",
            };
            format!(
                "  {} {kind} [{}] [{}]",
                component.id.component,
                addresses.join(" "),
                endpoints.join(" ")
            )
        }));
    }
    lines
}

fn warnings(snapshot: &Snapshot) -> Vec<String> {
    snapshot.warnings.iter().map(ToString::to_string).collect()
}

/// What labels of either generation make of the same two projects.
fn expected(generation: &str, controlled: bool) -> Vec<String> {
    let (web, ledger, list) = match generation {
        "first" => (
            "web",
            "ep-8080-tcp:8080",
            ("ep-8080-tcp:8080", "ep-3000-tcp:3000"),
        ),
        _ => (
            "service",
            "entries:8080 feed:9090",
            ("api:8080", "site:3000"),
        ),
    };
    let library = match controlled {
        true => "egress declared east 1 south 2",
        false => "egress open east 0 south 0",
    };
    vec![
        "acme/audit/dev ingress open egress open east 0 south 0".to_owned(),
        format!("  ledger service [10.10.2.7 fd00:10:2::7] [{ledger}]"),
        format!("acme/library/dev ingress open {library}"),
        format!(
            "  reading-list service [10.10.1.5 fd00:10:1::5] [{}]",
            list.0
        ),
        format!("  web {web} [10.10.1.6 fd00:10:1::6] [{}]", list.1),
    ]
}

#[test]
fn labels_make_cells_that_are_open_and_one_document_controls_the_egress_of_one() {
    for generation in GENERATIONS {
        let mut documents = files(&policies().join(generation));
        let snapshot = taken(&documents);
        assert_eq!(told(&snapshot), expected(generation, false), "{generation}");
        assert_eq!(warnings(&snapshot), Vec::<String>::new(), "{generation}");
        documents.push(egress(generation));
        let snapshot = taken(&documents);
        assert_eq!(told(&snapshot), expected(generation, true), "{generation}");
        assert_eq!(warnings(&snapshot), Vec::<String>::new(), "{generation}");
    }
}

#[test]
fn a_folder_and_a_cluster_say_the_same() {
    for generation in GENERATIONS {
        let mut documents = files(&policies().join(generation));
        documents.push(egress(generation));
        let folder = taken(&documents);
        let cluster = take(objects(&documents));
        assert_eq!(told(&folder), told(&cluster.snapshot), "{generation}");
        assert_eq!(folder.routes.len(), cluster.snapshot.routes.len());
        assert_eq!(folder.digest, cluster.snapshot.digest, "{generation}");
    }
}

#[test]
fn policies_of_the_control_plane_isolate_every_pod_and_know_the_gates() {
    for (generation, egress) in [("first", true), ("release-1.2", false)] {
        let snapshot = taken(&files(&policies().join(generation)));
        let network = &snapshot.network;
        let isolated: Vec<(String, bool, bool)> = network
            .members
            .iter()
            .map(|(address, class)| {
                let class = &network.classes.of[class];
                let (ingress, egress) = (class.ingress.is_some(), class.egress.is_some());
                (address.to_string(), ingress, egress)
            })
            .collect();
        let pods = [
            "10.10.1.5",
            "10.10.1.6",
            "10.10.2.7",
            "fd00:10:1::5",
            "fd00:10:1::6",
            "fd00:10:2::7",
        ];
        let expected = pods.map(|address| (address.to_owned(), true, egress));
        assert_eq!(isolated, expected, "{generation}");
        let gates: Vec<Gate> = network.classes.gates.keys().copied().collect();
        assert_eq!(gates, [Gate::External, Gate::Internal], "{generation}");
    }
}

const PLATFORM: &str = "
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec: { cells: { derivedFrom: OpenChoreo } }
";

const SHOP: &str = "openchoreo.dev/namespace: acme, openchoreo.dev/project: shop, openchoreo.dev/environment: prod";

fn namespace(name: &str, labels: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Namespace
metadata: {{ name: {name}, labels: {{ {labels} }} }}
"
    )
}

fn pod(namespace: &str, name: &str, labels: &str, address: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: {namespace}, labels: {{ {labels} }} }}
spec: {{ nodeName: node-1 }}
status: {{ phase: Running, podIPs: [{{ ip: {address} }}] }}
"
    )
}

fn cell(namespace: &str, rest: &str) -> String {
    format!(
        "
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: {{ name: shop, namespace: {namespace} }}
spec:
  organization: acme
  project: shop
  environment: prod
{rest}
"
    )
}

fn sources(texts: &[String]) -> Vec<SourceFile> {
    let numbered = texts.iter().enumerate();
    numbered
        .map(|(at, text)| SourceFile {
            path: format!("{at}.yaml"),
            bytes: text.as_bytes().to_vec(),
        })
        .collect()
}

fn from_cluster(texts: &[String]) -> Taken {
    let mut all = vec![PLATFORM.to_owned()];
    all.extend_from_slice(texts);
    take(sources(&all))
}

/// The components of the only cell.
fn components(snapshot: &Snapshot) -> BTreeMap<String, Vec<String>> {
    let cell: Vec<&Cell> = snapshot.cells.values().map(|cell| &**cell).collect();
    assert_eq!(cell.len(), 1, "{:?}", told(snapshot));
    let components = cell[0].components.values();
    components
        .map(|one| {
            let addresses = one.workloads.addresses().iter();
            let addresses = addresses.map(ToString::to_string).collect();
            (one.id.component.to_string(), addresses)
        })
        .collect()
}

#[test]
fn what_labels_of_a_namespace_name() {
    let first = "organization-name: acme, project-name: shop, environment-name: prod";
    // Labels, the cell, the beginning of a warning.
    for (labels, cell, warning) in [
        (SHOP.to_owned(), Some("acme/shop/prod"), None),
        (
            format!("{first}, managed-by: choreo-deployment-controller"),
            Some("acme/shop/prod"),
            None,
        ),
        // Without a domain they may be anybody's.
        (first.to_owned(), None, None),
        (format!("{first}, managed-by: Helm"), None, None),
        // Those of a namespace of the control plane.
        ("openchoreo.dev/namespace: acme".to_owned(), None, None),
        (
            "openchoreo.dev/project: shop, openchoreo.dev/environment: prod".to_owned(),
            None,
            Some("without `openchoreo.dev/namespace`"),
        ),
        (
            "managed-by: choreo-deployment-controller, project-name: shop".to_owned(),
            None,
            Some("without `organization-name`"),
        ),
        (
            SHOP.replace("prod", "Prod_1"),
            None,
            Some("`openchoreo.dev/environment` names no cell"),
        ),
        // Those of the release go before.
        (
            format!("{SHOP}, organization-name: other, managed-by: choreo-deployment-controller"),
            Some("acme/shop/prod"),
            None,
        ),
        (String::new(), None, None),
    ] {
        let taken = from_cluster(&[
            namespace("dp", &labels),
            pod("dp", "a", "openchoreo.dev/component: orders", "10.1.0.1"),
        ]);
        let cells: Vec<String> = taken
            .snapshot
            .cells
            .keys()
            .map(ToString::to_string)
            .collect();
        assert_eq!(cells.first().map(String::as_str), cell, "{labels}");
        let warned = taken
            .snapshot
            .warnings
            .first()
            .map(|one| one.message.to_string());
        match warning {
            None => assert_eq!(warned, None, "{labels}"),
            Some(start) => assert!(
                warned
                    .as_deref()
                    .is_some_and(|text| text.starts_with(start)),
                "{labels}: {warned:?}"
            ),
        }
    }
}

#[test]
fn what_labels_of_a_pod_name() {
    for (labels, component) in [
        ("openchoreo.dev/component: orders", "orders"),
        ("component-name: orders, component-type: Service", "orders"),
        // Nothing in the namespace is beside its rules.
        ("app: orders", "other-pods"),
        ("component-name: Orders_2", "other-pods"),
    ] {
        let taken = from_cluster(&[namespace("dp", SHOP), pod("dp", "a", labels, "10.1.0.1")]);
        let found = components(&taken.snapshot);
        let only = [(component.to_owned(), vec!["10.1.0.1".to_owned()])].into();
        assert_eq!(found, only, "{labels}");
    }
    let taken = from_cluster(&[
        namespace("dp", SHOP),
        pod(
            "dp",
            "a",
            "component-name: nightly, component-type: ScheduledTask",
            "10.1.0.1",
        ),
    ]);
    let cell = taken.snapshot.cells.values().next().expect("it is there");
    let kinds: Vec<ComponentKind> = cell.components.values().map(|one| one.kind).collect();
    assert_eq!(kinds, [ComponentKind::Task]);
    // Without the word of the platform, labels say nothing.
    let documents = [
        namespace("dp", SHOP),
        pod("dp", "a", "component-name: orders", "10.1.0.1"),
    ];
    assert!(take(sources(&documents)).snapshot.cells.is_empty());
}

#[test]
fn a_document_controls_egress_without_the_word_of_the_platform() {
    let documents = [
        cell(
            "dp",
            "  egress: { south: [{ name: db, from: [orders, absent], cidrs: [203.0.113.0/24], port: 5432, protocol: TCP }] }",
        ),
        pod("dp", "a", "openchoreo.dev/component: orders", "10.1.0.1"),
        pod("dp", "b", "app: debug", "10.1.0.2"),
        pod(
            "elsewhere",
            "c",
            "openchoreo.dev/component: orders",
            "10.1.0.3",
        ),
    ];
    let snapshot = taken(&sources(&documents));
    assert_eq!(
        told(&snapshot),
        [
            "acme/shop/prod ingress open egress declared east 0 south 1",
            "  orders service [10.1.0.1] []",
            "  other-pods service [10.1.0.2] []",
        ]
    );
    let warned = warnings(&snapshot);
    assert!(
        warned.len() == 1 && warned[0].contains("grants `absent` nothing"),
        "{warned:?}"
    );
}

#[test]
fn components_of_a_document_are_all_that_its_cell_has() {
    let component =
        "  components: [{ name: api, workloads: { selector: { matchLabels: { app: api } } } }]";
    let taken = from_cluster(&[
        namespace("dp", SHOP),
        cell("dp", component),
        pod(
            "dp",
            "a",
            "app: api, openchoreo.dev/component: orders",
            "10.1.0.1",
        ),
        pod("dp", "b", "openchoreo.dev/component: orders", "10.1.0.2"),
    ]);
    let only = [("api".to_owned(), vec!["10.1.0.1".to_owned()])].into();
    assert_eq!(components(&taken.snapshot), only);
    let cell = taken.snapshot.cells.values().next().expect("it is there");
    assert_eq!(cell.borders, Default::default());
}

#[test]
fn a_document_of_another_namespace_speaks_for_no_labels() {
    let taken = from_cluster(&[
        namespace("dp", SHOP),
        cell(
            "aaa",
            "  egress: { south: [{ name: all, cidrs: [0.0.0.0/0], port: 443, protocol: TCP }] }",
        ),
        pod("dp", "a", "openchoreo.dev/component: orders", "10.1.0.1"),
    ]);
    let (_, verdict) = taken
        .report
        .objects
        .iter()
        .find(|(key, _)| key.kind == Kind::Cell)
        .expect("it was read");
    let message = &verdict.mistakes[0].message;
    assert!(message.contains("is namespace `dp`"), "{message}");
    assert_eq!(
        told(&taken.snapshot),
        [
            "acme/shop/prod ingress open egress open east 0 south 0",
            "  orders service [10.1.0.1] []"
        ]
    );
}

#[test]
fn a_document_speaks_for_no_organization_but_that_of_its_namespace() {
    let component =
        "  components: [{ name: api, workloads: { selector: { matchLabels: { app: api } } } }]";
    for (organization, project, accepted) in [
        ("other", "shop", false),
        ("other", "new", false),
        ("acme", "new", true),
    ] {
        let labels = SHOP.replace("acme", organization).replace("shop", "mine");
        let taken = from_cluster(&[
            namespace("mine", &labels),
            cell("mine", component).replace("project: shop", &format!("project: {project}")),
            pod("mine", "a", "app: api", "10.1.0.1"),
        ]);
        let mut objects = taken.report.objects.iter();
        let found = objects.find(|(key, _)| key.kind == Kind::Cell);
        let (_, verdict) = found.expect("it was read");
        assert_eq!(verdict.accepted, accepted, "{organization} {project}");
        let mut cells = taken.snapshot.cells.keys();
        let found = cells.any(|id| id.organization.as_str() == "acme");
        assert_eq!(found, accepted, "{organization} {project}");
    }
}

#[test]
fn a_document_that_cannot_be_read_closes_what_it_would_have_closed() {
    let taken = from_cluster(&[
        namespace("dp", SHOP),
        cell(
            "dp",
            "  egress: { south: [{ name: db, cidrs: [203.0.113.0/33], port: 5432, protocol: TCP }] }",
        ),
        pod("dp", "a", "openchoreo.dev/component: orders", "10.1.0.1"),
    ]);
    assert_eq!(
        told(&taken.snapshot),
        [
            "acme/shop/prod ingress open egress declared east 0 south 0",
            "  orders service [10.1.0.1] []"
        ]
    );
}

#[test]
fn workloads_of_labels_name_the_label() {
    let taken = from_cluster(&[
        namespace("dp", SHOP),
        pod("dp", "a", "component-name: orders", "10.1.0.1"),
    ]);
    let cell = taken.snapshot.cells.values().next().expect("it is there");
    let component = cell.components.values().next().expect("it has one");
    let Workloads::Selector {
        namespace,
        match_labels,
        ..
    } = &component.workloads
    else {
        panic!("{:?}", component.workloads);
    };
    assert_eq!(namespace, "dp");
    assert_eq!(
        match_labels.iter().next(),
        Some((&"component-name".to_owned(), &"orders".to_owned()))
    );
}

#[test]
fn documents_of_the_two_machines_are_taken() {
    let folder = policies().join("../../vagrant/cluster");
    let mut objects = Vec::new();
    for name in ["platform.yaml", "workloads.yaml", "egress.yaml"] {
        let text = fs::read_to_string(folder.join(name)).expect("it can be read");
        let text = text
            .replace("DNS_POD", "10.42.0.3")
            .replace("DNS_SERVICE", "10.43.0.10");
        objects.extend(text.split("---\n").map(str::to_owned));
    }
    let taken = take(sources(&objects));
    let mistakes: Vec<String> = taken
        .report
        .objects
        .values()
        .flat_map(|verdict| &verdict.mistakes)
        .map(ToString::to_string)
        .collect();
    assert_eq!(mistakes, Vec::<String>::new());
    let cells: Vec<String> = taken
        .snapshot
        .cells
        .keys()
        .map(ToString::to_string)
        .collect();
    assert_eq!(cells, ["acme/bank/prod", "acme/shop/prod"]);
}
