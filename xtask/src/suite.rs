//! `cargo xtask test`: builds and runs every test, and counts them by kind.
//!
//! Kinds are names: a binary `netns_*` needs a kernel and root, `kube_*` a Kubernetes that is brought up for it (only asked for
//! with `--kube`, and then alone), `proxy_*` needs sockets only, a binary or
//! a test whose name starts with `property_` draws its input (and `property_verdict` needs a kernel and root as well), doc
//! tests are doc tests, and everything else is a unit test. What the machines with other kernels run ([`vm`]) is counted once
//! more for each of them.

use std::{
    collections::BTreeMap,
    fmt,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::{ebpf, kube, setup, shell, stage, vm};

/// What `cargo xtask test` can be told.
#[derive(Args, Debug, Default)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    part: Option<Part>,
    /// Run only tests whose path contains this text.
    filter: Option<String>,
    /// Many rounds of what is otherwise done a few times, up to a hundred times as many drawn inputs, and at the end what the
    /// tests measured (two to three hours on two cores).
    #[arg(long)]
    long: bool,
    /// Run only the tests in Kubernetes, each in a throw-away one (root, and Go to build it).
    #[arg(long, conflicts_with = "long")]
    kube: bool,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Only what depends on the kernel, on the kernels of Debian 11, 12 and 12 with backports, booted in software.
    Vm(vm::Options),
}

/// What `--long` asks of the tests, by the variables that they read: as much as two cores do in two or three hours.
const LONG: [(&str, &str); 12] = [
    // Generations, one after the other, under a flood of packets.
    ("CARDINAL_SWITCHES", "10000"),
    // Pods that send from their first instant; interfaces and addresses that come back as another pod's; pods at once;
    // namespaces that die half-way, four to a round.
    ("CARDINAL_STARTS", "1000"),
    ("CARDINAL_REUSES", "500"),
    ("CARDINAL_PODS", "500"),
    ("CARDINAL_DEATHS", "500"),
    // Agents that are killed, documents that change; agents that are killed and that end under a hundred connections.
    ("CARDINAL_KILLS", "1000"),
    ("CARDINAL_CHANGES", "1000"),
    ("CARDINAL_TAKEOVERS", "20"),
    // Agents that take each other's place under requests, and ones that are killed while they do.
    ("CARDINAL_HANDOVERS", "50"),
    // Certificates of a listener, one after the other, under handshakes.
    ("CARDINAL_ROTATIONS", "1000"),
    // Frames that the programs and their model judge, and inputs of the other drawn tests.
    ("CARDINAL_FRAMES", "3000000"),
    ("PROPTEST_CASES", "25600"),
];

/// The binary whose inputs are dear, as each compiles many tables: it draws 64 where others draw 256, which is a minute and a
/// half, so ten times as many is what a long run has room for. What the variable says goes before what a test says of itself.
const DEAR: (&str, [(&str, &str); 1]) = ("property_matching", [("PROPTEST_CASES", "640")]);

/// Binaries that draw their input and need a kernel and root too.
const DRAWN_FOR_THE_KERNEL: [&str; 1] = ["property_verdict"];

/// The binary that runs a program which may not be had everywhere.
const CONFORMANCE: &str = "proxy_h2spec";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Unit,
    Property,
    Proxy,
    Namespace,
    Kubernetes,
    Doc,
    Machine,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unit => "unit",
            Self::Property => "property",
            Self::Proxy => "proxy",
            Self::Namespace => "namespace",
            Self::Kubernetes => "kubernetes",
            Self::Doc => "doc",
            Self::Machine => "machine",
        })
    }
}

