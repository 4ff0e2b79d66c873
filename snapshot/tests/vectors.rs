//! Every group of the test vectors is judged by some test, or is named here with the reason why it is not.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

/// Where a group is judged.
enum Place {
    /// In these files.
    Tests(&'static [&'static str]),
    /// Nowhere, for this reason.
    Unmet(&'static str),
}

use Place::{Tests, Unmet};

const NAMES: &str = "snapshot/src/derive/tests/names.rs";
const ROUTES: &str = "snapshot/src/derive/tests/routes.rs";
const PACKETS: &str = "agent/src/compile/kernel/tests/vectors.rs";
const ROUTER: &str = "agent/tests/proxy_router/choreo.rs";
const OBJECTS: &str = "agent/tests/proxy_router/choreo/original.rs";
const CELLS: &str = "agent/tests/proxy_router/cells.rs";
const AGENT: &str = "agent/tests/proxy_cli/routing_files.rs";
const BREAKER: &str = "agent/src/resilience/breaker/tests.rs";
const NO_ADAPTER: &str = "the push protocol of the reference router has no adapter in the agent";

const OPENCHOREO: [(&str, Place); 19] = [
    ("k8s_name", Tests(&[NAMES])),
    ("cell_namespace", Tests(&[NAMES])),
    ("cell_network_policy", Tests(&[PACKETS])),
    ("cell_deployment", Tests(&[NAMES])),
    ("cell_service", Tests(&[NAMES])),
    ("unique_ports", Tests(&[NAMES])),
    (
        "endpoint_cr_labels",
        Unmet("Endpoint objects of OpenChoreo's control plane are neither read nor written"),
    ),
    ("endpoint_address", Tests(&[NAMES])),
    ("visibility", Tests(&[ROUTES])),
    ("regex", Tests(&[ROUTES])),
    ("http_routes", Tests(&[ROUTES, ROUTER])),
    ("http_route_filters", Tests(&[ROUTES, OBJECTS])),
    ("security_policies", Tests(&[ROUTES, OBJECTS])),
    ("request", Tests(&[ROUTER])),
    ("authorize", Tests(&[ROUTER])),
    ("l4_allowed", Tests(&[PACKETS])),
    ("service_binding_routes", Tests(&[ROUTES])),
    ("head_component_policy", Tests(&[PACKETS])),
    ("head_component_policy_name", Tests(&[NAMES])),
];

const CELL_ROUTING: [(&str, Place); 15] = [
    ("router_decision", Tests(&[CELLS])),
    ("smoke", Tests(&[CELLS])),
    ("http", Tests(&[CELLS])),
    ("forwarding", Tests(&[CELLS])),
    ("health_status", Tests(&[CELLS])),
    ("upstream_failures", Tests(&[CELLS])),
    ("m4", Tests(&[CELLS])),
    ("circuit_breaker", Tests(&[CELLS, BREAKER])),
    ("limits", Tests(&["agent/src/route/admission/tests.rs"])),
    (
        "config_validation",
        Tests(&["snapshot/tests/routing_vectors.rs"]),
    ),
    ("loader", Tests(&[AGENT, CELLS])),
    ("debug_endpoint", Tests(&[AGENT])),
    ("protocol", Unmet(NO_ADAPTER)),
    ("data_plane_client", Unmet(NO_ADAPTER)),
    (
        "control_plane_server",
        Unmet("the agent has no control plane"),
    ),
];

fn accounted(file: &str, places: &[(&str, Place)]) {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path: &str| {
        fs::read_to_string(tree.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let vectors: Value = serde_json::from_str(&read(&format!("tests/vectors/{file}"))).expect(file);
    let counts: BTreeMap<&str, u64> = vectors["counts"]
        .as_object()
        .expect("counts")
        .iter()
        .filter(|(group, _)| *group != "rows" && *group != "by_class")
        .map(|(group, count)| (group.as_str(), count.as_u64().expect("a number")))
        .collect();
    let mut placed: Vec<&str> = places.iter().map(|(group, _)| *group).collect();
    placed.sort_unstable();
    assert_eq!(placed, counts.keys().copied().collect::<Vec<_>>(), "{file}");
    assert_eq!(
        Some(counts.values().sum()),
        vectors["counts"]["rows"].as_u64()
    );
    for (group, place) in places {
        let rows = vectors[group].as_array().map(Vec::len);
        assert_eq!(rows, usize::try_from(counts[group]).ok(), "{group}");
        match place {
            Tests(paths) => {
                for path in *paths {
                    let named = read(path).contains(&format!("\"{group}\""));
                    assert!(named, "{path} does not load {group}");
                }
            }
            Unmet(reason) => assert!(!reason.is_empty(), "{group}"),
        }
    }
}

#[test]
fn every_group_of_the_vectors_has_its_place() {
    accounted("openchoreo.json", &OPENCHOREO);
    accounted("cell-routing.json", &CELL_ROUTING);
}
