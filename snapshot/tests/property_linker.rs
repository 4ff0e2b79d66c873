//! What is remembered from one link to the next is not to be seen in what comes out.

use std::sync::Arc;

use proptest::prelude::*;
use snapshot::{Linker, Read, SourceFile, Taken, link, read};

/// Objects, each with what it may be; besides it may be absent.
const OBJECTS: [(&str, &[&str]); 30] = [
    (
        "GatewayClass/cardinal",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":"cardinal"},"spec":{"controllerName":"cardinal.dev/gateway-controller"}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GatewayClass","metadata":{"name":"cardinal"},"spec":{"controllerName":"example.com/other"}}"#,
        ],
    ),
    (
        "Gateway/shop/web",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"web","namespace":"shop"},"spec":{"gatewayClassName":"cardinal","addresses":[{"value":"10.0.0.1"}],"listeners":[{"name":"http","port":80,"protocol":"HTTP"}]}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"web","namespace":"shop"},"spec":{"gatewayClassName":"cardinal","addresses":[{"value":"10.0.0.1"}],"listeners":[{"name":"http","port":80,"protocol":"HTTP","hostname":"*.example.org","allowedRoutes":{"namespaces":{"from":"Selector","selector":{"matchLabels":{"a":"b"}}}}},{"name":"other","port":81,"protocol":"HTTP"}]}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"web","namespace":"shop"},"spec":{"gatewayClassName":"cardinal","addresses":[{"value":"10.0.0.1"}],"listeners":[{"name":"http","port":0,"protocol":"HTTP"}]}}"#,
        ],
    ),
    (
        "HTTPRoute/shop/a",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"a","namespace":"shop","generation":1},"spec":{"parentRefs":[{"name":"web"}],"hostnames":["a.example.org"],"rules":[{"name":"one","backendRefs":[{"name":"s1","port":80}]}]}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"a","namespace":"shop","generation":2},"spec":{"parentRefs":[{"name":"web","sectionName":"other"}],"rules":[{"filters":[{"type":"RequestMirror","requestMirror":{"backendRef":{"name":"s2","port":80}}}],"backendRefs":[{"name":"s1","port":80,"weight":3},{"group":"gateway.envoyproxy.io","kind":"Backend","name":"app"}]}]}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"a","namespace":"shop","generation":3},"spec":{"parentRefs":[{"name":"web"}],"rules":[{"matches":[{"path":{"type":"Exact","value":"no"}}]}]}}"#,
        ],
    ),
    (
        "HTTPRoute/shop/b",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"b","namespace":"shop","creationTimestamp":"2026-01-02T00:00:00Z"},"spec":{"parentRefs":[{"name":"web"},{"name":"web","port":81}],"hostnames":["b.example.org","g.example.org"],"rules":[{"filters":[{"type":"ExtensionRef","extensionRef":{"group":"gateway.envoyproxy.io","kind":"HTTPRouteFilter","name":"f"}}],"backendRefs":[{"name":"s2","port":80}]}]}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"b","namespace":"shop"},"spec":{"parentRefs":[{"name":"web"}],"rules":[{"backendRefs":[{"name":"s3","namespace":"store","port":80}]}]}}"#,
        ],
    ),
    (
        "HTTPRoute/store/c",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"c","namespace":"store"},"spec":{"parentRefs":[{"name":"web","namespace":"shop"}],"hostnames":["c.example.org"],"rules":[{"backendRefs":[{"group":"cardinal.dev","kind":"RoutingTable","name":"t"},{"name":"s3","port":80}]}]}}"#,
        ],
    ),
    (
        "GRPCRoute/shop/g",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GRPCRoute","metadata":{"name":"g","namespace":"shop","creationTimestamp":"2026-01-01T00:00:00Z"},"spec":{"parentRefs":[{"name":"web"}],"hostnames":["g.example.org"],"rules":[{"backendRefs":[{"name":"s1","port":80}]}]}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"GRPCRoute","metadata":{"name":"g","namespace":"shop"},"spec":{"parentRefs":[{"name":"web"}],"rules":[{"backendRefs":[{"name":"s2","port":80}]}]}}"#,
        ],
    ),
    (
        "Service/shop/s1",
        &[
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s1","namespace":"shop"},"spec":{"clusterIP":"10.96.0.1","ports":[{"name":"http","port":80,"protocol":"TCP"}]}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s1","namespace":"shop"},"spec":{"ports":[{"name":"web","port":80,"protocol":"TCP","appProtocol":"kubernetes.io/h2c"}]}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s1","namespace":"shop"},"spec":{"type":"ExternalName","externalName":"example.net"}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s1","namespace":"shop"},"spec":{"ports":[{"port":"none"}]}}"#,
        ],
    ),
    (
        "Service/shop/s2",
        &[
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s2","namespace":"shop"},"spec":{"ports":[{"name":"http","port":80,"protocol":"TCP"}]}}"#,
        ],
    ),
    (
        "Service/store/s3",
        &[
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"s3","namespace":"store"},"spec":{"ports":[{"name":"http","port":80,"protocol":"TCP"}]}}"#,
        ],
    ),
    (
        "EndpointSlice/shop/e1",
        &[
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"e1","namespace":"shop","labels":{"kubernetes.io/service-name":"s1"}},"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"}],"endpoints":[{"addresses":["10.1.0.1"],"conditions":{"ready":true}}]}"#,
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"e1","namespace":"shop","labels":{"kubernetes.io/service-name":"s1"}},"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"}],"endpoints":[{"addresses":["10.1.0.1"],"conditions":{"ready":true},"hints":{"forZones":[{"name":"east"}]}}]}"#,
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"e1","namespace":"shop","labels":{"kubernetes.io/service-name":"s2"}},"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"}],"endpoints":[{"addresses":["10.1.0.2"],"conditions":{"ready":true}}]}"#,
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"e1","namespace":"shop","labels":{"kubernetes.io/service-name":"s1"}},"addressType":"IPv4","ports":[{"name":"http","port":8080,"protocol":"TCP"}],"endpoints":[{"addresses":["none"]}]}"#,
        ],
    ),
    (
        "EndpointSlice/shop/e2",
        &[
            r#"{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"e2","namespace":"shop","labels":{"kubernetes.io/service-name":"s1"}},"addressType":"IPv4","ports":[{"name":"http","port":8081,"protocol":"TCP"}],"endpoints":[{"addresses":["10.1.0.3"],"conditions":{"ready":false,"serving":true,"terminating":true}}]}"#,
        ],
    ),
    (
        "Backend/shop/app",
        &[
            r#"{"apiVersion":"gateway.envoyproxy.io/v1alpha1","kind":"Backend","metadata":{"name":"app","namespace":"shop"},"spec":{"endpoints":[{"ip":{"address":"10.1.0.9","port":8080}}]}}"#,
            r#"{"apiVersion":"gateway.envoyproxy.io/v1alpha1","kind":"Backend","metadata":{"name":"app","namespace":"shop"},"spec":{"endpoints":[{"unix":{"path":"/run/app"}}]}}"#,
        ],
    ),
    (
        "HTTPRouteFilter/shop/f",
        &[
            r#"{"apiVersion":"gateway.envoyproxy.io/v1alpha1","kind":"HTTPRouteFilter","metadata":{"name":"f","namespace":"shop"},"spec":{"directResponse":{"statusCode":418}}}"#,
            r#"{"apiVersion":"gateway.envoyproxy.io/v1alpha1","kind":"HTTPRouteFilter","metadata":{"name":"f","namespace":"shop"},"spec":{"none":1}}"#,
        ],
    ),
    (
        "BackendTLSPolicy/shop/p",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"BackendTLSPolicy","metadata":{"name":"p","namespace":"shop"},"spec":{"targetRefs":[{"group":"","kind":"Service","name":"s1"}],"validation":{"hostname":"s1.example.org","wellKnownCACertificates":"System"}}}"#,
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"BackendTLSPolicy","metadata":{"name":"p","namespace":"shop"},"spec":{"targetRefs":[{"group":"","kind":"Service","name":"s1","sectionName":"web"}],"validation":{}}}"#,
        ],
    ),
    (
        "SecurityPolicy/shop/x",
        &[
            r#"{"apiVersion":"gateway.envoyproxy.io/v1alpha1","kind":"SecurityPolicy","metadata":{"name":"x","namespace":"shop"},"spec":{"targetRefs":[{"group":"gateway.networking.k8s.io","kind":"HTTPRoute","name":"a"}],"authorization":{"defaultAction":"Deny"}}}"#,
            r#"{"apiVersion":"gateway.envoyproxy.io/v1alpha1","kind":"SecurityPolicy","metadata":{"name":"x","namespace":"shop"},"spec":{"targetRefs":[{"group":"gateway.networking.k8s.io","kind":"HTTPRoute","name":"b"}],"none":1}}"#,
        ],
    ),
    (
        "BackendTrafficPolicy/shop/y",
        &[
            r#"{"apiVersion":"gateway.envoyproxy.io/v1alpha1","kind":"BackendTrafficPolicy","metadata":{"name":"y","namespace":"shop"},"spec":{"targetRefs":[{"group":"gateway.networking.k8s.io","kind":"Gateway","name":"web"}],"loadBalancer":{"type":"LeastRequest"}}}"#,
        ],
    ),
    (
        "ReferenceGrant/store/r",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1beta1","kind":"ReferenceGrant","metadata":{"name":"r","namespace":"store"},"spec":{"from":[{"group":"gateway.networking.k8s.io","kind":"HTTPRoute","namespace":"shop"}],"to":[{"group":"","kind":"Service"}]}}"#,
        ],
    ),
    (
        "Namespace/shop",
        &[
            r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop","labels":{"a":"b"}}}"#,
        ],
    ),
    (
        "RoutingTable/store/t",
        &[
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"RoutingTable","metadata":{"name":"t","namespace":"store"},"spec":{"none":1}}"#,
        ],
    ),
    (
        "Cell/shop/cell",
        &[
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Cell","metadata":{"name":"cell","namespace":"shop"},"spec":{"organization":"acme","project":"shop","environment":"prod","components":[{"name":"api","workloads":{"addresses":["10.2.0.1"]},"endpoints":[{"name":"http","type":"TCP","port":8080}]}]}}"#,
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Cell","metadata":{"name":"cell","namespace":"shop"},"spec":{"organization":"acme","project":"shop","environment":"prod","components":[{"name":"api","workloads":{"addresses":["10.0.0.1"]},"endpoints":[{"name":"http","type":"TCP","port":8080}]}]}}"#,
        ],
    ),
    (
        "Pod/shop/p",
        &[
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"shop","labels":{"app":"api"}},"spec":{"containers":[{"ports":[{"name":"http","containerPort":8080}]}]},"status":{"phase":"Running","podIPs":[{"ip":"10.2.0.1"}]}}"#,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","namespace":"shop","labels":{"app":"other"}},"status":{"phase":"Running","podIPs":[{"ip":"10.2.0.1"}]}}"#,
        ],
    ),
    (
        "NetworkPolicy/shop/n",
        &[
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"n","namespace":"shop"},"spec":{"podSelector":{"matchLabels":{"app":"api"}},"ingress":[{"from":[{"podSelector":{}}],"ports":[{"port":"http"}]}]}}"#,
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"n","namespace":"shop"},"spec":{"podSelector":{},"policyTypes":["Egress"],"egress":[{"to":[{"namespaceSelector":{"matchLabels":{"a":"b"}}}],"ports":[{"port":1024,"endPort":2048}]}]}}"#,
            r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"n","namespace":"shop"},"spec":{"podSelector":{},"ingress":[{"ports":[{"port":0}]}]}}"#,
        ],
    ),
    (
        "CiliumNetworkPolicy/shop/c",
        &[
            r#"{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"c","namespace":"shop"},"spec":{"endpointSelector":{},"ingress":[{"fromEndpoints":[{"matchLabels":{"gateway.networking.k8s.io/gateway-name":"web"}}]}]}}"#,
            r#"{"apiVersion":"cilium.io/v2","kind":"CiliumNetworkPolicy","metadata":{"name":"c","namespace":"shop"},"spec":{"endpointSelector":{},"egressDeny":[{}]}}"#,
        ],
    ),
    (
        "Platform/platform",
        &[
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Platform","metadata":{"name":"platform"},"spec":{"gateways":{"addresses":"LoadBalancer","loadBalancer":{"namespace":"agents"}}}}"#,
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Platform","metadata":{"name":"platform"},"spec":{"gateways":{"addresses":"Nodes"}}}"#,
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Platform","metadata":{"name":"platform"},"spec":{"gateways":{"addressPools":["10.0.0.0/24"]}}}"#,
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Platform","metadata":{"name":"platform"},"spec":{"networkPolicies":"all","gateways":{"external":{"gatewayRef":{"name":"web","namespace":"shop"}}}}}"#,
        ],
    ),
    (
        "Node/a",
        &[
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","labels":{"topology.kubernetes.io/zone":"east"}},"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}"#,
            r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"a","labels":{"topology.kubernetes.io/zone":"west"}},"status":{"addresses":[]}}"#,
        ],
    ),
    (
        "Gateway/shop/balanced",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":"balanced","namespace":"shop"},"spec":{"gatewayClassName":"cardinal","listeners":[{"name":"http","port":80,"protocol":"HTTP"}]}}"#,
        ],
    ),
    (
        "Service/agents/gateway-shop-balanced-f2a551ae",
        &[
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"gateway-shop-balanced-f2a551ae","namespace":"agents"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.9","ports":[{"name":"tcp-80","port":80,"nodePort":30080}]},"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.7"}]}}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"gateway-shop-balanced-f2a551ae","namespace":"agents"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.9","ports":[{"name":"tcp-80","port":80,"nodePort":30080}]}}"#,
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"gateway-shop-balanced-f2a551ae","namespace":"agents"},"spec":{"type":"LoadBalancer","clusterIP":"10.96.0.9","ports":[{"name":"tcp-80","port":80,"nodePort":30080}]},"status":{"loadBalancer":{"ingress":[{"ip":"10.0.0.1"}]}}}"#,
        ],
    ),
    (
        "HTTPRoute/shop/d",
        &[
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"d","namespace":"shop"},"spec":{"parentRefs":[{"name":"balanced"}],"rules":[{"backendRefs":[{"name":"s2","port":80}]}]}}"#,
        ],
    ),
    (
        "Cell/store/cell",
        &[
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Cell","metadata":{"name":"cell","namespace":"store"},"spec":{"organization":"acme","project":"store","environment":"prod","components":[{"name":"api","workloads":{"addresses":["10.2.0.1","10.2.0.2"]},"serviceAddresses":["10.96.0.1"],"endpoints":[{"name":"http","type":"TCP","port":8080}]}]}}"#,
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Cell","metadata":{"name":"cell","namespace":"store"},"spec":{"organization":"acme","project":"store","environment":"prod","components":[{"name":"api","workloads":{"addresses":["10.1.0.9","10.1.0.1"]},"endpoints":[{"name":"http","type":"TCP","port":8080}]}]}}"#,
            r#"{"apiVersion":"cardinal.dev/v1alpha1","kind":"Cell","metadata":{"name":"cell","namespace":"store"},"spec":{"organization":"acme","project":"store","environment":"prod","components":[{"name":"api","workloads":{"selector":{"matchLabels":{"app":"store"}}},"endpoints":[{"name":"http","type":"TCP","port":8080}]}]}}"#,
        ],
    ),
    (
        "Pod/store/q",
        &[
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q","namespace":"store","labels":{"app":"store"}},"status":{"phase":"Running","podIPs":[{"ip":"10.2.0.9"}]}}"#,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q","namespace":"store","labels":{"app":"store"}},"status":{"phase":"Running","podIPs":[{"ip":"10.1.0.9"}]}}"#,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q","namespace":"store","labels":{"app":"store"}},"status":{"phase":"Running","podIPs":[{"ip":"10.1.0.1"}]}}"#,
        ],
    ),
];