impl Kind {
    fn of(binary: &str, test: &str) -> Self {
        let name = test.rsplit("::").next().unwrap_or(test);
        match () {
            () if binary.starts_with("netns_") => Self::Namespace,
            () if binary.starts_with("kube_") => Self::Kubernetes,
            () if binary.starts_with("proxy_") => Self::Proxy,
            () if binary.starts_with("property_") || name.starts_with("property_") => {
                Self::Property
            }
            () => Self::Unit,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Ignored,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
    ignored: usize,
}

/// What ran, and how it ended.
#[derive(Debug, Default)]
struct Tally {
    counts: BTreeMap<Kind, Count>,
    failures: Vec<String>,
    figures: Figures,
}

/// What tests that passed printed, by the name of the test. The harness shows it if it is asked to (`--show-output`).
#[derive(Debug, Default)]
struct Figures {
    found: Vec<(String, Vec<String>)>,
    /// Whether the lines that come are those of tests that passed.
    passed: bool,
    /// Whether the lines that come are a test's.
    inside: bool,
}

impl Figures {
    /// Takes the next line of a test program.
    fn read(&mut self, line: &str) {
        let name = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        match line {
            // Once before what they printed, and once before the list of their names.
            "successes:" => (self.passed, self.inside) = (true, false),
            "failures:" => self.passed = false,
            _ if line.starts_with("test result: ") => self.passed = false,
            _ if !self.passed => {}
            "" => {}
            _ if name.is_some() => {
                self.inside = true;
                self.found
                    .push((name.unwrap_or_default().to_owned(), Vec::new()));
            }
            _ if self.inside => {
                if let Some((_, lines)) = self.found.last_mut() {
                    lines.push(line.to_owned());
                }
            }
            _ => {}
        }
    }
}

impl Tally {
    fn add(&mut self, kind: Kind, binary: &str, test: &str, outcome: Outcome) {
        let count = self.counts.entry(kind).or_default();
        match outcome {
            Outcome::Passed => count.passed += 1,
            Outcome::Ignored => count.ignored += 1,
            Outcome::Failed => {
                count.failed += 1;
                self.failures.push(format!("{binary} {test}"));
            }
        }
    }

    fn total(&self) -> Count {
        self.counts
            .values()
            .fold(Count::default(), |sum, count| Count {
                passed: sum.passed + count.passed,
                failed: sum.failed + count.failed,
                ignored: sum.ignored + count.ignored,
            })
    }
}

/// A program of tests that cargo built.
#[derive(Debug)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) executable: PathBuf,
    package: PathBuf,
}

/// Builds everything, runs everything, prints the counts. Succeeds only if nothing failed and nothing was left out.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if let Some(Part::Vm(options)) = &options.part {
        return vm::run(options);
    }
    let start = Instant::now();
    if options.kube {
        return in_kubernetes(options, start);
    }
    setup::host_build()?;
    setup::world()?;
    setup::clients()?;
    setup::ebpf()?;
    let h2spec = setup::h2spec()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let logs = ebpf::build(&ebpf::Options::with_logs())?;
    let programs = stage::build(Some(&object), false)?;
    let binaries = binaries(&object, &[])?;
    eprintln!("built in {} s", start.elapsed().as_secs());

    let mut tally = Tally::default();
    for binary in &binaries {
        let kind = Kind::of(&binary.name, "");
        if kind == Kind::Kubernetes || binary.name == CONFORMANCE && h2spec.is_err() {
            continue;
        }
        let rounds: Vec<_> = LONG
            .iter()
            .chain(DEAR.1.iter().filter(|_| binary.name == DEAR.0))
            .filter(|_| options.long)
            .map(|(name, value)| (*name, PathBuf::from(value)))
            .collect();
        let privileged =
            kind == Kind::Namespace || DRAWN_FOR_THE_KERNEL.contains(&binary.name.as_str());
        let mut command = if privileged {
            let more = [
                ("CARGO_MANIFEST_DIR", binary.package.clone()),
                ("CARDINAL_EBPF_LOGS", logs.clone()),
            ];
            shell::elevated(
                &binary.executable,
                &[&programs.variables()[..], &more, &rounds].concat(),
            )?
        } else {
            let mut command = shell::command(&binary.executable);
            command
                .env("CARGO_MANIFEST_DIR", &binary.package)
                .envs(programs.variables())
                .envs(h2spec.iter().map(|program| ("CARDINAL_H2SPEC", program)))
                .envs(rounds);
            command
        };
        command.current_dir(&binary.package).args(&options.filter);
        if options.long {
            command.arg("--show-output");
        }
        play(&mut command, &mut tally, |test| {
            (binary.name.clone(), Kind::of(&binary.name, test))
        })?;
    }
    let mut docs = shell::cargo();
    docs.args(["test", "--locked", "--workspace", "--doc"])
        .args(&options.filter);
    stage::embed(&mut docs, Some(&object));
    play(&mut docs, &mut tally, |_| ("doc".to_owned(), Kind::Doc))?;
    let mut without = machines(options, &programs.init(), &binaries, &mut tally);
    without.extend(
        h2spec
            .err()
            .map(|reason| format!("without {CONFORMANCE}: {reason}")),
    );
    without.push("without Kubernetes: `cargo xtask test --kube` runs those".to_owned());
    Ok(sum_up(options, &tally, &without, start))
}

