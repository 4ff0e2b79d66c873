//! Errors of a node that lacks something, and what they say: the real program, in a network and mount namespace of its own that really
//! lacks it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const AGENT: &str = env!("CARGO_BIN_EXE_cardinal-agent");

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: front }\nspec:\n  gatewayClassName: cardinal\n  \
                       addresses: [{ type: IPAddress, value: 192.0.2.1 }]\n  listeners: [{ name: http, port: 80, protocol: HTTP }]\n";

/// A folder, a cgroup and namespaces for agents; all of them end with it.
struct Node {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    agents: Vec<Child>,
}

impl Node {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("config")).expect("folder");
        fs::write(folder.path().join("config/a.yaml"), GATEWAY).expect("document");
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .map(|fields| PathBuf::from(fields[1]))
            .expect("a cgroup2 hierarchy is mounted");
        let cgroup = root.join(format!("cardinal-errors-{name}-{}", std::process::id()));
        fs::create_dir(&cgroup).expect("cgroup");
        Self {
            folder,
            cgroup,
            agents: Vec::new(),
        }
    }

    /// Runs `prepare`, then an agent with `options` besides those that give it roots of its own.
    fn command(&self, prepare: &str, state: &str, options: &[&str]) -> Command {
        let folder = self.folder.path().display();
        let cgroup = self.cgroup.display();
        let mut script = format!(
            "set -e\n{prepare}\nexec {AGENT} --config {folder}/config --threads 1 --drain 0 --state {folder}/{state} --admin {folder}/{state}.sock"
        );
        if !options.contains(&"--bpffs") {
            script.push_str(&format!(" --bpffs {folder}/bpf"));
        }
        if !options.contains(&"--cgroup") {
            script.push_str(&format!(" --cgroup {cgroup}"));
        }
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--net",
                "sh",
                "-c",
                &format!("{script} \"$@\""),
                "agent",
            ])
            .args(options);
        command
    }

    fn refused(&self, prepare: &str, options: &[&str]) -> String {
        let output: Output = self
            .command(prepare, "state", options)
            .output()
            .expect("agent runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            drop(agent.kill());
            drop(agent.wait());
        }
        fs::remove_dir(&self.cgroup).expect("cgroup is removed");
    }
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in\n{text}");
    }
}

#[test]
fn netns_a_kernel_without_type_information_is_named() {
    let text = Node::new("btf").refused("mount -t tmpfs none /sys/kernel/btf", &[]);
    assert_says(
        &text,
        &[
            "/sys/kernel/btf/vmlinux is missing",
            "CONFIG_DEBUG_INFO_BTF",
            "--datapath none",
        ],
    );
}

#[test]
fn netns_a_kernel_that_is_too_old_is_named_with_what_it_lacks() {
    let node = Node::new("old");
    fs::write(node.folder.path().join("release"), "4.19.0-27-amd64\n").expect("file");
    let prepare = format!(
        "mount --bind {}/release /proc/sys/kernel/osrelease",
        node.folder.path().display()
    );
    assert_says(
        &node.refused(&prepare, &[]),
        &["kernel 4.19.0-27-amd64 is too old", "5.10", "it lacks"],
    );
}

#[test]
fn netns_a_missing_capability_is_named() {
    let node = Node::new("cap");
    let mut command = Command::new("setpriv");
    command
        .args([
            "--bounding-set=-bpf,-sys_admin",
            "--inh-caps=-bpf,-sys_admin",
            AGENT,
            "--config",
        ])
        .arg(node.folder.path().join("config"));
    command.arg("--state").arg(node.folder.path().join("state"));
    let output = command.output().expect("agent runs");
    assert_says(
        &String::from_utf8_lossy(&output.stderr),
        &["missing CAP_BPF: run as root"],
    );
}

/// Runs `preflight` on a bpffs that only it sees, and lists what is on that afterwards. `mode` is the file system's; without the
/// capability to pass by it, as where a security module watches, it binds root too.
fn preflight(name: &str, mode: &str) -> (String, String) {
    let node = Node::new(name);
    let script = format!(
        "set -e\nmount -t bpf -o mode={mode} bpf \"$1\"\nsetpriv --bounding-set=-dac_override --inh-caps=-dac_override \
         {AGENT} preflight --bpffs \"$1/cardinal\" --cgroup {} || true\nls -A \"$1\" >&2",
        node.cgroup.display()
    );
    let output = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", &script, "preflight"])
        .arg(node.folder.path())
        .output()
        .expect("preflight runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, left) = (text(&output.stdout), text(&output.stderr));
    let mut said = said.lines();
    let bpffs = said.find(|line| line.split_whitespace().nth(1) == Some("bpffs"));
    (bpffs.expect("bpffs is a finding").to_owned(), left)
}

#[test]
fn netns_preflight_pins_on_the_bpffs_and_leaves_nothing_there() {
    let (said, left) = preflight("pins", "0700");
    assert!(said.starts_with("ok"), "{said}");
    assert!(!left.contains("preflight_"), "{left}");
}

#[test]
fn netns_preflight_names_what_may_keep_it_from_pinning() {
    let (said, left) = preflight("denied", "0500");
    assert!(said.starts_with("LACKS"), "{said}");
    assert_says(&said, &["failed to create", "AppArmor", "SELinux"]);
    assert!(!left.contains("preflight_"), "{left}");
}

#[test]
fn netns_a_missing_bpffs_is_mounted_and_a_place_that_cannot_have_one_is_named() {
    let node = Node::new("bpffs");
    assert_says(
        &node.refused("", &["--bpffs", "/proc/cardinal"]),
        &["/proc/cardinal"],
    );
    let mut agent = node
        .command("ip link set lo up", "state", &[])
        .stderr(Stdio::null())
        .spawn()
        .expect("agent runs");
    wait_for(&node.folder.path().join("state.sock"));
    // The mount is in the agent's own mount namespace.
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", agent.id())).expect("mounts");
    let place = format!("{}/bpf bpf ", node.folder.path().display());
    drop(agent.kill());
    drop(agent.wait());
    assert!(mounts.contains(&place), "{mounts}");
}

#[test]
fn netns_a_folder_that_is_no_cgroup_is_named() {
    let text = Node::new("cgroup").refused("", &["--cgroup", "/tmp"]);
    assert_says(&text, &["/tmp is not a folder of a cgroup2 file system"]);
}

#[test]
fn netns_a_second_agent_on_the_node_is_told_about_the_first() {
    let mut node = Node::new("second");
    let first = node
        .command("ip link set lo up", "first", &[])
        .stderr(Stdio::null())
        .spawn()
        .expect("agent runs");
    let pid = first.id().to_string();
    node.agents.push(first);
    wait_for(&node.folder.path().join("first.sock"));
    let second = Command::new("nsenter")
        .args(["--target", &pid, "--net", AGENT, "--config"])
        .arg(node.folder.path().join("config"))
        .arg("--state")
        .arg(node.folder.path().join("second"))
        .arg("--bpffs")
        .arg(node.folder.path().join("bpf2"))
        .output()
        .expect("agent runs");
    assert!(!second.status.success());
    assert_says(
        &String::from_utf8_lossy(&second.stderr),
        &[&format!("another agent (process {pid}) runs on this node")],
    );
}

fn wait_for(socket: &Path) {
    let end = Instant::now() + Duration::from_secs(60);
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < end, "{} did not appear", socket.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}
