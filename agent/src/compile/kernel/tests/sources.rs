//! Every rule leads back to the document and field that made it, and its number survives what says nothing.

use snapshot::SourceFile;

use super::*;

const SHOP: &str = "\
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: shop }
spec:
  organization: acme
  project: shop
  environment: prod
  components:
    - name: web
      workloads: { addresses: [10.1.0.1] }
      endpoints:
        - name: site
          type: HTTP
          port: 8080
          visibility:
            public: {}
    - name: orders
      workloads: { addresses: [10.1.0.2] }
  egress:
    east:
      - { from: [web], project: bank, component: ledger, endpoint: api }
      - { project: bank, component: ledger, endpoint: feed }
      - { from: [web], project: bank, component: ledger, endpoint: other }
      - { from: [orders], project: bank, component: ledger, endpoint: api }
    south:
      - { name: partner, from: [orders], cidrs: [203.0.113.0/24], port: 5432, protocol: TCP }
      - { name: stripe, from: [orders], hosts: [api.stripe.com], port: 443, protocol: TLS }
      - { name: mail, from: [web], hosts: [smtp.example.com], port: 443, protocol: TLS }
      - { name: rates, hosts: [rates.example.com], port: 443, protocol: TLS }
";

const BANK: &str = "\
apiVersion: cardinal.dev/v1alpha1
kind: Cell
metadata: { name: bank, namespace: money }
spec:
  organization: acme
  project: bank
  environment: prod
  intra: declared
  components:
    - name: ledger
      workloads: { addresses: [10.2.0.1] }
      endpoints:
        - { name: api, type: HTTP, port: 8080, visibility: { organization: {} } }
        - { name: other, type: HTTP, port: 8081, basePath: /other, visibility: { organization: {} } }
        - { name: feed, type: TCP, port: 9000, visibility: { organization: {} } }
    - name: audit
      workloads: { addresses: [10.2.0.2] }
      connections:
        - { component: ledger, endpoint: api }
        - { component: ledger, endpoint: feed }
";

