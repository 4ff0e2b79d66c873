//! The objects of a conformance test as a cluster has them, and what is said about them in few words.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use data_encoding::BASE64;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use snapshot::status::{Condition, ListenerStatus, ParentRef, Report};
use snapshot::{Kind, SourceFile, Taken, take};

/// Kinds that are taken; the suite has others, such as `Deployment`.
fn is_known(kind: &str) -> bool {
    Kind::ALL.iter().any(|known| known.as_str() == kind)
}

fn vector(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/vectors/gateway-api")
        .join(format!("{name}.yaml"));
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.replace("{GATEWAY_CLASS_NAME}", "cardinal")
}

/// The value behind a key at the beginning of a line; enough for these files.
fn value<'a>(document: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = document.lines();
    lines.find_map(|line| Some(line.strip_prefix(key)?.trim().trim_matches('"')))
}

/// Objects by their path. A later one replaces an earlier one of the same name.
pub(super) struct World(BTreeMap<String, String>);

impl World {
    /// What the suite sets up for all tests, in a cluster with addresses to give.
    pub(super) fn new() -> Self {
        let mut world = Self(BTreeMap::new());
        world.add(
            "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata:
  name: cardinal
spec: { controllerName: cardinal.dev/gateway-controller }
---
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata:
  name: platform
spec: { gateways: { addressPools: [198.19.0.0/19] } }
",
        );
        world.add(&vector("base"));
        let infra = "gateway-conformance-infra";
        for (namespace, name, hosts) in [
            (
                "gateway-conformance-web-backend",
                "certificate",
                &["example.org"][..],
            ),
            (infra, "tls-validity-checks-certificate", &["*.org"]),
            (infra, "tls-checks-certificate", &["abc.example.com"]),
            (
                infra,
                "tls-passthrough-checks-certificate",
                &["abc.example.com"],
            ),
            (
                infra,
                "tls-terminate-checks-certificate",
                &["tls.example.com"],
            ),
        ] {
            world.add(&secret(namespace, name, hosts));
        }
        for name in [
            "tls-validity-checks-ca-certificate",
            "tls-validity-checks-per-port-ca-certificate",
            "tls-checks-ca-certificate",
            "mismatch-ca-certificate",
        ] {
            world.add(&authority(infra, name));
        }
        world
    }

    /// With the objects of a test.
    pub(super) fn with(mut self, test: &str) -> Self {
        self.add(&vector(test));
        self
    }

    pub(super) fn add(&mut self, documents: &str) {
        for document in format!("\n{documents}").split("\n---") {
            let (Some(kind), Some(name)) = (value(document, "kind:"), value(document, "  name:"))
            else {
                continue;
            };
            if is_known(kind) {
                let namespace = value(document, "  namespace:").unwrap_or("default");
                let path = format!("{kind}/{namespace}/{name}");
                self.0.insert(path, document.to_owned());
            }
        }
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.0.remove(path).expect("there is such an object");
    }

    pub(super) fn replace(&mut self, from: &str, to: &str) {
        for document in self.0.values_mut() {
            *document = document.replace(from, to);
        }
    }

    pub(super) fn files(&self) -> Vec<SourceFile> {
        let objects = self.0.iter().map(|(path, document)| SourceFile {
            path: path.clone(),
            bytes: document.clone().into_bytes(),
        });
        objects.collect()
    }

    pub(super) fn take(&self) -> Taken {
        take(self.files())
    }
}

fn secret(namespace: &str, name: &str, hosts: &[&str]) -> String {
    let key = KeyPair::generate().expect("a key");
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let params = CertificateParams::new(hosts).expect("names");
    let certificate = params.self_signed(&key).expect("a certificate");
    format!(
        "apiVersion: v1
kind: Secret
metadata:
  name: {name}
  namespace: {namespace}
type: kubernetes.io/tls
data: {{ tls.crt: {}, tls.key: {} }}
",
        BASE64.encode(certificate.pem().as_bytes()),
        BASE64.encode(key.serialize_pem().as_bytes())
    )
}

fn authority(namespace: &str, name: &str) -> String {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a certificate");
    let pem: String = certificate
        .pem()
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata:
  name: {name}
  namespace: {namespace}
data:
  ca.crt: |
{pem}"
    )
}

/// A report, a line for everything that has a status. Names have no namespace.
pub(super) fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, status) in &report.classes {
        lines.push(format!("class {name}{}", conditions(&status.conditions)));
    }
    for (name, status) in &report.gateways {
        let name = name.name();
        lines.push(format!("gateway {name}{}", conditions(&status.conditions)));
        lines.push(format!("sets {name} {}", status.attached_listener_sets));
        lines.push(format!("addresses {name} {}", status.addresses.len()));
        let listeners = status.listeners.iter();
        lines.extend(listeners.map(|one| listener(&format!("{name}/{}", one.name), one)));
    }
    for (name, status) in &report.listener_sets {
        let name = name.name();
        lines.push(format!("set {name}{}", conditions(&status.conditions)));
        let listeners = status.listeners.iter();
        lines.extend(listeners.map(|one| listener(&format!("{name}/{}", one.name), one)));
    }
    for ((kind, name), status) in &report.routes {
        for one in &*status.parents {
            let parent = parent(&one.parent);
            lines.push(format!(
                "route {kind} {} -> {parent}{}",
                name.name(),
                conditions(&one.conditions)
            ));
        }
    }
    for ((kind, name), status) in &report.policies {
        for one in &status.ancestors {
            let ancestor = parent(&one.ancestor);
            lines.push(format!(
                "policy {kind} {} -> {ancestor}{}",
                name.name(),
                conditions(&one.conditions)
            ));
        }
    }
    lines
}

fn listener(name: &str, status: &ListenerStatus) -> String {
    let kinds: Vec<&str> = status
        .supported_kinds
        .iter()
        .map(|one| one.as_str())
        .collect();
    format!(
        "listener {name} {} [{}]{}",
        status.attached_routes,
        kinds.join(","),
        conditions(&status.conditions)
    )
}

fn parent(parent: &ParentRef) -> String {
    let mut text = parent.name.to_string();
    if let Some(section) = &parent.section {
        write!(text, "/{section}").expect("a string takes everything");
    }
    if let Some(port) = parent.port {
        write!(text, ":{port}").expect("a string takes everything");
    }
    text
}

fn conditions(conditions: &[Condition]) -> String {
    let one = |one: &Condition| {
        let sign = if one.holds { '+' } else { '-' };
        format!(" {sign}{}={}", one.kind, one.reason)
    };
    conditions.iter().map(one).collect()
}
