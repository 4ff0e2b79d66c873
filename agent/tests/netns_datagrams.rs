//! Datagrams to a gateway's address, steered by the kernel to the router's sockets of it. Needs root; fails without it.

#[path = "netns/node.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the node")]
mod node;
#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use node::{Agent, until};
use world::{World, echo_udp, inside, udp};

const BACKEND: &str = "127.0.0.1:5300";

/// A gateway with a UDP listener on each of `ports`, all leading to [`BACKEND`].
fn documents(ports: &[u16]) -> String {
    let listeners: Vec<_> = ports
        .iter()
        .map(|port| format!("{{ name: udp-{port}, port: {port}, protocol: UDP }}"))
        .collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: edge }}
spec:
  gatewayClassName: cardinal
  addresses: [{{ value: 192.0.2.10 }}, {{ value: \"2001:db8:a::10\" }}]
  listeners: [{{ name: http, port: 80, protocol: HTTP }}, {}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: UDPRoute
metadata: {{ name: r }}
spec:
  parentRefs: [{{ name: edge }}]
  rules: [{{ backendRefs: [{{ group: gateway.envoyproxy.io, kind: Backend, name: up }}] }}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: Backend
metadata: {{ name: up }}
spec: {{ endpoints: [{{ ip: {{ address: 127.0.0.1, port: 5300 }} }}] }}
",
        listeners.join(", ")
    )
}

fn gateways(port: u16) -> [SocketAddr; 2] {
    ["192.0.2.10", "2001:db8:a::10"].map(|address| {
        let address = address.parse().expect("an address");
        SocketAddr::new(address, port)
    })
}

#[test]
fn netns_datagrams_to_a_gateway_lead_to_the_routers_sockets() {
    let world = World::new(1);
    world.node_address("192.0.2.10/32");
    world.node_address("2001:db8:a::10/128");
    echo_udp(&world.node, BACKEND.parse().expect("an address"));
    let mut agent = Agent::start(&world, &documents(&[53, 5353]), &[]);
    for to in gateways(53).into_iter().chain(gateways(5353)) {
        assert!(udp(&world.node, to, 1200), "{to}");
        // Answers come from the address and port that were asked: a connected socket hears nothing else.
        let answer = inside(&world.node, move || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.connect(to)?;
            let mut buffer = [0; 8];
            for _ in 0..20 {
                socket.send(b"hello")?;
                socket.recv(&mut buffer)?;
            }
            Ok::<_, std::io::Error>(buffer)
        });
        assert_eq!(&answer.expect("an answer")[..5], b"hello");
    }
    // What the agent finds in the kernel is what it put there.
    until("looking after the sockets", &agent, || {
        let metrics = agent.metrics();
        let drift: Vec<_> = metrics
            .lines()
            .filter(|line| line.starts_with("cardinal_datapath_drift{table=\"sockets\"}"))
            .collect();
        assert!(drift.iter().all(|line| line.ends_with(" 0")), "{drift:?}");
        !drift.is_empty()
    });
    agent.publish(&documents(&[5353]));
    for to in gateways(53) {
        assert!(!udp(&world.node, to, 8), "the listener is gone");
    }
    for to in gateways(5353) {
        assert!(
            udp(&world.node, to, 8),
            "{to}: the other one is still there"
        );
    }
    // Without the router its address is nobody's: not the stack's, and not of who binds it meanwhile.
    agent.kill();
    for to in gateways(5353) {
        let received = inside(&world.node, move || {
            let thief = UdpSocket::bind(to)?;
            thief.set_read_timeout(Some(Duration::from_millis(500)))?;
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(any)?.send_to(b"x", to)?;
            thief.recv(&mut [0; 8])
        });
        let error = received.expect_err("the kernel's program drops it");
        assert!(
            matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            "{error}"
        );
    }
}
