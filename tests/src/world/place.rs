//! A network namespace and a cgroup: where a process can be put.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::run;

/// How long addresses may take to leave the tentative state.
const ADDRESSES_WAIT: Duration = Duration::from_secs(60);

/// A namespace with a cgroup for its processes.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    netns: String,
    cgroup: PathBuf,
    resolver: Option<PathBuf>,
}

impl Place {
    pub(super) fn new(name: &str, netns: String, cgroup: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            netns,
            cgroup,
            resolver: None,
        }
    }

    pub(super) fn make(&self) -> Result<()> {
        run(Command::new("ip").args(["netns", "add", &self.netns]))?;
        // Nobody else is on these links: duplicate address detection would only cost a second each.
        self.shell(
            "for each in all default; do echo 0 > /proc/sys/net/ipv6/conf/$each/accept_dad; done",
        )?;
        self.ip("link set lo up\n")
    }

    pub(super) fn set_resolver(&mut self, file: PathBuf) {
        self.resolver = Some(file);
    }

    /// The name that a row of a table shows.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's name, as `ip netns` knows it.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// The cgroup that commands of this place run in.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A command that will run here; arguments may follow. It joins the cgroup before anything else, so that
    /// hooks on the cgroup see all that it does.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
            .arg(self.cgroup.join("cgroup.procs"))
            // `ip netns exec` would mount a new /sys over the cgroups, so it is nsenter that enters.
            .arg("nsenter")
            .arg(format!("--net=/run/netns/{}", self.netns))
            .arg("--");
        if let Some(resolver) = &self.resolver {
            command
                .args([
                    "unshare",
                    "--mount",
                    "sh",
                    "-c",
                    r#"mount --bind "$0" /etc/resolv.conf && exec "$@""#,
                ])
                .arg(resolver);
        }
        command.arg(program);
        command
    }

    /// The command line that puts a person's shell here.
    #[must_use]
    pub fn enter(&self) -> String {
        format!("nsenter --net=/run/netns/{}", self.netns)
    }

    /// Runs lines of `ip` in the namespace.
    ///
    /// # Errors
    /// One of them failed.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.netns, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start ip: is iproute2 installed?")?;
        child
            .stdin
            .take()
            .context("ip's standard input is not piped")?
            .write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "ip -n {} failed: {}\nin\n{batch}",
                self.netns,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Runs lines of sh in the namespace.
    ///
    /// # Errors
    /// One of them failed.
    pub fn shell(&self, lines: &str) -> Result<()> {
        run(self.command("sh").args(["-e", "-c", lines]))
    }

    /// Waits until no IPv6 address is tentative any more: before that, binding to one fails.
    pub(super) fn wait_for_addresses(&self) -> Result<()> {
        let deadline = Instant::now() + ADDRESSES_WAIT;
        loop {
            let output = Command::new("ip")
                .args(["-n", &self.netns, "-6", "addr", "show", "tentative"])
                .output()?;
            if output.status.success() && output.stdout.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "addresses of {} stay tentative: {}",
                    self.netns,
                    String::from_utf8_lossy(&output.stdout).trim()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ids of the processes that run here.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let list = fs::read_to_string(self.cgroup.join("cgroup.procs"))
            .with_context(|| format!("failed to read {}", self.cgroup.display()))?;
        Ok(list.lines().filter_map(|pid| pid.parse().ok()).collect())
    }
}
