//! The same jobs as others do them: rules for nftables and iptables, as files that their programs read.
//!
//! Policy is an nftables set of addresses and ports without connection tracking; connection tracking alone; and a list of
//! rules. Services are chains per service behind a verdict map, as kube-proxy's nftables mode makes them, and a list of
//! rules with a chain each, as its iptables mode does, with the called service in the middle of the list.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use crate::load::port;
use crate::side::{CLIENT, OUTSIDE, SERVER, SERVICE};
use crate::tables::filler_service;

/// What the client may do: protocol and port of each measured service.
const PORTS: [(&str, u16); 4] = [
    ("tcp", port::RR),
    ("tcp", port::CRR),
    ("tcp", port::BULK),
    ("udp", port::UDP),
];

/// A policy of `entries` declared connections in one set, asked for both ways; everything else is dropped.
pub(crate) fn nft_set(entries: u32) -> String {
    let mut elements: Vec<String> = (0..entries)
        .map(|number| {
            let peer = Ipv4Addr::from(0x0a80_0000 + number);
            format!("{peer} . {} . tcp . {}", SERVER.v4, 1 + number % 60_000)
        })
        .collect();
    for client in [CLIENT.v4, OUTSIDE.v4] {
        for (protocol, port) in PORTS {
            elements.push(format!("{client} . {} . {protocol} . {port}", SERVER.v4));
        }
    }
    format!(
        "table ip bench {{
  set allowed {{
    type ipv4_addr . ipv4_addr . inet_proto . inet_service
    elements = {{ {} }}
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ip saddr . ip daddr . meta l4proto . th dport @allowed accept
    ip daddr . ip saddr . meta l4proto . th sport @allowed accept
  }}
}}
",
        elements.join(", ")
    )
}

/// A policy of `entries` rules, one after the other, and no connection tracking.
pub(crate) fn nft_list(entries: u32) -> String {
    let mut rules = String::new();
    for number in 0..entries {
        let peer = Ipv4Addr::from(0x0a80_0000 + number);
        line(&mut rules, format_args!("    ip saddr {peer} accept"));
    }
    for client in [CLIENT.v4, OUTSIDE.v4] {
        line(&mut rules, format_args!("    ip saddr {client} accept"));
        line(&mut rules, format_args!("    ip daddr {client} accept"));
    }
    format!(
        "table ip bench {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
{rules}  }}
}}
"
    )
}

/// Connection tracking and the shortest policy that uses it.
pub(crate) fn conntrack() -> String {
    format!(
        "table ip bench {{
  chain forward {{
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    ip saddr {{ {}, {} }} accept
  }}
}}
",
        CLIENT.v4, OUTSIDE.v4
    )
}

/// Services whose connections are translated: a verdict map from address, protocol and port to a chain for each.
pub(crate) fn nft_services(count: u32) -> String {
    let (mut chains, mut elements) = (String::new(), Vec::new());
    for (number, (address, protocol, port, to)) in (0..).zip(services(count)) {
        line(
            &mut chains,
            format_args!(
                "  chain service_{number} {{\n    meta l4proto {protocol} dnat to {}:{to}\n  }}",
                SERVER.v4
            ),
        );
        elements.push(format!(
            "{address} . {protocol} . {port} : goto service_{number}"
        ));
    }
    format!(
        "table ip bench {{
{chains}  map services {{
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {{ {} }}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr . meta l4proto . th dport vmap @services
  }}
}}
",
        elements.join(", ")
    )
}

/// Services whose connections are translated: a rule for each in one list, each with a chain of its own.
pub(crate) fn iptables_services(count: u32) -> String {
    let (mut chains, mut list, mut targets) = (String::new(), String::new(), String::new());
    for (number, (address, protocol, port, to)) in (0..).zip(services(count)) {
        line(&mut chains, format_args!(":SERVICE-{number} - [0:0]"));
        line(
            &mut list,
            format_args!(
                "-A SERVICES -d {address}/32 -p {protocol} -m {protocol} --dport {port} -j SERVICE-{number}"
            ),
        );
        line(
            &mut targets,
            format_args!(
                "-A SERVICE-{number} -p {protocol} -m {protocol} -j DNAT --to-destination {}:{to}",
                SERVER.v4
            ),
        );
    }
    format!("*nat\n:SERVICES - [0:0]\n{chains}-A PREROUTING -j SERVICES\n{list}{targets}COMMIT\n")
}

/// Address, protocol and port of each service and the port of its backend, the called one in the middle.
fn services(count: u32) -> Vec<(Ipv4Addr, &'static str, u16, u16)> {
    let mut all: Vec<_> = (1..count)
        .map(|number| (filler_service(number), "tcp", 80, 80))
        .collect();
    let middle = all.len() / 2;
    for (protocol, port) in PORTS {
        all.insert(middle, (SERVICE, protocol, port, port));
    }
    all
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _never = writeln!(text, "{words}");
}