/// Builds Kubernetes and the tests in it, and runs them. What this machine lacks for that is an error.
fn in_kubernetes(options: &Options, start: Instant) -> Result<ExitCode> {
    let variables = kube::prepare("up")?;
    let helm = [("CARDINAL_HELM", setup::helm()?)];
    setup::host_build()?;
    setup::world()?;
    setup::ebpf()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let programs = stage::build(Some(&object), false)?;
    let variables = [&programs.variables()[..], &variables, &helm].concat();
    let binaries = binaries(&object, &["--test", "kube_*"])?;
    let mut tally = Tally::default();
    let mut node = shell::command("go");
    node.args(["test", "./..."])
        .current_dir(shell::root().join("tests/kube/node"));
    // What plays the nodes has tests of its own, which are not ours to count.
    shell::run(&mut node)?;
    for binary in &binaries {
        let package = [("CARGO_MANIFEST_DIR", binary.package.clone())];
        let mut command =
            shell::elevated(&binary.executable, &[&variables[..], &package].concat())?;
        // A world is a whole control plane: one at a time is what a machine holds.
        command
            .current_dir(&binary.package)
            .arg("--test-threads=1")
            .args(&options.filter);
        play(&mut command, &mut tally, |test| {
            (binary.name.clone(), Kind::of(&binary.name, test))
        })?;
    }
    Ok(sum_up(options, &tally, &[], start))
}

