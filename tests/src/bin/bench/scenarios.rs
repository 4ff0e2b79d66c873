//! What is compared with what, and the bar that each comparison is held to. Specs of one batch share their rounds.

use std::net::{IpAddr, Ipv4Addr};

use tests::world::NODE;

use crate::{
    load::{Kind, port},
    measure::{Probe, Spec},
    proxied::Legs,
    rows::Bar,
    side::{DIRECT, From, GATEWAY, SERVER, SERVICE, STEERED, Setup},
    tables::Shape,
};

/// Specs that are played in the same rounds.
pub(crate) type Batch = Vec<Spec>;

/// Gates with this many policy entries are what the rows about packets mean.
const ENTRIES: u32 = 10_000;

const GATES: Shape = Shape {
    gates: true,
    rules: ENTRIES,
    ..Shape::EMPTY
};

/// Everything, in the order of play. Neighbours share their sides.
pub(crate) fn all() -> Vec<Batch> {
    [
        pods(),
        stack(),
        ipv6(),
        full(),
        policies(),
        identities(),
        services(),
        against(),
        steering(),
        router(),
        spliced(),
    ]
    .concat()
}

fn probe(setup: Setup, from: From, kind: Kind, to: impl Into<IpAddr>) -> Probe {
    let port = match kind {
        Kind::Rr => port::RR,
        Kind::Crr => port::CRR,
        Kind::Bulk => port::BULK,
        Kind::Many => port::PROXY,
        Kind::Udp | Kind::UdpTo | Kind::Flows => port::UDP,
    };
    Probe {
        setup,
        from,
        kind,
        to: (to.into(), port),
    }
}

fn spec(scenario: impl Into<String>, of: Probe, base: Probe, bar: Bar) -> Spec {
    Spec {
        scenario: scenario.into(),
        of,
        base,
        bar,
    }
}

/// How a row names what is sent.
fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Rr => "rr",
        Kind::Crr => "crr",
        Kind::Many => "64 × 1 KB",
        Kind::Udp => "udp",
        Kind::UdpTo => "udp unconnected",
        Kind::Bulk => "bulk",
        Kind::Flows => "flows",
    }
}

/// From pod to pod on one node: both gates, and what others take for the same.
fn pods() -> Vec<Batch> {
    [
        (Kind::Rr, Bar::AtMost(0.91)),
        (Kind::Crr, Bar::AtMost(0.92)),
        (Kind::Udp, Bar::AtMost(0.86)),
        (Kind::Bulk, Bar::AtLeast(0.98)),
    ]
    .map(|(kind, bar)| {
        let kindly = name(kind);
        let on = |setup| probe(setup, From::Pod, kind, SERVER.v4);
        let plain = on(Setup::Plain);
        let row = |what: &str, of, bar| spec(format!("{kindly} pod to pod{what}"), of, plain, bar);
        vec![
            row("", on(Setup::Cardinal(GATES)), bar),
            row(
                ": bare veth pair",
                probe(Setup::Plain, From::Pod, kind, DIRECT),
                Bar::None,
            ),
            row(": nft set", on(Setup::NftSet(ENTRIES)), Bar::None),
            row(": conntrack", on(Setup::Conntrack), Bar::None),
        ]
    })
    .into()
}

/// From the uplink to a pod: one program per packet, on the stack's way.
fn stack() -> Vec<Batch> {
    [
        (Kind::Rr, Bar::AtMost(1.03)),
        (Kind::Crr, Bar::AtMost(1.05)),
        (Kind::Udp, Bar::AtMost(1.06)),
    ]
    .map(|(kind, bar)| {
        let on = |setup| probe(setup, From::Outside, kind, SERVER.v4);
        let name = format!("{} through the stack", name(kind));
        let (of, plain) = (on(Setup::Cardinal(GATES)), on(Setup::Plain));
        let peer = on(Setup::NftSet(ENTRIES));
        // What the route for steered packets costs all others: with any rule of its own a node looks up routes the long way.
        let rule = on(Setup::PolicyRule);
        vec![
            spec(name.clone(), of, plain, bar),
            spec(
                format!("{name}: a policy rule alone"),
                rule,
                plain,
                Bar::None,
            ),
            spec(format!("{name}: nft set"), peer, plain, Bar::None),
        ]
    })
    .into()
}

/// The same gates, the other family.
fn ipv6() -> Vec<Batch> {
    [Kind::Rr, Kind::Crr, Kind::Udp]
        .map(|kind| {
            let to = |address: IpAddr| probe(Setup::Cardinal(GATES), From::Pod, kind, address);
            vec![spec(
                format!("{} IPv6 over IPv4", name(kind)),
                to(SERVER.v6.into()),
                to(SERVER.v4.into()),
                Bar::AtMost(1.05),
            )]
        })
        .into()
}

/// Packets of known flows, beside as many flows as the table holds.
fn full() -> Vec<Batch> {
    [Kind::Rr, Kind::Udp]
        .map(|kind| {
            let on = |setup| probe(setup, From::Pod, kind, SERVER.v4);
            vec![spec(
                format!("{} flow table full over empty", name(kind)),
                on(Setup::Full(GATES)),
                on(Setup::Cardinal(GATES)),
                Bar::AtMost(1.05),
            )]
        })
        .into()
}

