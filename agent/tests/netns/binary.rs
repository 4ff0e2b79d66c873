//! The real program on a world's node: running, and asked.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::world::World;

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_cardinal-agent");

/// Longer than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// An agent of a world; it is killed with this value.
pub(crate) struct Agent<'a> {
    world: &'a World,
    child: Option<Child>,
}

/// The program with these words, inside the node's network namespace and this process' mounts.
pub(crate) fn program(world: &World, words: &[&str]) -> Command {
    let netns =
        File::open(format!("/run/netns/{}", world.node)).expect("the node's namespace exists");
    let mut command = Command::new(AGENT);
    command.args(words);
    // SAFETY: the closure makes one system call on a descriptor that it owns, between fork and exec.
    unsafe {
        command.pre_exec(move || {
            debug_assert!(netns.as_raw_fd() >= 0);
            nix::sched::setns(netns.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(std::io::Error::from)
        });
    }
    command
}

/// Runs the program to its end.
pub(crate) fn run(world: &World, words: &[&str]) -> Output {
    program(world, words)
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

pub(crate) fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until something is there.
pub(crate) fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl<'a> Agent<'a> {
    /// Writes the documents and starts an agent on them.
    pub(crate) fn start(world: &'a World, documents: &[(&str, &str)]) -> Self {
        for (name, text) in documents {
            document(world, "config", name, text);
        }
        let mut agent = Self { world, child: None };
        agent.again();
        agent
    }

    /// Starts it, after it was killed.
    pub(crate) fn again(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.world.folder.join("log"))
            .expect("the folder is ours");
        let path = |name: &str| self.world.folder.join(name).display().to_string();
        let mut command = program(self.world, &[]);
        command
            .args(["--config", &path("config")])
            .args(["--bpffs", &path("bpf")])
            .args(["--cgroup", &self.world.cgroup.display().to_string()])
            .args(["--state", &path("state")])
            .args(["--admin", &path("admin.sock")])
            .args(["--threads", "1", "--drain", "0"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        self.child = Some(command.spawn().expect("the agent starts"));
        let end = Instant::now() + PATIENCE;
        while !self.is_ready() {
            assert!(Instant::now() < end, "not ready; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_ready(&self) -> bool {
        matches!(self.ask("/readyz"), Some((200, _)))
    }

    pub(crate) fn admin(&self) -> PathBuf {
        self.world.folder.join("admin.sock")
    }

    /// Status and body of a path of the admin socket; none while nobody answers.
    pub(crate) fn ask(&self, path: &str) -> Option<(u16, String)> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        let (status, body) = runtime
            .block_on(cardinal_agent::admin::get(&self.admin(), path))
            .ok()?;
        Some((status.as_u16(), String::from_utf8_lossy(&body).into_owned()))
    }

    pub(crate) fn status(&self) -> Value {
        let (code, body) = self.ask("/debug/status").expect("the agent answers");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.world.folder.join("log")).unwrap_or_default()
    }

    /// Ends it without a word, as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the agent is ours");
            child.wait().expect("the agent is ours");
        }
    }

    /// A command of the program that finds this agent.
    pub(crate) fn command(&self, words: &[&str]) -> Output {
        let admin = self.admin().display().to_string();
        run(self.world, &[words, &["--admin", &admin]].concat())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Writes a document into a folder of the world, in one step.
pub(crate) fn document(world: &World, folder: &str, name: &str, text: &str) {
    let folder = world.folder.join(folder);
    fs::create_dir_all(&folder).expect("the folder is ours");
    let draft = folder.join(format!(".{name}"));
    fs::write(&draft, text).expect("the folder is ours");
    fs::rename(draft, folder.join(name)).expect("the folder is ours");
}
