//! A folder for one agent, and what a test asks of the program.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_cardinal-agent");

/// A folder for one agent; the agent ends with it.
pub(crate) struct Place {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) agents: Vec<Child>,
}

impl Place {
    pub(crate) fn new(documents: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("config")).expect("folder");
        let place = Self {
            folder,
            agents: Vec::new(),
        };
        for (name, text) in documents {
            place.write(name, text);
        }
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path("config").join(name), text).expect("document");
    }

    /// An agent without a datapath, all of whose roots are in the folder.
    pub(crate) fn agent(&self) -> Command {
        let mut command = Command::new(AGENT);
        command
            .arg("--config")
            .arg(self.path("config"))
            .args([
                "--datapath",
                "none",
                "--threads",
                "1",
                "--drain",
                "60",
                "--state",
            ])
            .arg(self.path("state"))
            .arg("--admin")
            .arg(self.path("admin.sock"));
        command
    }

    pub(crate) fn start(&mut self) {
        let log = fs::File::create(self.path("log")).expect("log");
        let child = self.agent().stderr(log).spawn().expect("agent starts");
        self.agents.push(child);
        self.wait("readiness", || self.get("/readyz").0 == 200);
    }

    pub(crate) fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(
                Instant::now() < end,
                "{what} did not come; log:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Status and body of an admin path; 0 while nobody answers.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime");
        match runtime.block_on(cardinal_agent::admin::get(&self.path("admin.sock"), path)) {
            Ok((status, body)) => (status.as_u16(), String::from_utf8_lossy(&body).into_owned()),
            Err(_) => (0, String::new()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for agent in &mut self.agents {
            drop(agent.kill());
            drop(agent.wait());
        }
    }
}

pub(crate) fn gateway(port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{ name: front }}\nspec:\n  gatewayClassName: cardinal\n  \
         addresses: [{{ type: IPAddress, value: 127.0.0.1 }}]\n  listeners: [{{ name: http, port: {port}, protocol: HTTP }}]\n"
    )
}

/// A port that nothing uses. Below the range from which the kernel gives ports to clients, so that no connection of another test
/// takes it before the agent does.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 90).expect("it is small") * 128;
    loop {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[track_caller]
pub(crate) fn assert_says(output: &Output, code: i32, parts: &[&str]) {
    let text = text(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in parts {
        assert!(text.contains(part), "`{part}` is missing in\n{text}");
    }
}
