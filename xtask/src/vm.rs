//! `cargo xtask test vm`: the kernels of supported distributions, booted in software, and the tests that depend on a kernel.
//!
//! What flows in: test programs that cargo built, and Debian's kernel packages. What flows out: per kernel, what passed,
//! what failed, and what this kernel cannot have. Nothing of it needs root or an accelerator: the machine is qemu's emulator, its
//! only file system an archive in memory.

mod cpio;
mod image;
mod kernel;
mod machine;
mod plan;

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum as _};

use crate::{ebpf, setup, shell, stage, suite};
use image::Content;
pub(crate) use kernel::{Kernel, Series};
use machine::Outcome;
use plan::Tests;

/// What `cargo xtask test vm` can be told.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Only these kernels.
    #[arg(value_enum)]
    kernels: Vec<Series>,
}

/// Seconds for one test; the longest takes a twentieth of it.
const TEST_LIMIT: u64 = 300;

/// What a kernel made of the tests.
#[derive(Debug)]
pub(crate) struct Report {
    series: Series,
    package: String,
    release: Option<String>,
    pub(crate) passed: Vec<String>,
    /// Tests that failed, and whatever else went wrong with the machine.
    pub(crate) failures: Vec<String>,
    absent: Vec<(&'static str, String)>,
    took: Duration,
}

impl Report {
    /// The kernel's series.
    pub(crate) fn name(&self) -> &'static str {
        self.series.name()
    }
}

/// The kernels that can be booted here, and why others cannot.
#[derive(Debug, Default)]
pub(crate) struct Available {
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) missing: Vec<String>,
}

/// Builds the tests, boots every kernel that was asked for, prints what came of it. Succeeds only if all of them could be
/// booted.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::host_build()?;
    setup::world()?;
    setup::ebpf()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let binaries = suite::binaries(&object, &["--test", "netns_*"])?;
    let programs = stage::build(Some(&object), false)?;
    let available = prepare(&options.kernels);
    let reports = boot(&programs.init(), &binaries, available.kernels)?;
    print(&reports);
    for reason in &available.missing {
        println!("without a machine: {reason}");
    }
    let good =
        available.missing.is_empty() && reports.iter().all(|report| report.failures.is_empty());
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Installs the emulator and fetches these kernels, or all.
pub(crate) fn prepare(kernels: &[Series]) -> Available {
    let mut available = Available::default();
    if let Err(error) = emulator() {
        available
            .missing
            .push(format!("no kernel can be booted here: {error:#}"));
        return available;
    }
    let wanted = match kernels {
        [] => Series::value_variants(),
        some => some,
    };
    for series in wanted {
        match kernel::fetch(*series) {
            Ok(kernel) => available.kernels.push(kernel),
            Err(error) => available
                .missing
                .push(format!("kernel {}: {error:#}", series.name())),
        }
    }
    available
}

fn emulator() -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the kernels are for x86-64, but the tests are built for this machine");
    }
    setup::machines()?;
    if shell::find(machine::QEMU).is_none() {
        bail!("{} is not on this machine", machine::QEMU);
    }
    Ok(())
}

/// Boots kernels one after the other. Fails only if it could not begin.
pub(crate) fn boot(
    init: &Path,
    binaries: &[suite::Binary],
    kernels: Vec<Kernel>,
) -> Result<Vec<Report>> {
    if kernels.is_empty() {
        return Ok(Vec::new());
    }
    let programs: Vec<(&str, &Path)> = binaries
        .iter()
        .filter(|binary| binary.name.starts_with("netns_"))
        .map(|binary| (binary.name.as_str(), binary.executable.as_path()))
        .collect();
    let tests = Tests::find(&programs)?;
    let used: Vec<_> = programs
        .into_iter()
        .filter(|(name, _)| tests.programs().any(|program| program == *name))
        .collect();
    let content = Content::new(init, &used)?;
    kernels
        .into_iter()
        .map(|kernel| report(kernel, &tests, &content))
        .collect()
}

fn report(kernel: Kernel, tests: &Tests, content: &Content) -> Result<Report> {
    let (planned, absent) = tests.of(kernel.series);
    let initramfs = content.write(&kernel, &planned, TEST_LIMIT)?;
    eprintln!("vm: {} runs {} tests", kernel.package, planned.len());
    let told = machine::run(&kernel, &initramfs)?;
    fs::remove_file(initramfs)?;
    let mut passed = Vec::new();
    let mut failures = Vec::new();
    for (test, outcome, _) in &told.tests {
        match outcome {
            Outcome::Passed => passed.push(test.name.clone()),
            Outcome::Failed => failures.push(test.name.clone()),
            Outcome::Hung => {
                failures.push(format!("{} (did not end within {TEST_LIMIT} s)", test.name))
            }
        }
    }
    failures.extend(told.broken);
    if told.tests.len() != planned.len() {
        failures.push(format!(
            "{} of {} tests ended",
            told.tests.len(),
            planned.len()
        ));
    }
    Ok(Report {
        series: kernel.series,
        package: kernel.package,
        release: told.release,
        passed,
        failures,
        absent,
        took: told.took,
    })
}

/// One line per kernel, then what failed and what a kernel cannot have.
pub(crate) fn print(reports: &[Report]) {
    println!(
        "\n{:<7}{:>8}{:>8}{:>20}{:>9}  package",
        "kernel", "passed", "failed", "not on this kernel", "seconds"
    );
    for report in reports {
        println!(
            "{:<7}{:>8}{:>8}{:>20}{:>9}  {}, which calls itself {}",
            report.series.name(),
            report.passed.len(),
            report.failures.len(),
            report.absent.len(),
            report.took.as_secs(),
            report.package,
            report.release.as_deref().unwrap_or("nothing"),
        );
    }
    for report in reports {
        let name = report.series.name();
        for (test, reason) in &report.absent {
            println!("not on {name}: {test}: {reason}");
        }
        for failure in &report.failures {
            println!("failed on {name}: {failure}");
        }
        if !report.failures.is_empty() {
            let folder = shell::target_dir().join("vm").join(name);
            println!(
                "what tests and kernel said: {}/results.log and console.log",
                folder.display()
            );
        }
    }
}