/// Prints the counts and what was left out, and judges.
fn sum_up(options: &Options, tally: &Tally, without: &[String], start: Instant) -> ExitCode {
    for (test, lines) in &tally.figures.found {
        println!("\n{test}:");
        for line in lines {
            println!("    {line}");
        }
    }
    println!(
        "\n{:<12}{:>8}{:>8}{:>9}",
        "kind", "passed", "failed", "ignored"
    );
    for (kind, count) in &tally.counts {
        println!(
            "{kind:<12}{:>8}{:>8}{:>9}",
            count.passed, count.failed, count.ignored
        );
    }
    for failure in &tally.failures {
        println!("failed: {failure}");
    }
    for reason in without {
        println!("{reason}");
    }
    let total = tally.total();
    if total.ignored > 0 {
        println!(
            "{} ignored: a test that does not run says nothing, so this run does not pass",
            total.ignored
        );
    }
    println!("took {} s", start.elapsed().as_secs());
    println!("{} passed, {} failed", total.passed, total.failed);
    let good =
        total.failed == 0 && total.ignored == 0 && (total.passed > 0 || options.filter.is_some());
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Boots other kernels and counts what their tests did. Gives what could not be booted here, and why.
fn machines(options: &Options, init: &Path, binaries: &[Binary], tally: &mut Tally) -> Vec<String> {
    if options.filter.is_some() {
        return vec![
            "without a machine: a filter was given; `cargo xtask test vm` boots the kernels"
                .to_owned(),
        ];
    }
    let available = vm::prepare(&[]);
    match vm::boot(init, binaries, available.kernels) {
        Ok(reports) => {
            vm::print(&reports);
            for report in &reports {
                for test in &report.passed {
                    tally.add(Kind::Machine, report.name(), test, Outcome::Passed);
                }
                for failure in &report.failures {
                    tally.add(Kind::Machine, report.name(), failure, Outcome::Failed);
                }
            }
        }
        Err(error) => tally.add(Kind::Machine, "vm", &format!("{error:#}"), Outcome::Failed),
    }
    available
        .missing
        .iter()
        .map(|reason| format!("without a machine: {reason}"))
        .collect()
}

/// Builds the test programs of the workspace, or the targets that cargo is told.
pub(crate) fn binaries(object: &Path, targets: &[&str]) -> Result<Vec<Binary>> {
    let mut cargo = shell::cargo();
    cargo
        .args(["test", "--locked", "--workspace", "--no-run"])
        .args(targets);
    stage::embed(&mut cargo, Some(object));
    let mut binaries = Vec::new();
    for message in shell::messages(&mut cargo)? {
        if message["profile"]["test"] == true
            && let Some(executable) = message["executable"].as_str()
        {
            let manifest = message["manifest_path"]
                .as_str()
                .context("cargo names no manifest for a test program")?;
            let package = Path::new(manifest)
                .parent()
                .context("a manifest has no folder")?;
            binaries.push(Binary {
                name: message["target"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                executable: executable.into(),
                package: package.to_owned(),
            });
        }
    }
    // What is quick to fail comes first; the kernel's turn is last.
    binaries.sort_by_key(|binary| (Kind::of(&binary.name, ""), binary.executable.clone()));
    Ok(binaries)
}

/// Runs one program of tests, shows what it prints, and counts its tests.
fn play(
    command: &mut Command,
    tally: &mut Tally,
    kind: impl Fn(&str) -> (String, Kind),
) -> Result<()> {
    let line = shell::line(command);
    eprintln!("$ {line}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("failed to start `{line}`"))?;
    let stdout = child
        .stdout
        .take()
        .context("the standard output is not piped")?;
    let failed_before = tally.failures.len();
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text?;
        let text = String::from_utf8_lossy(&text);
        println!("{text}");
        tally.figures.read(&text);
        if let Some((test, outcome)) = result(&text) {
            let (binary, kind) = kind(test);
            tally.add(kind, &binary, test, outcome);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failures.len() == failed_before {
        // A crash ends the program before it could say which test it was.
        let (binary, kind) = kind("");
        tally.add(
            kind,
            &binary,
            &format!("(the program ended with {status})"),
            Outcome::Failed,
        );
    }
    Ok(())
}

/// Reads a line of the test harness: `test path::name ... ok`.
fn result(line: &str) -> Option<(&str, Outcome)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match outcome {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ if outcome.starts_with("ignored") => Outcome::Ignored,
        _ => return None,
    };
    Some((name.trim_end_matches(" - should panic"), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_harness_are_read() {
        assert_eq!(result("test a::b ... ok"), Some(("a::b", Outcome::Passed)));
        assert_eq!(
            result("test a::b - should panic ... ok"),
            Some(("a::b", Outcome::Passed))
        );
        assert_eq!(result("test a ... FAILED"), Some(("a", Outcome::Failed)));
        assert_eq!(
            result("test a ... ignored, needs root"),
            Some(("a", Outcome::Ignored))
        );
        assert_eq!(
            result("test src/lib.rs - x (line 3) ... ok"),
            Some(("src/lib.rs - x (line 3)", Outcome::Passed))
        );
        assert_eq!(result("test result: ok. 3 passed"), None);
        assert_eq!(result("running 3 tests"), None);
    }

    #[test]
    fn what_tests_that_passed_printed_is_kept() {
        let mut figures = Figures::default();
        let text = "running 3 tests\ntest a::b ... ok\ntest c ... ok\ntest d ... FAILED\n\nsuccesses:\n\n\
                    ---- a::b stdout ----\n3 rounds\n\n  1 drop\n\n---- c stdout ----\n7 s\n\n\nsuccesses:\n    a::b\n    c\n\n\
                    failures:\n\n---- d stdout ----\nassertion\n\n\nfailures:\n    d\n\ntest result: FAILED. 2 passed";
        text.lines().for_each(|line| figures.read(line));
        let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
        assert_eq!(
            figures.found,
            [
                ("a::b".to_owned(), lines(&["3 rounds", "  1 drop"])),
                ("c".to_owned(), lines(&["7 s"])),
            ]
        );
    }

    #[test]
    fn kinds_are_names() {
        assert_eq!(Kind::of("netns_demo", "property_x"), Kind::Namespace);
        assert_eq!(Kind::of("kube_world", "kube_x"), Kind::Kubernetes);
        assert_eq!(Kind::of("proxy_routes", "x"), Kind::Proxy);
        assert_eq!(
            Kind::of("snapshot", "parse::tests::property_round_trip"),
            Kind::Property
        );
        assert_eq!(Kind::of("property_documents", "any_bytes"), Kind::Property);
        assert_eq!(Kind::of("snapshot", "parse::tests::x"), Kind::Unit);
    }
}