/// Which of what each object may be it is; none: it is absent.
type World = Vec<Option<usize>>;

/// Objects that change together, each with what it becomes.
fn change() -> impl Strategy<Value = Vec<(usize, Option<usize>)>> {
    let one = (0..OBJECTS.len()).prop_flat_map(|object| {
        let forms = 0..OBJECTS[object].1.len();
        (Just(object), prop::option::weighted(0.8, forms))
    });
    prop::collection::vec(one, 1..4)
}

fn all_of_first() -> World {
    vec![Some(0); OBJECTS.len()]
}

struct Cluster {
    world: World,
    reads: Vec<Option<Arc<Read>>>,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            world: vec![None; OBJECTS.len()],
            reads: vec![None; OBJECTS.len()],
        };
        for (object, form) in all_of_first().into_iter().enumerate() {
            cluster.change(object, form);
        }
        cluster
    }

    fn change(&mut self, object: usize, form: Option<usize>) {
        if self.world[object] == form {
            return;
        }
        self.world[object] = form;
        let (path, forms) = OBJECTS[object];
        self.reads[object] = form.map(|form| {
            Arc::new(read(&SourceFile {
                path: path.to_owned(),
                bytes: forms[form].as_bytes().to_vec(),
            }))
        });
    }

    fn reads(&self) -> Vec<Arc<Read>> {
        self.reads.iter().flatten().cloned().collect()
    }
}

