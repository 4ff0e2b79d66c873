//! A node and its pods, each a network namespace of this test alone, with routed veth pairs. Everything is removed on
//! drop. The machine's own namespace, addresses and root cgroup are never touched.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use agent_common::{Control, Event, Identity};
use aya::maps::MapData;
use cardinal_agent::datapath::{
    Datapath, DatapathConfig, EventReader, Flipped, GateHook, KernelTables, Network, Owner, Pod,
};
use nix::sched::{CloneFlags, setns};

/// Longer than the kernel's answer takes on this path, shorter than a retransmitted SYN. What a process answers may take longer
/// on a busy machine.
pub(crate) const SOON: Duration = Duration::from_millis(700);
/// Longer than anything takes that must come.
pub(crate) const SURELY: Duration = Duration::from_secs(60);

/// The hardware address of the node's end of each pair.
pub(crate) const NODE_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// The hardware address of each pod's end: no two pods share a link.
pub(crate) const POD_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A pod of the world.
#[derive(Clone, Debug)]
pub(crate) struct TestPod {
    pub(crate) netns: String,
    pub(crate) ifname: String,
    pub(crate) ifindex: u32,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

/// A node with pods.
pub(crate) struct World {
    id: String,
    pub(crate) node: String,
    pub(crate) pods: Vec<TestPod>,
    pub(crate) folder: PathBuf,
    pub(crate) cgroup: PathBuf,
}

fn run(line: &str) -> Vec<u8> {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a command has a name");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("cannot run `{line}`: {error} (this test needs iproute2)"));
    assert!(
        output.status.success(),
        "`{line}` failed: {} (this test needs root)",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Runs something on a thread inside a network namespace.
pub(crate) fn inside<T: Send + 'static>(
    netns: &str,
    what: impl FnOnce() -> T + Send + 'static,
) -> T {
    let file = File::open(format!("/run/netns/{netns}")).expect("the namespace exists");
    thread::spawn(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter its own namespaces");
        what()
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

impl World {
    /// A node with `count` pods: pod n has 10.77.0.n and fd77::n.
    pub(crate) fn new(count: u8) -> Self {
        let id = format!(
            "{:x}{:x}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut world = Self {
            node: format!("cdt-{id}-node"),
            pods: Vec::new(),
            folder: PathBuf::from(format!("/run/cardinal-test-{id}")),
            cgroup: cgroup2().join(format!("cardinal-test-{id}")),
            id,
        };
        fs::create_dir_all(&world.folder).expect("/run is writable for root");
        fs::create_dir(&world.cgroup).expect("cgroup2 is writable for root");
        let node = world.node.clone();
        run(&format!("ip netns add {node}"));
        run(&format!("ip -n {node} link set lo up"));
        for (key, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv6/conf/default/accept_dad", "0"),
        ] {
            inside(&node, move || fs::write(format!("/proc/sys/{key}"), value))
                .expect("a namespace's own settings");
        }
        for n in 1..=count {
            world.add_pod(n);
        }
        world
    }

    /// Adds pod `n`.
    pub(crate) fn add_pod(&mut self, n: u8) -> TestPod {
        let (node, netns, ifname) = (
            self.node.clone(),
            format!("cdt-{}-p{n}", self.id),
            format!("p{n}-{}", &self.id[self.id.len().min(2)..]),
        );
        let (v4, v6) = (format!("10.77.0.{n}"), format!("fd77::{n}"));
        run(&format!("ip netns add {netns}"));
        run(&format!(
            "ip link add {ifname} netns {node} type veth peer name eth0 netns {netns}"
        ));
        for (netns, interface, mac) in [(&node, &*ifname, NODE_MAC), (&netns, "eth0", POD_MAC)] {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            run(&format!("ip -n {netns} link set {interface} address {mac}"));
        }
        run(&format!(
            "ip -n {node} addr add 169.254.1.1/32 dev {ifname}"
        ));
        run(&format!(
            "ip -n {node} addr add fe80::1/64 dev {ifname} nodad"
        ));
        run(&format!("ip -n {node} link set {ifname} up"));
        run(&format!("ip -n {netns} link set lo up"));
        run(&format!("ip -n {netns} addr add {v4}/32 dev eth0"));
        run(&format!("ip -n {netns} addr add {v6}/128 dev eth0 nodad"));
        run(&format!("ip -n {netns} link set eth0 up"));
        run(&format!("ip -n {netns} route add 169.254.1.1 dev eth0"));
        run(&format!(
            "ip -n {netns} route add default via 169.254.1.1 dev eth0"
        ));
        run(&format!(
            "ip -n {netns} -6 route add default via fe80::1 dev eth0"
        ));
        run(&format!("ip -n {node} route add {v4}/32 dev {ifname}"));
        run(&format!("ip -n {node} -6 route add {v6}/128 dev {ifname}"));
        let name = ifname.clone();
        let ifindex = inside(&node, move || nix::net::if_::if_nametoindex(name.as_str()))
            .expect("the veth exists");
        let pod = TestPod {
            netns,
            ifname,
            ifindex,
            v4: v4.parse().expect("an address"),
            v6: v6.parse().expect("an address"),
        };
        self.pods.push(pod.clone());
        pod
    }

    /// Adds an address to a pod's interface without telling anybody.
    pub(crate) fn claim(&self, pod: usize, address: &str) {
        let family = if address.contains(':') { "nodad" } else { "" };
        run(&format!(
            "ip -n {} addr add {address} dev eth0 {family}",
            self.pods[pod].netns
        ));
    }

    /// Deletes a pod's interface pair, as the end of a pod does.
    pub(crate) fn remove_interface(&self, pod: usize) {
        run(&format!(
            "ip -n {} link del {}",
            self.node, self.pods[pod].ifname
        ));
    }

    /// Runs a command on the node; gives what it prints.
    pub(crate) fn on_node(&self, line: &str) -> String {
        let output = run(&format!("ip netns exec {} {line}", self.node));
        String::from_utf8_lossy(&output).into_owned()
    }

    /// Gives the node an address.
    pub(crate) fn node_address(&self, address: &str) {
        let family = if address.contains(':') { "nodad" } else { "" };
        run(&format!(
            "ip -n {} addr add {address} dev lo {family}",
            self.node
        ));
    }

    /// Ends the node and its pods, and leaves its files.
    pub(crate) fn remove_namespaces(&self) {
        for netns in self.pods.iter().map(|pod| &pod.netns).chain([&self.node]) {
            run(&format!("ip netns del {netns}"));
        }
    }

    /// The folder in which the datapath pins its maps.
    pub(crate) fn maps(&self) -> PathBuf {
        let schema = Control::SCHEMA;
        self.folder.join(format!("bpf/maps_{schema}"))
    }

    /// A map that the datapath has pinned.
    pub(crate) fn pinned(&self, name: &str) -> MapData {
        MapData::from_pin(self.maps().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub(crate) fn config(&self, gate_hook: GateHook) -> DatapathConfig {
        DatapathConfig {
            bpffs: self.folder.join("bpf"),
            cgroup: Some(self.cgroup.clone()),
            gate_hook,
            object: None,
            pick_up: Duration::ZERO,
        }
    }

    /// Opens the datapath on the node.
    pub(crate) fn open(&self) -> Datapath {
        self.try_open(GateHook::Auto)
            .unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    pub(crate) fn try_open(
        &self,
        hook: GateHook,
    ) -> Result<Datapath, cardinal_agent::datapath::Error> {
        let config = self.config(hook);
        inside(&self.node, move || {
            let end = Instant::now() + Duration::from_secs(5);
            loop {
                match Datapath::open(&config) {
                    // A child that another test just forked has its descriptors for a moment longer than this process.
                    Err(cardinal_agent::datapath::Error::AlreadyRunning { .. })
                        if Instant::now() < end =>
                    {
                        thread::sleep(Duration::from_millis(20));
                    }
                    opened => break opened,
                }
            }
        })
    }

    /// Prepares and flips a generation on the node.
    pub(crate) fn activate(&self, datapath: &Datapath, tables: KernelTables) -> Flipped {
        let datapath = datapath.clone();
        inside(&self.node, move || {
            let prepared = datapath
                .prepare(&tables)
                .unwrap_or_else(|error| panic!("{}", chain(&error)));
            prepared
                .flip()
                .unwrap_or_else(|error| panic!("{}", chain(&error)))
        })
    }

    /// Tables in which pod n runs component n of cell `cells[n]`, and nothing is allowed yet.
    pub(crate) fn tables(&self, generation: u32, cells: &[u32]) -> KernelTables {
        let mut tables = KernelTables {
            generation,
            ..KernelTables::default()
        };
        for any in [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ] {
            tables.identities.insert(
                Network::new(any, 0),
                Owner {
                    identity: Identity::WORLD,
                    ifindex: 0,
                    cell: 0,
                },
            );
        }
        for (number, (pod, cell)) in (1..).zip(self.pods.iter().zip(cells)) {
            let identity = Identity::component(number);
            for address in [pod.v4, pod.v6] {
                tables.identities.insert(
                    Network::host(address),
                    Owner {
                        identity,
                        ifindex: pod.ifindex,
                        cell: *cell,
                    },
                );
            }
            tables.policies.insert(identity, Default::default());
            tables.endpoints.insert(
                pod.ifindex,
                Pod {
                    ifname: pod.ifname.clone(),
                    identity,
                    cell: *cell,
                    whole: None,
                    lookups: agent_common::Lookups::default(),
                    mac: POD_MAC,
                },
            );
            tables.cells.insert(*cell, format!("cell-{cell}"));
        }
        tables
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Best effort: a test that failed half-way has made half of it, and a panic here would hide its message.
        let _ = nix::mount::umount2(&self.folder.join("bpf"), nix::mount::MntFlags::MNT_DETACH);
        for netns in self.pods.iter().map(|pod| &pod.netns).chain([&self.node]) {
            let _ = Command::new("ip").args(["netns", "del", netns]).output();
        }
        let _ = fs::remove_dir(&self.cgroup);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .map(|fields| PathBuf::from(fields[1]))
        .expect("this test needs a cgroup2 mount")
}

pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A TCP server that answers each connection with the client's address, until dropped with the process' thread.
pub(crate) fn echo_tcp(netns: &str, address: SocketAddr) {
    let listener =
        inside(netns, move || TcpListener::bind(address)).expect("the address is the pod's own");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut buffer = [0; 256];
                while let Ok(length) = stream.read(&mut buffer) {
                    if length == 0 || stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// A UDP server that sends each datagram back.
pub(crate) fn echo_udp(netns: &str, address: SocketAddr) {
    let socket =
        inside(netns, move || UdpSocket::bind(address)).expect("the address is the pod's own");
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if socket.send_to(&buffer[..length], from).is_err() {
                return;
            }
        }
    });
}

/// Connects from a namespace.
pub(crate) fn connect(netns: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    inside(netns, move || TcpStream::connect_timeout(&to, SOON))
}

/// Whether a message comes back through an open connection. The kernel of the other side acknowledges it soon or never; who is
/// to answer it has its time.
pub(crate) fn talks(stream: &mut TcpStream) -> bool {
    let patient = |time| {
        stream
            .set_read_timeout(Some(time))
            .expect("a time above zero");
    };
    patient(SOON);
    if (&*stream).write_all(b"hello").is_err() {
        return false;
    }
    let mut first = [0; 1];
    let answered = match (&*stream).read(&mut first) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            patient(SURELY);
            unacknowledged(stream) == 0 && (&*stream).read(&mut first).is_ok()
        }
        read => read.is_ok(),
    };
    let mut rest = [0; 4];
    patient(SURELY);
    answered && first == *b"h" && stream.read_exact(&mut rest).is_ok() && rest == *b"ello"
}

/// Bytes that the other side's kernel has not acknowledged (`SIOCOUTQ`, tcp(7)).
fn unacknowledged(stream: &TcpStream) -> i32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one integer, which outlives the call.
    let failed = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(failed, 0, "{}", std::io::Error::last_os_error());
    bytes
}

/// Whether a TCP connection from a namespace carries bytes both ways.
pub(crate) fn tcp(netns: &str, to: SocketAddr) -> bool {
    connect(netns, to).is_ok_and(|mut stream| talks(&mut stream))
}

/// Whether a datagram of `size` bytes from a namespace comes back, as it must.
pub(crate) fn udp(netns: &str, to: SocketAddr, size: usize) -> bool {
    udp_within(SURELY, netns, to, size)
}

/// Whether a datagram from a namespace stays without an answer, as it must.
pub(crate) fn udp_is_lost(netns: &str, to: SocketAddr, size: usize) -> bool {
    !udp_within(SOON, netns, to, size)
}

fn udp_within(time: Duration, netns: &str, to: SocketAddr, size: usize) -> bool {
    inside(netns, move || {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
            .parse()
            .expect("an address");
        let socket = UdpSocket::bind(any).expect("any address is free");
        socket
            .set_read_timeout(Some(time))
            .expect("a time above zero");
        let message = vec![7; size];
        let mut buffer = vec![0; size + 1];
        socket.send_to(&message, to).is_ok()
            && socket.recv(&mut buffer).is_ok_and(|length| length == size)
    })
}

/// Waits until something holds.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let end = Instant::now() + SURELY;
    while !holds() {
        assert!(Instant::now() < end, "{what}: never");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Waits for an event that fits, and fails with all others if none comes.
pub(crate) fn wait_event(
    reader: &mut EventReader,
    what: &str,
    fits: impl Fn(&Event) -> bool,
) -> Event {
    let end = Instant::now() + SURELY;
    let mut others = Vec::new();
    while Instant::now() < end {
        match reader.try_next() {
            Some(event) if fits(&event) => return event,
            Some(event) => others.push(event),
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
    panic!("no event: {what}; others: {others:#?}");
}

/// Runs something in a child process that is a member of the world's cgroup and inside a namespace; its answer is text.
/// Hooks of processes go by the cgroup in which a socket was made, which a thread shares with its process.
pub(crate) fn in_cgroup(world: &World, netns: &str, what: impl FnOnce() -> String) -> String {
    let (mut reader, mut writer) = std::io::pipe().expect("a pipe");
    let netns = File::open(format!("/run/netns/{netns}")).expect("the namespace exists");
    // SAFETY: the child only makes system calls and allocates (glibc keeps its allocator usable after fork), and ends
    // by `_exit` without running what other threads registered.
    match unsafe { libc::fork() } {
        0 => {
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                fs::write(
                    world.cgroup.join("cgroup.procs"),
                    std::process::id().to_string(),
                )
                .expect("the cgroup is ours");
                setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)
                    .expect("root may enter its own namespaces");
                what()
            }))
            .unwrap_or_else(|_| "the child panicked".into());
            let _ = writer.write_all(answer.as_bytes());
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(0) }
        }
        child if child > 0 => {
            drop(writer);
            let mut answer = String::new();
            reader
                .read_to_string(&mut answer)
                .expect("the child writes text");
            let mut status = 0;
            // SAFETY: waits for the child made above.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            answer
        }
        _ => panic!("fork: {}", std::io::Error::last_os_error()),
    }
}

/// Where a child of `in_cgroup` reports to.
pub(crate) fn report(result: std::io::Result<String>) -> String {
    result.unwrap_or_else(|error| format!("{:?}", error.kind()))
}
