//! Which addresses are somebody's, and whether an address that nobody has may be somebody's in a moment.

use std::collections::BTreeSet;
use std::net::IpAddr;

use snapshot::Snapshot;
use snapshot::model::{AddressClass, Cidr, ClassId};

use crate::datapath::Discovery;

/// What documents say of addresses of pods.
pub(super) struct Claims<'a> {
    snapshots: &'a [&'a Snapshot],
    /// Addresses of pods that have gates: those of cells, and those that network policies isolate.
    claimed: BTreeSet<IpAddr>,
}

impl<'a> Claims<'a> {
    /// Those of several sets of documents together.
    pub(super) fn of(snapshots: &'a [&'a Snapshot]) -> Self {
        let cells = snapshots.iter().flat_map(|one| one.cells.values());
        let components = cells.flat_map(|cell| cell.components.values());
        let mut claimed: BTreeSet<IpAddr> = components
            .flat_map(|component| component.workloads.addresses())
            .copied()
            .collect();
        for snapshot in snapshots {
            let policies = &snapshot.network;
            let isolated = |(_, class): &(&IpAddr, &ClassId)| {
                let class = policies.classes.of.get(*class);
                class.is_some_and(AddressClass::is_isolated)
            };
            let isolated = policies.members.iter().filter(isolated);
            claimed.extend(isolated.map(|(address, _)| *address));
        }
        Self { snapshots, claimed }
    }

    /// Whether an address is that of a pod with gates.
    pub(super) fn have(&self, address: &IpAddr) -> bool {
        self.claimed.contains(address)
    }

    /// Whether the cluster may be about to tell such an address of a pod on `node`: one has none there yet, or one of the node's
    /// network is on no interface any more, as after a restart of the node, when pods have other addresses than the cluster says.
    pub(super) fn are_awaited(&self, node: &str, discovery: &Discovery) -> bool {
        if self.snapshots.iter().any(|one| one.awaited.contains(node)) {
            return true;
        }
        let nodes = self.snapshots.iter().flat_map(|one| &one.platform.nodes);
        let own = nodes.filter(|one| one.name == node);
        let networks: Vec<&Cidr> = own.flat_map(|node| &node.pod_networks).collect();
        let here: BTreeSet<IpAddr> = discovery
            .pods
            .iter()
            .flat_map(|pod| &pod.addresses)
            .copied()
            .collect();
        self.claimed.iter().any(|address| {
            let host = Cidr::host(*address);
            !here.contains(address) && networks.iter().any(|network| network.contains(&host))
        })
    }
}

#[cfg(test)]
mod tests {
    use snapshot::{SourceFile, take};

    use super::Claims;
    use crate::datapath::{DiscoveredPod, Discovery};

    fn pod(name: &str, labels: &str, rest: &str) -> String {
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{ name: {name}, namespace: shop, labels: {{ {labels} }} }}
spec: {{ nodeName: node-a }}
status: {{ phase: Running{rest} }}
"
        )
    }

    fn discovery(address: &str) -> Discovery {
        let pod = DiscoveredPod {
            ifindex: 7,
            number: 1,
            host_ifname: "veth7".to_owned(),
            mac: [0; 6],
            addresses: vec![address.parse().expect("an address")],
        };
        Discovery {
            pods: vec![pod],
            ..Discovery::default()
        }
    }

    #[test]
    fn an_address_is_awaited_until_the_cluster_says_what_the_node_has() {
        let cell = "apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: shop, namespace: shop }
spec:
  organization: acme
  project: shop
  environment: prod
  components: [{ name: web, workloads: { selector: { matchLabels: { app: web } } } }]
";
        let node = "apiVersion: v1
kind: Node
metadata: { name: node-a }
spec: { podCIDRs: [10.1.0.0/24] }
status: { addresses: [{ type: InternalIP, address: 192.168.0.1 }] }
";
        let policy = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: deny, namespace: shop }
spec: { podSelector: { matchLabels: { app: db } }, policyTypes: [Ingress] }
";
        let platform = "apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec: { networkPolicies: all }
";
        // The pod that is to come, the address on the node's interface, and whether another one is waited for.
        for (labels, rest, here, awaited) in [
            ("app: web", "", "10.1.0.9", true),
            (
                "app: web",
                ", podIPs: [{ ip: 10.1.0.1 }]",
                "10.1.0.1",
                false,
            ),
            // The node was restarted, and the cluster says the address from before.
            ("app: web", ", podIPs: [{ ip: 10.1.0.1 }]", "10.1.0.9", true),
            ("app: db", ", podIPs: [{ ip: 10.1.0.1 }]", "10.1.0.9", true),
            (
                "app: other",
                ", podIPs: [{ ip: 10.1.0.1 }]",
                "10.1.0.9",
                false,
            ),
            // It is another node's.
            (
                "app: web",
                ", podIPs: [{ ip: 10.2.0.1 }]",
                "10.1.0.9",
                false,
            ),
        ] {
            let pod = pod("p", labels, rest);
            let objects = [
                ("Cell/shop/shop", cell),
                ("NetworkPolicy/shop/deny", policy),
                ("Node/node-a", node),
                ("Platform/platform", platform),
                ("Pod/shop/p", pod.as_str()),
            ];
            let taken = take(objects.map(|(path, text)| SourceFile::new(path, text)));
            let snapshots = [&taken.snapshot];
            let claims = Claims::of(&snapshots);
            let discovery = discovery(here);
            assert_eq!(
                claims.are_awaited("node-a", &discovery),
                awaited,
                "{pod}{here}"
            );
            assert!(!claims.are_awaited("node-b", &discovery), "{pod}");
            let is_told = rest.contains(here) && labels != "app: other";
            assert_eq!(claims.have(&here.parse().expect("one")), is_told, "{pod}");
        }
    }
}