/// Long policies.
fn policies() -> Vec<Batch> {
    let row = |kind, of, base, peer, bar| {
        let on = |setup| probe(setup, From::Pod, kind, SERVER.v4);
        let name = format!("{} policy entries 1 to 10k{peer}", name(kind));
        vec![spec(name, on(of), on(base), bar)]
    };
    let gates = |rules| Setup::Cardinal(Shape { rules, ..GATES });
    let list = Setup::NftList;
    vec![
        row(Kind::Rr, gates(ENTRIES), gates(0), "", Bar::AtMost(1.02)),
        row(Kind::Crr, gates(ENTRIES), gates(0), "", Bar::AtMost(1.02)),
        // In rounds of its own: what it leaves to the kernel's threads would slow the others.
        row(Kind::Rr, list(ENTRIES), list(0), ": nft list", Bar::None),
    ]
}

/// Many others.
fn identities() -> Vec<Batch> {
    [Kind::Rr, Kind::Crr]
        .map(|kind| {
            let gates = |identities| {
                let shape = Shape {
                    rules: 0,
                    identities,
                    ..GATES
                };
                probe(Setup::Cardinal(shape), From::Pod, kind, SERVER.v4)
            };
            vec![spec(
                format!("{} identities 1 to 100k", name(kind)),
                gates(100_000),
                gates(0),
                Bar::AtMost(1.04),
            )]
        })
        .into()
}

fn with_services(services: u32) -> Setup {
    Setup::Cardinal(Shape {
        services,
        rules: 0,
        ..GATES
    })
}

/// Many services.
fn services() -> Vec<Batch> {
    let calls = |kind, setup| probe(setup, From::Pod, kind, SERVICE);
    let mut batches: Vec<Batch> = [Kind::Rr, Kind::Crr, Kind::UdpTo]
        .map(|kind| {
            vec![spec(
                format!("{} services 1 to 10k", name(kind)),
                calls(kind, with_services(10_000)),
                calls(kind, with_services(1)),
                Bar::AtMost(1.02),
            )]
        })
        .into();
    let peer = |name: &str, setup: fn(u32) -> Setup| {
        vec![spec(
            format!("crr services 1 to 10k: {name}"),
            calls(Kind::Crr, setup(10_000)),
            calls(Kind::Crr, setup(1)),
            Bar::None,
        )]
    };
    batches.push(peer("nftables", Setup::NftServices));
    batches.push(peer("iptables", Setup::IptablesServices));
    batches
}

/// Gates and services together, against services alone as kube-proxy makes them with nftables.
fn against() -> Vec<Batch> {
    [(1_000, "1k"), (10_000, "10k")]
        .into_iter()
        .flat_map(|(count, words)| {
            [(Kind::Rr, 0.84), (Kind::Crr, 0.80), (Kind::Udp, 0.70)].map(|(kind, most)| {
                let on = |setup| probe(setup, From::Pod, kind, SERVICE);
                vec![spec(
                    format!("{} {words} services over nftables", name(kind)),
                    on(with_services(count)),
                    on(Setup::NftServices(count)),
                    Bar::AtMost(most),
                )]
            })
        })
        .collect()
}

/// Services alone: the packets after a connect that was steered, and the connect.
fn steering() -> Vec<Batch> {
    let steered = Setup::Cardinal(Shape {
        services: 1,
        ..Shape::EMPTY
    });
    [
        (Kind::Rr, "afterwards"),
        (Kind::Udp, "afterwards"),
        (Kind::Crr, "and connect"),
    ]
    .map(|(kind, part)| {
        vec![spec(
            format!("{} steered {part} over plain", name(kind)),
            probe(steered, From::Pod, kind, SERVICE),
            probe(Setup::Plain, From::Pod, kind, SERVER.v4),
            Bar::AtMost(1.01),
        )]
    })
    .into()
}

/// Connections that are handed to the router's listener, against those that are addressed to it.
fn router() -> Vec<Batch> {
    let shape = Shape {
        steers: true,
        ..GATES
    };
    let to = |from, address: Ipv4Addr| probe(Setup::Router(shape), from, Kind::Crr, address);
    [
        ("sk_lookup", From::Outside, GATEWAY),
        ("sk_assign", From::Pod, STEERED),
    ]
    .map(|(name, from, address)| {
        vec![spec(
            format!("crr by {name} over its own address"),
            to(from, address),
            to(from, NODE.v4),
            Bar::AtMost(1.02),
        )]
    })
    .into()
}

/// A proxy on the node between the pods, some of whose connections skip the stack, against the same with none that does.
fn spliced() -> Vec<Batch> {
    let by = |legs| probe(Setup::Proxy(legs), From::Pod, Kind::Many, NODE.v4);
    vec![
        [
            ("upstream leg", Legs::Upstream, 0.80),
            ("both legs", Legs::Both, 0.65),
        ]
        .map(|(words, legs, most)| {
            spec(
                format!("{} by a proxy: {words} spliced", name(Kind::Many)),
                by(legs),
                by(Legs::None),
                Bar::AtMost(most),
            )
        })
        .into(),
    ]
}
