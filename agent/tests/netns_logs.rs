//! The debug build of the programs loads like the other and says what it does. Needs root and
//! `cargo xtask build-ebpf --logs`; fails without them.

#[path = "netns/world.rs"]
#[allow(dead_code, reason = "each test binary uses its part of the world")]
mod world;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agent_common::{Reason, Verdict};
use cardinal_agent::datapath::{Datapath, GateHook};
use world::{SURELY, World, chain, inside, udp_is_lost};

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn wait(&self, part: &str) {
        let end = Instant::now() + SURELY;
        while !self.text().contains(part) {
            assert!(Instant::now() < end, "no `{part}` in:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn object() -> PathBuf {
    let built = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../target/bpf/cardinal-logs.bpf.o"
    );
    std::env::var_os("CARDINAL_EBPF_LOGS").map_or_else(|| built.into(), PathBuf::from)
}

#[test]
fn netns_the_debug_build_logs_verdicts() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();
    let world = World::new(2);
    let mut config = world.config(GateHook::Auto);
    config.object = Some(object());
    let datapath = inside(&world.node, move || Datapath::open(&config))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    for program in &datapath.facts().programs {
        eprintln!("{program:?}");
    }
    lines.wait("the eBPF object is a debug build");
    world.activate(&datapath, world.tables(3, &[10, 20]));
    let [a, b] = [0, 1].map(|n: usize| world.pods[n].clone());
    for to in [b.v4, b.v6] {
        assert!(
            udp_is_lost(&a.netns, SocketAddr::new(to, 5353), 32),
            "undeclared"
        );
    }
    lines.wait(&format!(
        "hook=0 ifindex={} generation=3 cell=10 verdict={} reason={}",
        a.ifindex,
        Verdict::Drop as u8,
        Reason::NotDeclared as u8
    ));
    lines.wait(&format!("-> ::ffff:{} port 5353 protocol=17", b.v4));
    lines.wait(&format!("-> {} port 5353 protocol=17", b.v6));
    assert_eq!(
        lines
            .text()
            .matches("the eBPF object is a debug build")
            .count(),
        1
    );
}
