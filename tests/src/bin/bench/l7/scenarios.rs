//! What is compared with what, and what is asked of it.

use std::sync::Arc;

use super::{client::Load, documents, side::Setup};
use crate::rows::Bar;

/// What is sent to a side.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// HTTP/1.1 by the bench's own generator.
    Http1(Load),
    /// HTTP/2 by nghttp2's `h2load`: this many bytes an answer.
    Http2 {
        /// Whether over TLS.
        tls: bool,
        /// Path.
        path: String,
        /// Bytes of an answer.
        size: usize,
    },
}

/// One thing to measure.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) setup: Setup,
    pub(crate) ask: Ask,
}

/// What a ratio is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    /// CPU time per request.
    Cpu,
    /// The median of the latencies.
    P50,
    /// Their 99th percentile.
    P99,
}

/// What Cardinal is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// The probe of this number.
    Probe(usize),
    /// The peer that needs the least CPU.
    BestPeer,
    /// What the probe of this number costs is taken off, and the rest is held against a bare verification of a token.
    Verify(usize),
}

/// A row to be.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// Number of the probe that is judged.
    pub(crate) of: usize,
    pub(crate) figure: Figure,
    pub(crate) base: Base,
    pub(crate) bar: Bar,
    /// Added to the scenario's name.
    pub(crate) name: &'static str,
}

/// Probes that take turns, and what is asked of them.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) probes: Vec<Probe>,
    pub(crate) claims: Vec<Claim>,
}

/// Who the peers are: HAProxy, nginx, and Envoy where there is one.
fn peers(envoy: bool) -> Vec<Setup> {
    let mut peers = vec![Setup::Nginx, Setup::Haproxy];
    peers.extend(envoy.then_some(Setup::Envoy));
    peers
}

/// A keep-alive load of so many connections for answers of so many KiB.
fn load(connections: usize, kib: usize) -> Load {
    Load {
        connections,
        rate: None,
        body: 0,
        path: format!("{}/{kib}k", documents::path(0)),
        size: kib << 10,
        fresh: false,
        tls: None,
        fields: Arc::default(),
    }
}

/// Cardinal first, then its floor where there is one, then the peers.
fn against(
    name: &str,
    floor: Option<Setup>,
    envoy: bool,
    ask: &Ask,
    claims: Vec<Claim>,
) -> Scenario {
    let setups = [Setup::Cardinal]
        .into_iter()
        .chain(floor)
        .chain(peers(envoy));
    Scenario {
        name: name.to_owned(),
        probes: setups
            .map(|setup| Probe {
                setup,
                ask: ask.clone(),
            })
            .collect(),
        claims,
    }
}

/// The floor's number in what [`against`] makes.
const FLOOR: Base = Base::Probe(1);

fn claim(figure: Figure, base: Base, most: f64) -> Claim {
    let name = match (figure, base) {
        (Figure::Cpu, Base::BestPeer) => "CPU / best peer",
        (Figure::Cpu, _) => "CPU / floor",
        (Figure::P50, Base::BestPeer) => "p50 / best peer",
        (Figure::P50, _) => "p50 / floor",
        (Figure::P99, Base::BestPeer) => "p99 / best peer",
        (Figure::P99, _) => "p99 / floor",
    };
    Claim {
        of: 0,
        figure,
        base,
        bar: Bar::AtMost(most),
        name,
    }
}

/// Everything that tests and tables need besides.
pub(crate) struct Means {
    /// A client that shakes hands in full.
    pub(crate) tls: Arc<rustls::ClientConfig>,
    /// One header line with a token.
    pub(crate) token: Arc<Vec<String>>,
    /// Many, each with another one.
    pub(crate) tokens: Arc<Vec<String>>,
    /// Whether Envoy is there.
    pub(crate) envoy: bool,
}

