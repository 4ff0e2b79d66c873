//! An agent as a process on a world's node, and pods that come and go there while it runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use super::world::{World, inside};

/// Generous: how long anything may take that must happen.
pub(crate) const SURELY: Duration = Duration::from_secs(60);
/// Where pods send to.
pub(crate) const PORT: u16 = 7777;
/// The pods' gateway, which every interface of the node answers for.
const GATEWAY: &str = "169.254.1.1";
const GATEWAY_MAC: &str = "02:00:00:00:77:01";

/// A running agent; killed on drop.
pub(crate) struct Agent {
    child: Child,
    admin: PathBuf,
    log: PathBuf,
    documents: PathBuf,
    /// How many agents had the node before it.
    number: u32,
}

impl Agent {
    /// Starts the built agent on the node with these documents, and waits until it is ready.
    pub(crate) fn start(world: &World, documents: &str, options: &[&str]) -> Self {
        let config = world.folder.join("config");
        fs::create_dir_all(&config).expect("the folder is ours");
        fs::write(config.join("cells.yaml"), documents).expect("the folder is ours");
        let mut agent = Self::spawn(world, options, world.folder.join("agent.log"));
        agent.serves(|agent| {
            agent
                .ask("/readyz")
                .is_some_and(|(status, _)| status == 200)
        });
        agent
    }

    /// Starts another agent in the place of this one, and ends this one once that serves. Gives from when until when nothing was
    /// classified.
    pub(crate) fn replaced(self, world: &World, options: &[&str]) -> (Self, [Instant; 2]) {
        let number = self.number + 1;
        let log = world.folder.join(format!("agent-{number}.log"));
        let mut next = Self::spawn(world, options, log);
        next.number = number;
        let said = |agent: &Self, what: &str| {
            let log = fs::read_to_string(&agent.log).expect("an agent has a log from its start");
            log.contains(what)
        };
        next.serves(|_| said(&self, "another agent takes the place of this one"));
        let from = Instant::now();
        next.serves(|next| said(next, "the place of another agent is taken"));
        let to = Instant::now();
        let pid = next.child.id();
        next.serves(|next| {
            let status = next.ask("/debug/status");
            let status = status.and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
            status.is_some_and(|status| {
                status["agent"]["pid"] == pid && status["agent"]["ready"] == true
            })
        });
        (next, [from, to])
    }

