//! A machine in software: boots a kernel, follows its second serial line, and ends.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{kernel::Kernel, plan::Test};
use crate::shell;

pub(super) const QEMU: &str = "qemu-system-x86_64";
/// Everything that can be emulated, but not the instruction with which newer kernels allocate memory: after `cmpxchg16b` the
/// emulator of qemu 7.2 may leave an operand in the register of flags, and 6.12 dies of it with a double fault.
const CPU: &str = "max,cx16=off";
/// No machine runs longer than this. Boot and tests take about a twentieth of it on two idle cores.
const LIMIT: Duration = Duration::from_secs(1800);
/// Lines that are shown of what failed; the end of a verifier's log is what tells.
const SHOWN: usize = 60;
/// What a kernel's log has when something in the kernel itself went wrong.
const FAULTS: [&str; 5] = [
    "Kernel panic",
    "BUG:",
    "Oops:",
    "general protection fault",
    "WARNING: CPU",
];

/// What became of one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// It did not end in its time.
    Hung,
}

/// A line of the first process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Kernel(String),
    Begin(Test),
    End(Test, Outcome, Duration),
    Done,
}

/// What a run of the machine told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The kernel's release, once its first process ran.
    pub(super) release: Option<String>,
    pub(super) tests: Vec<(Test, Outcome, Duration)>,
    /// Why the run says less than it should, if it does.
    pub(super) broken: Vec<String>,
    pub(super) took: Duration,
}

/// Boots and waits for the end, which is bounded. Everything that tests print goes into `results.log` next to the kernel, what
/// the kernel prints into `console.log`.
pub(super) fn run(kernel: &Kernel, initramfs: &Path) -> Result<Told> {
    let console = kernel.folder.join("console.log");
    let mut log = fs::File::create(kernel.folder.join("results.log"))?;
    let mut command = shell::command(QEMU);
    command
        .args([
            "-machine",
            "pc,accel=tcg",
            "-cpu",
            CPU,
            "-smp",
            "2",
            "-m",
            "2G",
        ])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args([
            "-append",
            // Randomness comes from the machine's instruction; nobody attacks this one, so it needs no mitigations.
            "console=ttyS0 panic=-1 random.trust_cpu=on mitigations=off",
        ])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let line = shell::line(&command);
    eprintln!("$ {line}");
    let start = Instant::now();
    let mut child = Machine(
        command
            .spawn()
            .with_context(|| format!("failed to start `{line}`"))?,
    );
    let stdout = child
        .0
        .stdout
        .take()
        .context("the machine's serial line is not piped")?;
    let (sender, lines) = mpsc::channel();
    let reader = thread::spawn(move || -> std::io::Result<()> {
        for line in BufReader::new(stdout).split(b'\n') {
            if sender.send(line?).is_err() {
                break;
            }
        }
        Ok(())
    });

    let mut told = Told::default();
    let mut under_way = None;
    let mut printed = Vec::new();
    let mut done = false;
    loop {
        let line = match lines.recv_timeout(LIMIT.saturating_sub(start.elapsed())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                told.broken
                    .push(format!("it was ended after {} s", LIMIT.as_secs()));
                break;
            }
        };
        log.write_all(&line)?;
        log.write_all(b"\n")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        match read(line) {
            None => printed.push(line.to_owned()),
            Some(Line::Kernel(release)) => told.release = Some(release),
            Some(Line::Begin(test)) => {
                under_way = Some(test);
                printed.clear();
            }
            Some(Line::End(test, outcome, took)) => {
                under_way = None;
                if outcome != Outcome::Passed {
                    show(kernel, "test", &printed);
                }
                println!(
                    "{:<5} {outcome:?} {} ({:.1} s)",
                    kernel.series.name(),
                    test.name,
                    took.as_secs_f64()
                );
                told.tests.push((test, outcome, took));
            }
            Some(Line::Done) => done = true,
        }
    }
    drop(child);
    drop(lines);
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader of the serial line panicked"))?
        .context("failed to read the machine's serial line")?;
    told.took = start.elapsed();
    if let Some(test) = under_way {
        told.broken.push(format!("it ended during {}", test.name));
    } else if !done {
        told.broken
            .push("it ended before its first process was done".to_owned());
    }
    let console = fs::read(&console)
        .with_context(|| format!("failed to read what the kernel said: {}", console.display()))?;
    let console = String::from_utf8_lossy(&console);
    told.broken.extend(faults(&console));
    if !told.broken.is_empty() {
        let lines: Vec<_> = console.lines().map(str::to_owned).collect();
        show(kernel, "console", &lines);
    }
    Ok(told)
}

/// Shows the last lines of what somebody printed.
fn show(kernel: &Kernel, who: &str, lines: &[String]) {
    for line in &lines[lines.len().saturating_sub(SHOWN)..] {
        println!("{:<5} {who}: {}", kernel.series.name(), line.trim_end());
    }
}

/// Ends with its value.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // A machine that powered off by itself cannot be killed any more, which is as good.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Lines of a kernel's log that no good run has. That a core stood still is no fault: the emulator shares this machine's
/// cores with whatever else runs here.
fn faults(console: &str) -> Vec<String> {
    console
        .lines()
        .filter(|line| FAULTS.iter().any(|fault| line.contains(fault)))
        .filter(|line| !line.contains("soft lockup"))
        .map(|line| format!("the kernel says: {}", line.trim()))
        .collect()
}

/// Reads a line of the first process; all others are what tests print.
fn read(line: &str) -> Option<Line> {
    let words: Vec<_> = line.strip_prefix("vm: ")?.split(' ').collect();
    let test = |program: &str, name: &str| Test {
        program: program.to_owned(),
        name: name.to_owned(),
    };
    match words[..] {
        ["kernel", release] => Some(Line::Kernel(release.to_owned())),
        ["begin", program, name] => Some(Line::Begin(test(program, name))),
        ["done"] => Some(Line::Done),
        [outcome, program, name, took] => {
            let outcome = match outcome {
                "passed" => Outcome::Passed,
                "failed" => Outcome::Failed,
                "hung" => Outcome::Hung,
                _ => return None,
            };
            let took = Duration::from_millis(took.parse().ok()?);
            Some(Line::End(test(program, name), outcome, took))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_first_process_are_told_from_those_of_tests() {
        let test = Test {
            program: "netns_x".into(),
            name: "netns_y".into(),
        };
        assert_eq!(
            read("vm: kernel 6.1.0-50-cloud-amd64"),
            Some(Line::Kernel("6.1.0-50-cloud-amd64".into()))
        );
        assert_eq!(
            read("vm: begin netns_x netns_y"),
            Some(Line::Begin(test.clone()))
        );
        for (word, outcome) in [
            ("passed", Outcome::Passed),
            ("failed", Outcome::Failed),
            ("hung", Outcome::Hung),
        ] {
            assert_eq!(
                read(&format!("vm: {word} netns_x netns_y 812")),
                Some(Line::End(test.clone(), outcome, Duration::from_millis(812)))
            );
        }
        assert_eq!(read("vm: done"), Some(Line::Done));
        for other in ["test netns_y ... ok", "done", "vm: perhaps a b 1", ""] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_kernel_in_trouble_is_noticed() {
        let log = "[    0.1] Linux version 6.1\n[    0.5] watchdog: BUG: soft lockup - CPU#1 stuck for 23s!\n[    1.0] Kernel panic - not syncing: Attempted to kill init!\r\n";
        assert_eq!(
            faults(log),
            ["the kernel says: [    1.0] Kernel panic - not syncing: Attempted to kill init!"]
        );
    }
}