fn shown(taken: &Taken) -> String {
    format!("{:#?}\n{:#?}", taken.snapshot, taken.report)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn property_links_that_remember_are_as_those_that_do_not(changes in prop::collection::vec(change(), 1..12)) {
        let mut cluster = Cluster::new();
        let mut linker = Linker::default();
        linker.link(&cluster.reads());
        for change in changes {
            for (object, form) in change {
                cluster.change(object, form);
            }
            let reads = cluster.reads();
            let (remembering, whole) = (linker.link(&reads), link(&reads));
            prop_assert_eq!(&remembering.report, &whole.report);
            prop_assert_eq!(&remembering.snapshot.digest, &whole.snapshot.digest);
            prop_assert!(shown(&remembering) == shown(&whole), "{:?}", cluster.world);
        }
    }
}

#[test]
fn the_objects_of_the_property_are_mostly_taken() {
    let taken = link(&Cluster::new().reads());
    let refused: Vec<_> = taken
        .report
        .objects
        .iter()
        .filter(|(_, verdict)| !verdict.accepted)
        .map(|(key, verdict)| format!("{key}: {:?}", verdict.mistakes))
        .collect();
    // The routing table has mistakes in every form.
    assert_eq!(refused.len(), 1, "{refused:#?}");
    // The namespace of `c` may not attach, and `b` has nothing that `g` leaves it.
    let routes = taken.snapshot.routes.iter();
    let served: Vec<_> = routes.map(|route| route.name.name()).collect();
    assert_eq!(served, ["g", "a", "d"]);
}