    fn spawn(world: &World, options: &[&str], log: PathBuf) -> Self {
        let folder = world.folder.clone();
        let (config, admin) = (folder.join("config"), folder.join("admin.sock"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_cardinal-agent"));
        command
            .args(options)
            .arg("--config")
            .arg(&config)
            .arg("--bpffs")
            .arg(folder.join("bpf"))
            .arg("--cgroup")
            .arg(&world.cgroup)
            .arg("--state")
            .arg(folder.join("state"))
            .arg("--admin")
            .arg(&admin)
            .args(["--log-format", "json"])
            .env("RUST_LOG", "info,cardinal_agent::datapath=debug")
            .stdin(Stdio::null())
            .stdout(File::create(&log).expect("the folder is ours"))
            .stderr(File::options().append(true).open(&log).expect("just made"));
        let child = inside(&world.node, move || command.spawn()).expect("the agent was built");
        Self {
            child,
            admin,
            log,
            documents: config.join("cells.yaml"),
            number: 0,
        }
    }

    /// Waits for this of an agent that was started.
    fn serves(&mut self, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + SURELY;
        while !holds(self) {
            let ended = self.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "the agent ended: {}", self.log());
            assert!(
                Instant::now() < end,
                "the agent is not ready: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn ask(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(&self.admin).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: admin\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub(crate) fn status(&self) -> Value {
        let (code, body) = self
            .ask("/debug/status")
            .unwrap_or_else(|| panic!("the agent does not answer: {}", self.log()));
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("the status is JSON")
    }

    pub(crate) fn metrics(&self) -> String {
        let (code, body) = self.ask("/metrics").expect("the agent answers");
        assert_eq!(code, 200, "{body}");
        body
    }

    /// Waits until the status fits, and gives it.
    pub(crate) fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + SURELY;
        loop {
            let status = self.status();
            if fits(&status) {
                return status;
            }
            assert!(
                Instant::now() < end,
                "{what} does not happen; {status:#}\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Changes the documents, and waits until they are active.
    pub(crate) fn publish(&self, documents: &str) {
        let before = self.status()["config"]["digest"].clone();
        let new = self.documents.with_file_name(".new");
        fs::write(&new, documents).expect("the folder is ours");
        fs::rename(&new, &self.documents).expect("the folder is ours");
        self.wait("taking documents over", |status| {
            status["config"]["digest"] != before
        });
    }

    /// The microseconds from the kernel's message about each new interface to both of its gates.
    pub(crate) fn held_after(&self) -> Vec<u64> {
        let mut all: Vec<u64> = fs::read_to_string(&self.log)
            .expect("the log is there")
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|line| line["micros"].as_u64())
            .collect();
        all.sort_unstable();
        all
    }

    /// The end of the log.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already, which the test has said then.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a pair comes to lead from the node to a pod's namespace.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Birth {
    /// The node's end is made first.
    Node,
    /// The pod's end is made first, and the node's is its other end.
    Pod,
    /// Both ends are made on the node, and one moves.
    Moved,
}

impl Birth {
    pub(crate) const ALL: [Self; 3] = [Self::Node, Self::Pod, Self::Moved];
    /// Those after which the interface is the pod's when the kernel's lock is free again. A move keeps that lock for so long
    /// that many wait for it, and on a busy machine those who come last may be let in first.
    pub(crate) const AT_ONCE: [Self; 2] = [Self::Node, Self::Pod];
}

/// Runs lines of `ip` in one process; the namespace is `-n`'s, or none.
pub(crate) fn ip(netns: Option<&str>, lines: &[String]) {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("this test needs iproute2");
    let text = lines.join("\n") + "\n";
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(text.as_bytes()).expect("ip reads");
    drop(stdin);
    let output = child.wait_with_output().expect("ip ends");
    assert!(
        output.status.success(),
        "{lines:#?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A pod whose interface is made and removed again and again, each time in a new namespace.
pub(crate) struct Guest {
    pub(crate) netns: String,
    pub(crate) node: String,
    pub(crate) ifname: String,
}

impl Guest {
    /// A namespace without an interface yet.
    pub(crate) fn new(node: &str, netns: String, ifname: &str) -> Self {
        ip(None, &[format!("netns add {netns}")]);
        Self {
            netns,
            node: node.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    /// Makes the pair, with this index on the node if given.
    pub(crate) fn link(&self, birth: Birth, index: Option<u32>) {
        let Self {
            netns,
            node,
            ifname,
        } = self;
        let index = index
            .map(|index| format!("index {index}"))
            .unwrap_or_default();
        let host = format!("{ifname} {index} address {GATEWAY_MAC}");
        match birth {
            Birth::Node => ip(
                None,
                &[format!(
                    "link add {host} netns {node} type veth peer name eth0 netns {netns}"
                )],
            ),
            Birth::Pod => ip(
                None,
                &[format!(
                    "link add eth0 netns {netns} type veth peer name {host} netns {node}"
                )],
            ),
            Birth::Moved => ip(
                Some(node),
                &[
                    format!("link add {host} type veth peer name m-{ifname}"),
                    format!("link set m-{ifname} netns {netns} name eth0"),
                ],
            ),
        }
    }

    /// Brings the node's end up, and then the pod's with this address: what the pod sends goes at once.
    pub(crate) fn up(&self, address: Ipv4Addr) {
        let Self {
            netns,
            node,
            ifname,
        } = self;
        ip(
            Some(node),
            &[
                format!("addr add {GATEWAY}/32 dev {ifname}"),
                format!("link set {ifname} up"),
                format!("route replace {address}/32 dev {ifname}"),
            ],
        );
        ip(
            Some(netns),
            &[
                format!("addr add {address}/32 dev eth0"),
                format!("neigh add {GATEWAY} lladdr {GATEWAY_MAC} dev eth0 nud permanent"),
                "link set eth0 up".to_owned(),
                format!("route add {GATEWAY} dev eth0"),
                format!("route add default via {GATEWAY} dev eth0"),
            ],
        );
    }

    /// Removes the pair.
    pub(crate) fn unlink(&self) {
        ip(Some(&self.node), &[format!("link del {}", self.ifname)]);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Best effort, as in `World`.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.netns])
            .output();
    }
}

/// Counts datagrams by the address that they come from, until dropped.
pub(crate) struct Sink {
    seen: Arc<Mutex<BTreeMap<Ipv4Addr, (u64, Instant)>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    pub(crate) fn open(netns: &str) -> Self {
        let any: SocketAddr = (Ipv4Addr::UNSPECIFIED, PORT).into();
        let socket = inside(netns, move || UdpSocket::bind(any)).expect("the port is free");
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .expect("a time above zero");
        let (seen, end) = (
            Arc::<Mutex<BTreeMap<_, _>>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (of, ended) = (Arc::clone(&seen), Arc::clone(&end));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !ended.load(Ordering::Relaxed) {
                if let Ok((_, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) {
                    let mut seen = of.lock().unwrap_or_else(PoisonError::into_inner);
                    let now = Instant::now();
                    let (packets, last) = seen.entry(*from.ip()).or_insert((0, now));
                    *packets += 1;
                    *last = now;
                }
            }
        });
        Self {
            seen,
            end,
            thread: Some(thread),
        }
    }

    pub(crate) fn from(&self, address: Ipv4Addr) -> u64 {
        self.all().get(&address).copied().unwrap_or(0)
    }

    pub(crate) fn all(&self) -> BTreeMap<Ipv4Addr, u64> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let all = seen.iter();
        all.map(|(from, (packets, _))| (*from, *packets)).collect()
    }

    /// When the last one came from there.
    pub(crate) fn last_from(&self, address: Ipv4Addr) -> Option<Instant> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&address).map(|(_, last)| *last)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends to each address in turn as often as it can, from before there is an interface until it is ended.
pub(crate) struct Sender {
    sent: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sender {
    /// `claim` is a source address that need not be the pod's own.
    pub(crate) fn start(netns: &str, claim: Option<Ipv4Addr>, to: Vec<Ipv4Addr>) -> Self {
        Self::paced(netns, claim, to, Duration::ZERO)
    }

    /// Sends to each address in turn, and then pauses.
    pub(crate) fn paced(
        netns: &str,
        claim: Option<Ipv4Addr>,
        to: Vec<Ipv4Addr>,
        pause: Duration,
    ) -> Self {
        let socket = inside(netns, move || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            if let Some(claim) = claim {
                socket.set_ip_transparent_v4(true)?;
                socket.bind(&SocketAddr::from((claim, 0)).into())?;
            }
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(UdpSocket::from(socket))
        })
        .expect("root may");
        let (sent, end) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, ended) = (Arc::clone(&sent), Arc::clone(&end));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                for address in &to {
                    // Before there is a route nothing can be sent, and a full queue is emptied soon.
                    match socket.send_to(b"first", (*address, PORT)) {
                        Ok(_) => drop(count.fetch_add(1, Ordering::Relaxed)),
                        Err(_) => thread::yield_now(),
                    }
                }
                if !pause.is_zero() {
                    thread::sleep(pause);
                }
            }
        });
        Self {
            sent,
            end,
            thread: Some(thread),
        }
    }

    /// Ends it; gives how many packets it sent.
    pub(crate) fn end(mut self) -> u64 {
        self.stop();
        self.sent.load(Ordering::Relaxed)
    }

    fn stop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until something holds.
pub(crate) fn until(what: &str, agent: &Agent, holds: impl Fn() -> bool) {
    let end = Instant::now() + SURELY;
    while !holds() {
        assert!(
            Instant::now() < end,
            "{what} does not happen; {:#}\n{}",
            agent.status(),
            agent.log()
        );
        thread::sleep(Duration::from_millis(1));
    }
}
