//! The first process of a machine that `cargo xtask test vm` boots.
//!
//! In flows `/vm/plan`: lines of `module <file>`, `limit <seconds>` and `test <program> <name>`. Out flows the second
//! serial line: what the tests print, and between it this program's own lines, which start with `vm: `:
//!
//! ```text
//! vm: kernel 6.1.0-50-cloud-amd64
//! vm: begin netns_datapath netns_both_gates_must_agree
//! vm: passed netns_datapath netns_both_gates_must_agree 812
//! vm: done
//! ```
//!
//! The number is milliseconds; instead of `passed` there may be `failed` or `hung`. Without `vm: done` the run was cut short.
//! Each test has a process of its own, so that one that crashes takes no other with it.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};

const PLAN: &str = "/vm/plan";
const RESULTS: &str = "/dev/ttyS1";

/// Type, place and options of what the tests expect of a machine that is up.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
    ("bpf", "/sys/fs/bpf", "mode=0700"),
    ("tmpfs", "/run", "mode=0755"),
    ("tmpfs", "/tmp", "mode=1777"),
];

fn main() {
    if let Err(error) = run() {
        // To the console, which is there before anything is mounted.
        eprintln!("vm: {error:#}");
    }
    // The machine ends either way; without `vm: done` whoever started it knows that it ended early.
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("vm: failed to power off: {error}");
}

fn run() -> Result<()> {
    for (kind, place, options) in MOUNTS {
        fs::create_dir_all(place).with_context(|| format!("failed to create {place}"))?;
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            Some(options),
        )
        .with_context(|| format!("failed to mount {kind} on {place}"))?;
    }
    let mut results = OpenOptions::new()
        .write(true)
        .open(RESULTS)
        .with_context(|| format!("failed to open {RESULTS}"))?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    writeln!(results, "vm: kernel {}", release.trim())?;

    let plan = fs::read_to_string(PLAN).with_context(|| format!("failed to read {PLAN}"))?;
    let mut limit = Duration::from_secs(60);
    for line in plan.lines() {
        match *line.split(' ').collect::<Vec<_>>() {
            ["module", file] => load(file)?,
            ["limit", seconds] => limit = Duration::from_secs(seconds.parse()?),
            ["test", program, name] => test(&mut results, program, name, limit)?,
            _ => bail!("{PLAN} has a line that nobody understands: {line}"),
        }
    }
    writeln!(results, "vm: done")?;
    Ok(())
}

fn load(file: &str) -> Result<()> {
    let module = File::open(file).with_context(|| format!("failed to open {file}"))?;
    finit_module(&module, c"", ModuleInitFlags::empty())
        .with_context(|| format!("failed to load {file}"))
}

/// Runs one test, and tells what became of it.
fn test(results: &mut File, program: &str, name: &str, limit: Duration) -> Result<()> {
    writeln!(results, "vm: begin {program} {name}")?;
    let start = Instant::now();
    let mut child = Command::new(format!("/vm/{program}"))
        .args(["--exact", name, "--test-threads=1", "--show-output"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(results.try_clone()?)
        .stderr(results.try_clone()?)
        .spawn()
        .with_context(|| format!("failed to start {program}"))?;
    let outcome = match wait(results, &mut child, limit)? {
        Some(status) if status.success() => "passed",
        Some(_) => "failed",
        None => "hung",
    };
    let took = start.elapsed().as_millis();
    // A test that was killed or crashed left its line unfinished.
    writeln!(results, "\nvm: {outcome} {program} {name} {took}")?;
    Ok(())
}

/// How a process ended, or nothing if it had to be killed; then what it waited for in the kernel is told.
fn wait(results: &mut File, child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if start.elapsed() > limit {
            // A thread that ended meanwhile waits for nothing any more.
            for thread in fs::read_dir(format!("/proc/{}/task", child.id()))?.flatten() {
                let told = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
                writeln!(
                    results,
                    "\nthread {} waits in\n{}",
                    told("comm").trim(),
                    told("stack")
                )?;
            }
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}