const PLATFORM: &str = "\
apiVersion: cardinal.dev/v1alpha1
kind: Platform
metadata: { name: platform }
spec:
  environments: [{ name: prod, dnsPrefix: prod }]
  virtualHosts: { public: apis.example.test, organization: internal.example.test }
  gateways:
    external: { gatewayRef: { name: external } }
    internal: { gatewayRef: { name: internal } }
  dns:
    addresses: [10.9.0.53]
  services:
    - { name: backup, addresses: [10.7.0.0/16], ports: [{ port: 22 }] }
    - { name: monitoring, addresses: [10.8.0.0/16], ports: [{ port: 9090 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: external }
spec:
  gatewayClassName: cardinal
  addresses: [{ type: IPAddress, value: 192.0.2.20 }]
  listeners: [{ name: http, port: 80, protocol: HTTP }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: { name: internal }
spec:
  gatewayClassName: cardinal
  addresses: [{ type: IPAddress, value: 192.0.2.21 }]
  listeners: [{ name: http, port: 80, protocol: HTTP }]
";

fn tables(files: &[(&str, &str)]) -> KernelTables {
    let files: Vec<_> = files
        .iter()
        .map(|(path, text)| SourceFile {
            path: (*path).into(),
            bytes: text.as_bytes().to_vec(),
        })
        .collect();
    let snapshot = snapshot::parse(&files).unwrap_or_else(|error| panic!("{error}"));
    let discovery = Discovery {
        pods: [
            (11, "10.1.0.1"),
            (12, "10.1.0.2"),
            (21, "10.2.0.1"),
            (22, "10.2.0.2"),
        ]
        .map(|(ifindex, address)| pod(ifindex, &[address]))
        .to_vec(),
        unidentified: Vec::new(),
        node_addresses: vec![ip("192.0.2.1")],
    };
    compile(&snapshot, &discovery, 1)
}

fn all() -> KernelTables {
    tables(&[
        ("shop.yaml", SHOP),
        ("teams/bank.yaml", BANK),
        ("platform.yaml", PLATFORM),
    ])
}

/// The rule that decides about a connection, looked up as the kernel does.
fn decided<'t>(
    tables: &'t KernelTables,
    own: &str,
    peer: &str,
    port: u16,
    protocol: u8,
    way: Direction,
) -> &'t crate::datapath::RuleSource {
    let rules = &tables.policies[&owner(tables, own).identity];
    let peer = owner(tables, peer).identity;
    let rule = [(port, protocol), (0, protocol), (0, 0)]
        .into_iter()
        .find_map(|(port, protocol)| rules.get(&RuleKey::new(peer, port, protocol, way)))
        .expect("a row of the table has a rule");
    &tables.rules[&rule.id()]
}

#[test]
fn every_kind_of_rule_names_its_document_and_field() {
    use Direction::{Egress, Ingress};
    const WEB: &str = "10.1.0.1";
    const ORDERS: &str = "10.1.0.2";
    const LEDGER: &str = "10.2.0.1";
    const AUDIT: &str = "10.2.0.2";
    const NODE: &str = "192.0.2.1";
    let tables = all();
    let shop = |line: usize| format!("shop.yaml:{line} (Cell default/shop)");
    let bank = |line: usize| format!("teams/bank.yaml:{line} (Cell money/bank)");
    let platform = |line: usize| format!("platform.yaml:{line} (Platform default/platform)");
    for (own, peer, port, protocol, way, text, document, field) in [
        // The default is a field as well: it is where the author would say otherwise.
        (
            WEB,
            ORDERS,
            1,
            TCP,
            Egress,
            "intra open of acme/shop/prod",
            shop(4),
            "spec.intra",
        ),
        (
            WEB,
            ORDERS,
            0,
            ICMP,
            Ingress,
            "intra open of acme/shop/prod",
            shop(4),
            "spec.intra",
        ),
        (
            AUDIT,
            LEDGER,
            9000,
            TCP,
            Egress,
            "connection acme/bank/prod/audit to acme/bank/prod/ledger/feed",
            bank(20),
            "spec.components[1].connections[1]",
        ),
        (
            LEDGER,
            AUDIT,
            8080,
            TCP,
            Ingress,
            "connection acme/bank/prod/audit to acme/bank/prod/ledger/api",
            bank(19),
            "spec.components[1].connections[0]",
        ),
        (
            AUDIT,
            LEDGER,
            0,
            ICMPV6,
            Egress,
            "connection acme/bank/prod/audit to acme/bank/prod/ledger/api, \
             connection acme/bank/prod/audit to acme/bank/prod/ledger/feed",
            bank(19),
            "spec.components[1].connections[0], spec.components[1].connections[1]",
        ),
        (
            WEB,
            "192.0.2.20",
            8080,
            TCP,
            Ingress,
            "public acme/shop/prod/web/site",
            shop(16),
            "spec.components[0].endpoints[0].visibility.public",
        ),
        (
            LEDGER,
            "192.0.2.21",
            8081,
            TCP,
            Ingress,
            "organization acme/bank/prod/ledger/other",
            bank(14),
            "spec.components[0].endpoints[1].visibility.organization",
        ),
        (
            LEDGER,
            NODE,
            9000,
            TCP,
            Ingress,
            "probes of acme/bank/prod/ledger/feed",
            bank(15),
            "spec.components[0].endpoints[2].port",
        ),
        (
            AUDIT,
            "10.9.0.53",
            53,
            UDP,
            Egress,
            "platform dns",
            platform(11),
            "spec.dns.addresses",
        ),
        (
            AUDIT,
            "10.8.0.1",
            9090,
            TCP,
            Ingress,
            "platform service monitoring",
            platform(14),
            "spec.services[1]",
        ),
        (
            WEB,
            LEDGER,
            8080,
            TCP,
            Egress,
            "east acme/shop/prod to acme/bank/prod/ledger/api",
            shop(21),
            "spec.egress.east[0]",
        ),
        (
            ORDERS,
            LEDGER,
            8080,
            TCP,
            Egress,
            "east acme/shop/prod to acme/bank/prod/ledger/api",
            shop(24),
            "spec.egress.east[3]",
        ),
        // The callee's side of a call leads to the caller's document.
        (
            LEDGER,
            ORDERS,
            9000,
            TCP,
            Ingress,
            "east acme/shop/prod to acme/bank/prod/ledger/feed",
            shop(22),
            "spec.egress.east[1]",
        ),
        // One way to the gate serves every call over HTTP.
        (
            WEB,
            "192.0.2.21",
            80,
            TCP,
            Egress,
            "east acme/shop/prod to acme/bank/prod/ledger/api, \
             east acme/shop/prod to acme/bank/prod/ledger/other",
            shop(21),
            "spec.egress.east[0], spec.egress.east[2]",
        ),
        (
            ORDERS,
            "203.0.113.9",
            5432,
            TCP,
            Egress,
            "south partner of acme/shop/prod",
            shop(26),
            "spec.egress.south[0]",
        ),
        // What looks alike to the kernel has all its names, and only those of this component.
        (
            ORDERS,
            "198.51.100.1",
            443,
            TCP,
            Egress,
            "south stripe of acme/shop/prod, south rates of acme/shop/prod",
            shop(27),
            "spec.egress.south[1], spec.egress.south[3]",
        ),
    ] {
        let rule = decided(&tables, own, peer, port, protocol, way);
        let what = format!("{own} {way} {peer}:{port}/{protocol}");
        assert_eq!(rule.text(), text, "{what}");
        assert_eq!(rule.document(), document, "{what}");
        assert_eq!(rule.field(), field, "{what}");
    }
}

#[test]
fn rules_in_use_are_those_that_are_named() {
    let tables = all();
    let named: BTreeSet<u32> = tables.rules.keys().copied().collect();
    let used: BTreeSet<u32> = tables
        .policies
        .values()
        .flat_map(|rules| rules.values().map(Rule::id))
        .collect();
    assert_eq!(used, named);
    assert!(!named.contains(&0), "zero is no rule");
    for rule in tables.rules.values() {
        let first = rule.sources()[0].at("");
        assert!(
            rule.sources()
                .iter()
                .all(|source| source.object == first.object),
            "{rule:?} is of one document"
        );
    }
}

#[test]
fn numbers_come_from_the_meaning_and_not_from_the_place() {
    let before = all();
    let moved = SHOP
        .replace("metadata:", "# a remark\n\nmetadata:")
        .replace("name: shop }", "name: shop, labels: { team: a } }");
    let reordered = SHOP.replace(
        "      - { name: partner,",
        "      - { name: new, from: [orders], hosts: [new.example.com], port: 8443, protocol: TLS }\n      - { name: partner,",
    );
    let renamed = BANK.replace("metadata: { name: bank", "metadata: { name: renamed");
    for (files, extra) in [
        (
            [
                ("shop.yaml", &*moved),
                ("teams/bank.yaml", BANK),
                ("platform.yaml", PLATFORM),
            ],
            0,
        ),
        (
            [
                ("other.yaml", SHOP),
                ("teams/bank.yaml", &*renamed),
                ("platform.yaml", PLATFORM),
            ],
            0,
        ),
        (
            [
                ("shop.yaml", &*reordered),
                ("teams/bank.yaml", BANK),
                ("platform.yaml", PLATFORM),
            ],
            1,
        ),
    ] {
        let after = tables(&files);
        for (number, rule) in &before.rules {
            assert_eq!(after.rules[number].text(), rule.text());
        }
        assert_eq!(after.rules.len(), before.rules.len() + extra);
        assert_ne!(after.rules, before.rules, "places changed");
        if extra == 0 {
            assert_eq!(
                after.policies, before.policies,
                "and nothing for the kernel"
            );
        }
    }
}

#[test]
fn calls_that_differ_in_their_callers_are_counted_apart() {
    let tables = all();
    let number = |own: &str| {
        let ledger = owner(&tables, "10.2.0.1").identity;
        let key = RuleKey::new(ledger, 8080, TCP, Direction::Egress);
        tables.policies[&owner(&tables, own).identity][&key].id()
    };
    assert_ne!(number("10.1.0.1"), number("10.1.0.2"));
}

#[test]
fn a_rule_of_many_declarations_stays_short() {
    let calls: String = (0..500)
        .map(|n| {
            format!(
                "      - {{ name: s{n}, hosts: [h{n}.example.com], port: 8443, protocol: TLS }}\n"
            )
        })
        .collect();
    let many = SHOP.replace("    south:\n", &format!("    south:\n{calls}"));
    let tables = tables(&[
        ("shop.yaml", &many),
        ("bank.yaml", BANK),
        ("platform.yaml", PLATFORM),
    ]);
    let rule = decided(
        &tables,
        "10.1.0.1",
        "198.51.100.1",
        8443,
        TCP,
        Direction::Egress,
    );
    assert_eq!(rule.sources().len(), 500);
    assert_eq!(
        rule.text(),
        "south s0 of acme/shop/prod, south s1 of acme/shop/prod, south s2 of acme/shop/prod and 497 more"
    );
    assert_eq!(
        rule.field(),
        "spec.egress.south[0], spec.egress.south[1], spec.egress.south[2] and 497 more"
    );
}
