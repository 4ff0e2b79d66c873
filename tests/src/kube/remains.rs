//! What is on a node: addresses, rules, routes, filters, programs at its interfaces, cgroups and network namespace, pins and files.
//!
//! One line for each thing, so that two looks at a node can be compared. Programs are asked for where they can be attached
//! (`BPF_PROG_QUERY`), since a list of all programs of the machine would show those of other nodes.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use aya_obj::generated::{bpf_attach_type as At, bpf_attr, bpf_cmd};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use super::{World, pods::HIERARCHIES};
use crate::world::output;

/// Where programs about sockets can be attached in a cgroup.
const OF_CGROUPS: [(&str, At); 12] = [
    ("connect4", At::BPF_CGROUP_INET4_CONNECT),
    ("connect6", At::BPF_CGROUP_INET6_CONNECT),
    ("sendmsg4", At::BPF_CGROUP_UDP4_SENDMSG),
    ("sendmsg6", At::BPF_CGROUP_UDP6_SENDMSG),
    ("recvmsg4", At::BPF_CGROUP_UDP4_RECVMSG),
    ("recvmsg6", At::BPF_CGROUP_UDP6_RECVMSG),
    ("getpeername4", At::BPF_CGROUP_INET4_GETPEERNAME),
    ("getpeername6", At::BPF_CGROUP_INET6_GETPEERNAME),
    ("sock_release", At::BPF_CGROUP_INET_SOCK_RELEASE),
    ("ingress", At::BPF_CGROUP_INET_INGRESS),
    ("egress", At::BPF_CGROUP_INET_EGRESS),
    ("sock_ops", At::BPF_CGROUP_SOCK_OPS),
];

/// Folders of a node that an agent's files are in.
const FOLDERS: [&str; 2] = ["var/lib/cardinal", "run/cardinal"];

impl World {
    /// Everything on a node that an agent can change, a line for each.
    ///
    /// # Errors
    /// The node is not there, or a tool is missing.
    pub fn remains(&self, node: &str) -> Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        let ip = |words: &str| -> Result<String> {
            let mut ip = self.on_node(node, "ip");
            output(ip.args(words.split_whitespace()))
        };
        for words in [
            "-oneline -details link show",
            "-oneline address show",
            "-4 rule show",
            "-6 rule show",
            "-4 route show table all",
            "-6 route show table all",
        ] {
            found.extend(ip(words)?.lines().map(|line| format!("ip {words}: {line}")));
        }
        let links: Value = serde_json::from_str(&ip("-json link show")?)?;
        let links = links.as_array().context("no list of interfaces")?;
        let mut interfaces = Vec::new();
        for link in links {
            let name = link["ifname"]
                .as_str()
                .context("an interface has no name")?;
            let index = link["ifindex"].as_u64();
            interfaces.push((name, u32::try_from(index.context("it has no index")?)?));
            for way in ["ingress", "egress"] {
                let mut tc = self.on_node(node, "tc");
                let filters = output(tc.args(["filter", "show", "dev", name, way]))?;
                found.extend(filters.lines().map(|line| format!("{name} {way}: {line}")));
            }
        }
        let mut tc = self.on_node(node, "tc");
        let qdiscs = output(tc.args(["qdisc", "show"]))?;
        found.extend(qdiscs.lines().map(|line| format!("tc {line}")));

        found.extend(self.programs(node, &interfaces)?);
        let home = self.state().join("nodes").join(node);
        let mut files = Vec::new();
        walk(&home.join("bpf"), &mut files)?;
        for folder in FOLDERS {
            let folder = home.join("root").join(folder);
            if folder.exists() {
                files.push(folder.clone());
                walk(&folder, &mut files)?;
            }
        }
        found.extend(files.iter().map(|file| file.display().to_string()));
        Ok(found)
    }

    /// Programs that are attached on a node, but for those of filters.
    fn programs(&self, node: &str, interfaces: &[(&str, u32)]) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut add = |place: String, count: io::Result<u32>| -> Result<()> {
            let count = count.with_context(|| format!("failed to ask for programs of {place}"))?;
            if count > 0 {
                found.push(format!("{count} programs at {place}"));
            }
            Ok(())
        };
        let groups = HIERARCHIES.map(|one| Path::new(one).join(self.name()).join(node));
        let group = groups.into_iter().find(|group| group.is_dir());
        let group = group.context("the node has no cgroup")?;
        let mut all = vec![group.clone()];
        walk(&group, &mut all)?;
        for group in all.iter().filter(|group| group.is_dir()) {
            // A container that ends takes its group along.
            let Ok(folder) = File::open(group) else {
                continue;
            };
            for (name, hook) in OF_CGROUPS {
                let target = u32::try_from(folder.as_raw_fd())?;
                add(
                    format!("{name} of {}", group.display()),
                    query(target, hook),
                )?;
            }
        }

        let namespace = File::open(format!("/run/netns/{}.{node}", self.name()))?;
        let target = u32::try_from(namespace.as_raw_fd())?;
        add("sk_lookup".to_owned(), query(target, At::BPF_SK_LOOKUP))?;
        // Indices of interfaces are those of the namespace of the thread that asks.
        let asked = thread::scope(|scope| {
            let asks = || -> Result<Vec<_>> {
                setns(&namespace, CloneFlags::CLONE_NEWNET)
                    .context("failed to enter a node's network namespace")?;
                let hooks = [
                    ("tcx ingress", At::BPF_TCX_INGRESS),
                    ("tcx egress", At::BPF_TCX_EGRESS),
                ];
                let both = interfaces
                    .iter()
                    .flat_map(|interface| hooks.map(|hook| (interface, hook)));
                Ok(both
                    .map(|((name, index), (word, hook))| {
                        (format!("{word} of {name}"), query(*index, hook))
                    })
                    .collect())
            };
            scope.spawn(asks).join()
        });
        let asked = asked.map_err(|_| anyhow::anyhow!("the thread that asks has failed"))??;
        for (place, count) in asked {
            // Kernels before 6.6 have no tcx.
            if count
                .as_ref()
                .is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL))
            {
                continue;
            }
            add(place, count)?;
        }
        Ok(found)
    }
}

/// How many programs are attached to a descriptor or an interface.
fn query(target: u32, hook: At) -> io::Result<u32> {
    // SAFETY: a union of structures of integers.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    attributes.query.__bindgen_anon_1.target_fd = target;
    attributes.query.attach_type = hook as u32;
    // SAFETY: the attributes are initialised and as long as told, and point to nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(bpf_cmd::BPF_PROG_QUERY as u32),
            std::ptr::from_mut(&mut attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written the number.
    Ok(unsafe { attributes.query.__bindgen_anon_2.prog_cnt })
}

/// Everything below a folder.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("failed to list {}", folder.display()))?
    {
        let entry = entry?;
        let path = entry.path();
        found.push(path.clone());
        if entry.file_type()?.is_dir() {
            walk(&path, found)?;
        }
    }
    Ok(())
}

/// Fails with what one look at a node shows and the other does not.
///
/// # Errors
/// They differ.
pub fn same(node: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) -> Result<()> {
    let list = |lines: Vec<&String>| {
        let lines = lines.into_iter().map(|line| format!("\n  {line}"));
        lines.collect::<String>()
    };
    let left = list(after.difference(before).collect());
    let missing = list(before.difference(after).collect());
    ensure!(
        left.is_empty() && missing.is_empty(),
        "{node} is not as it was before.\nleft:{left}\nmissing:{missing}"
    );
    Ok(())
}