/// All scenarios, in the order in which they are played.
pub(crate) fn all(means: &Means) -> Vec<Scenario> {
    use Figure::{Cpu, P50, P99};
    let (peer, envoy) = (Base::BestPeer, means.envoy);
    let cpu = |floor, best| vec![claim(Cpu, FLOOR, floor), claim(Cpu, peer, best)];
    let plain = |name: &str, load: Load, claims| {
        against(name, Some(Setup::Floor), envoy, &Ask::Http1(load), claims)
    };
    let tls = |name: &str, load: Load, claims| {
        let load = Load {
            tls: Some(Arc::clone(&means.tls)),
            ..load
        };
        against(
            name,
            Some(Setup::FloorTls),
            envoy,
            &Ask::Http1(load),
            claims,
        )
    };
    let mut all = vec![
        plain(
            "keep-alive, 64 connections, 1 KB",
            load(64, 1),
            vec![
                claim(Cpu, FLOOR, 1.15),
                claim(Cpu, peer, 0.92),
                claim(P99, peer, 1.1),
            ],
        ),
        plain(
            "keep-alive, 512 connections, 1 KB",
            load(512, 1),
            vec![
                claim(Cpu, FLOOR, 1.24),
                claim(Cpu, peer, 0.90),
                claim(P99, FLOOR, 1.3),
            ],
        ),
    ];
    for (name, connections, rate) in [
        ("closed loop, 1 connection", 1, None),
        ("open loop, 2,000 a second", 64, Some(2000)),
        ("open loop, 5,000 a second", 64, Some(5000)),
        ("open loop, 12,000 a second", 64, Some(12_000)),
    ] {
        let load = Load {
            rate,
            ..load(connections, 1)
        };
        let mut claims = cpu(1.08, 0.97);
        claims.push(claim(P50, FLOOR, 1.02));
        all.push(plain(name, load, claims));
    }
    let h2 = |name: &str, tls, kib: usize, most| {
        let ask = Ask::Http2 {
            tls,
            path: format!("{}/{kib}k", documents::path(0)),
            size: kib << 10,
        };
        against(name, None, envoy, &ask, vec![claim(Cpu, peer, most)])
    };
    all.extend([
        plain("answer of 64 KB", load(64, 64), cpu(0.90, 0.98)),
        plain("answer of 1 MB", load(16, 1024), cpu(0.67, 0.68)),
        plain(
            "POST of 16 KB",
            Load {
                body: 16 << 10,
                ..load(64, 1)
            },
            cpu(1.25, 0.85),
        ),
        plain(
            "new connection per request",
            Load {
                fresh: true,
                ..load(32, 1)
            },
            cpu(1.04, 0.98),
        ),
        tls("TLS keep-alive, 1 KB", load(64, 1), cpu(1.14, 0.82)),
        tls(
            "TLS full handshake per request, P-256",
            Load {
                fresh: true,
                ..load(16, 1)
            },
            cpu(1.08, 0.66),
        ),
        h2("h2c, 8 connections of 32 streams", false, 1, 0.95),
        h2("h2 over TLS, 8 connections of 32 streams", true, 1, 0.95),
        h2("h2c, answer of 64 KB", false, 64, 0.80),
        many(),
        tokens(means),
    ]);
    all
}

/// Ten thousand routes and keys against one of each.
fn many() -> Scenario {
    let ask = |route| {
        Ask::Http1(Load {
            path: format!("{}/1k", documents::path(route)),
            ..load(64, 1)
        })
    };
    Scenario {
        name: "10,000 routes and routing keys".to_owned(),
        probes: vec![
            Probe {
                setup: Setup::CardinalMany,
                ask: ask(7777),
            },
            Probe {
                setup: Setup::CardinalOne,
                ask: ask(0),
            },
        ],
        claims: vec![Claim {
            name: "CPU / one of each",
            ..claim(Figure::Cpu, Base::Probe(1), 1.02)
        }],
    }
}

/// Requests with tokens, on the very same router as those without.
fn tokens(means: &Means) -> Scenario {
    let ask = |path: &str, fields: &Arc<Vec<String>>| Probe {
        setup: Setup::Cardinal,
        ask: Ask::Http1(Load {
            path: format!("{path}/1k"),
            fields: Arc::clone(fields),
            ..load(64, 1)
        }),
    };
    Scenario {
        name: "JWT checked".to_owned(),
        probes: vec![
            ask(&documents::path(0), &means.token),
            ask("/token", &means.token),
            ask("/token", &means.tokens),
        ],
        claims: vec![
            Claim {
                of: 1,
                name: "token seen before / without",
                ..claim(Figure::Cpu, Base::Probe(0), 1.06)
            },
            Claim {
                of: 2,
                name: "first sight - without / bare verify",
                ..claim(Figure::Cpu, Base::Verify(0), 1.2)
            },
        ],
    }
}
