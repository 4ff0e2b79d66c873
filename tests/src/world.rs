//! A world: one node with its pods, and hosts outside of it, all of them network namespaces on routed veth pairs.
//!
//! Everything that a world makes carries its id: namespaces `cdl-<id>-*`, the cgroup `cdl-<id>`, the folder
//! `/run/cardinal-world/<id>` with a bpffs of its own. So two worlds never meet, and what a crash left behind is found by
//! name and removed by whoever makes the next world. The machine's own addresses, routes and root cgroup are not touched.

mod place;
mod remains;

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result, bail};

pub use place::Place;

/// Where worlds keep their folders.
const HOME: &str = "/run/cardinal-world";
/// What the names of namespaces and cgroups start with.
const PREFIX: &str = "cdl-";

/// The node's own addresses.
pub const NODE: Addresses = Addresses {
    v4: Ipv4Addr::new(10, 80, 0, 1),
    v6: Ipv6Addr::new(0xfd00, 0x80, 0, 0, 0, 0, 0, 1),
};
/// What pods use as their gateway, as most network plugins do: link-local, the same on every link.
const POD_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const POD_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of a family.
    #[must_use]
    pub fn of(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, as every scenario wants them.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// `ipv4` or `ipv6`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "ipv4",
            Self::V6 => "ipv6",
        }
    }
}

/// A world; dropping it removes everything that it made.
#[derive(Debug)]
pub struct World {
    id: String,
    dir: PathBuf,
    cgroup: PathBuf,
    node: Place,
    /// Held for as long as the world lives: a world whose lock is free is a crashed one's remains.
    _lock: File,
}