/// Where an object is in the list.
fn place(wanted: &str) -> usize {
    let place = OBJECTS.iter().position(|(path, _)| *path == wanted);
    place.expect("it is in the list")
}

#[test]
fn a_route_follows_the_address_that_a_load_balancer_gives_to_its_gateway() {
    let service = place("Service/agents/gateway-shop-balanced-f2a551ae");
    let mut cluster = Cluster::new();
    // With it every service is looked at.
    cluster.change(place("BackendTLSPolicy/shop/p"), None);
    let mut linker = Linker::default();
    // Given, not yet, that of a younger gateway, given again, and no service at all; parents that are left to a route of the younger
    // gateway, and to one of its own.
    let steps = [
        (Some(0), [1, 1]),
        (Some(1), [1, 0]),
        (Some(2), [0, 1]),
        (Some(0), [1, 1]),
        (None, [1, 0]),
    ];
    for (form, parents) in steps {
        cluster.change(service, form);
        let reads = cluster.reads();
        let (remembering, whole) = (linker.link(&reads), link(&reads));
        assert_eq!(shown(&remembering), shown(&whole), "{form:?}");
        let left = |name: &str| {
            let mut routes = remembering.snapshot.routes.iter();
            let route = routes.find(|route| route.name.name() == name);
            route.map_or(0, |route| route.parents.len())
        };
        assert_eq!(["a", "d"].map(left), parents, "{form:?}");
    }
}

#[test]
fn a_route_that_nothing_changed_for_is_the_one_that_was_linked_before() {
    let mut cluster = Cluster::new();
    // Policies make rules of their own.
    for policy in [
        "SecurityPolicy/shop/x",
        "BackendTrafficPolicy/shop/y",
        "BackendTLSPolicy/shop/p",
    ] {
        cluster.change(place(policy), None);
    }
    let mut linker = Linker::default();
    let before = linker.link(&cluster.reads()).snapshot;
    cluster.change(place("EndpointSlice/shop/e1"), Some(2));
    cluster.change(place("Cell/shop/cell"), None);
    let now = linker.link(&cluster.reads()).snapshot;
    let same = |name: &str| {
        let find = |snapshot: &snapshot::Snapshot| {
            let mut routes = snapshot.routes.iter();
            routes.find(|route| route.name.name() == name).cloned()
        };
        let (before, now) = (find(&before), find(&now));
        before.expect("it was there").is(&now.expect("it is there"))
    };
    // The slice was of the service of `a` and `g`, and is of that of `b` and `d`.
    assert_eq!(
        ["a", "b", "c", "d", "g"].map(same),
        [false, false, true, false, false]
    );
}