impl World {
    /// Removes what crashed worlds left, and makes a new one with an empty node: forwarding is on, and the
    /// node's addresses are there.
    ///
    /// # Errors
    /// Not root, no cgroup2 mount, or a command failed.
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);

        if !is_root()? {
            bail!("a world of network namespaces needs root");
        }
        let id = format!(
            "{:x}{:x}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = Path::new(HOME).join(&id);
        let cgroup = cgroup2()?.join(format!("{PREFIX}{id}"));
        let lock = {
            let _makers = remains::one_maker()?;
            remains::remove_stale()?;
            fs::create_dir(&dir).with_context(|| format!("failed to make {}", dir.display()))?;
            let lock = File::create(dir.join("lock")).context("failed to make the world's lock")?;
            lock.lock().context("failed to lock the world")?;
            lock
        };
        fs::create_dir_all(cgroup.join("node/agent"))
            .with_context(|| format!("failed to make the cgroup {}", cgroup.display()))?;
        let node = Place::new(
            "node",
            format!("{PREFIX}{id}-node"),
            cgroup.join("node/agent"),
        );
        // From here on a failure drops the world, which removes what is there.
        let world = Self {
            id,
            dir,
            cgroup,
            node,
            _lock: lock,
        };
        world.build_node()?;
        Ok(world)
    }

    fn build_node(&self) -> Result<()> {
        let bpffs = self.bpffs();
        fs::create_dir_all(&bpffs)?;
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs))?;
        self.node.make()?;
        self.node.shell(
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
             echo 0 > /proc/sys/net/ipv4/conf/default/rp_filter
             echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter",
        )?;
        self.node_addresses(&[NODE])
    }

    /// Gives the node more addresses, such as those of its gateways.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn node_addresses(&self, addresses: &[Addresses]) -> Result<()> {
        let mut batch = String::new();
        for address in addresses {
            batch += &format!(
                "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n",
                address.v4, address.v6
            );
        }
        self.node.ip(&batch)
    }

    /// Makes a pod of the node: a namespace with the two addresses on `eth0`, its peer `v-<name>` in the node, host
    /// routes to it, and a resolver file that names the DNS servers.
    ///
    /// # Errors
    /// A command failed, or the name is too long for an interface.
    pub fn pod(&self, name: &str, addresses: Addresses, dns: &[IpAddr]) -> Result<Place> {
        let host = format!("v-{name}");
        if host.len() > 15 {
            bail!("`{host}` is longer than the 15 bytes of an interface's name");
        }
        let cgroup = self.cgroup.join("node/pods").join(name);
        fs::create_dir_all(&cgroup)
            .with_context(|| format!("failed to make the cgroup {}", cgroup.display()))?;
        let mut pod = Place::new(name, format!("{PREFIX}{}-{name}", self.id), cgroup);
        pod.make()?;
        pod.ip("link set lo up\n")?;
        let Addresses { v4, v6 } = addresses;
        self.node.ip(&format!(
            "link add {host} type veth peer name eth0 netns {}\n\
             addr add {POD_GATEWAY_V4}/32 dev {host} scope link\n\
             link set {host} addrgenmode none\n\
             addr add {POD_GATEWAY_V6}/64 dev {host} nodad\n\
             link set {host} up\n",
            pod.netns()
        ))?;
        pod.ip(&format!(
            "addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {POD_GATEWAY_V4} dev eth0 scope link\n\
             route add default via {POD_GATEWAY_V4} dev eth0 onlink\n\
             route add default via {POD_GATEWAY_V6} dev eth0 onlink\n"
        ))?;
        self.node.ip(&format!(
            "route add {v4}/32 dev {host} src {}\nroute add {v6}/128 dev {host} src {}\n",
            NODE.v4, NODE.v6
        ))?;
        if !dns.is_empty() {
            let file = self.dir.join(format!("resolv-{name}"));
            let text: String = dns
                .iter()
                .map(|server| format!("nameserver {server}\n"))
                .collect();
            fs::write(&file, text + "options timeout:5 attempts:3\n")?;
            pod.set_resolver(file);
        }
        pod.wait_for_addresses()?;
        Ok(pod)
    }

    /// Makes a host outside of the node: a namespace on a link of its own. The first two addresses are the link's (a /24 and a
    /// /64, whose host number 1 is the node), `more` are further ones that the node routes there.
    ///
    /// # Errors
    /// A command failed.
    pub fn outside(&self, name: &str, addresses: Addresses, more: &[IpAddr]) -> Result<Place> {
        let cgroup = self.cgroup.join("outside").join(name);
        fs::create_dir_all(&cgroup)
            .with_context(|| format!("failed to make the cgroup {}", cgroup.display()))?;
        let host = Place::new(name, format!("{PREFIX}{}-{name}", self.id), cgroup);
        host.make()?;
        let [a, b, c, _] = addresses.v4.octets();
        let near_v4 = Ipv4Addr::new(a, b, c, 1);
        let mut near = addresses.v6.segments();
        near[4..].copy_from_slice(&[0, 0, 0, 1]);
        let near_v6 = Ipv6Addr::from(near);
        self.node.ip(&format!(
            "link add up-{name} type veth peer name eth0 netns {}\n\
             addr add {near_v4}/24 dev up-{name}\n\
             addr add {near_v6}/64 dev up-{name} nodad\n\
             link set up-{name} up\n",
            host.netns()
        ))?;
        let mut far = format!(
            "link set lo up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {near_v4}\n\
             route add default via {near_v6}\n",
            addresses.v4, addresses.v6
        );
        let mut near = String::new();
        for address in more {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let nodad = if address.is_ipv4() { "" } else { " nodad" };
            let via = addresses.of(if address.is_ipv4() {
                Family::V4
            } else {
                Family::V6
            });
            far += &format!("addr add {address}/{bits} dev lo{nodad}\n");
            near += &format!("route add {address}/{bits} via {via}\n");
        }
        host.ip(&far)?;
        self.node.ip(&near)?;
        host.wait_for_addresses()?;
        Ok(host)
    }

    /// The node: where the agent runs.
    #[must_use]
    pub fn node(&self) -> &Place {
        &self.node
    }

    /// The id that is part of every name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The world's folder, for whatever is made at run time.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The world's own bpffs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// The cgroup of everything on the node.
    #[must_use]
    pub fn node_cgroup(&self) -> PathBuf {
        self.cgroup.join("node")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Err(error) = remains::remove(&self.id) {
            eprintln!("failed to remove the world {}: {error:#}", self.id);
        }
    }
}

pub(crate) fn is_root() -> Result<bool> {
    let status =
        fs::read_to_string("/proc/self/status").context("failed to read /proc/self/status")?;
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .and_then(|uids| uids.split_whitespace().nth(1));
    Ok(uid == Some("0"))
}

/// Where cgroup2 is mounted, on its own or beside version 1.
fn cgroup2() -> Result<PathBuf> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("failed to read /proc/self/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Runs a command to its end, quietly; its words are the error's.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command to its end, and gives what it printed.
///
/// # Errors
/// It cannot be started, or fails; the message has its words.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("failed to start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} printed no UTF-8"))
}
