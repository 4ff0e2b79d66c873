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

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum as _};

use crate::{ebpf, setup, shell, stage, suite};
use image::Content;
pub(crate) use kernel::Series;
use machine::Outcome;
use plan::Tests;

/// What `cargo xtask test vm` can be told.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Only these kernels.
    #[arg(value_enum)]
    kernels: Vec<Series>,
}

/// Seconds for one test; the longest takes a tenth of it.
const TEST_LIMIT: u64 = 150;

/// What a kernel made of the tests.
#[derive(Debug)]
pub(crate) struct Report {
    series: Series,
    package: String,
    release: Option<String>,
    pub(crate) passed: usize,
    /// Tests that failed, and whatever else went wrong with the machine.
    pub(crate) failures: Vec<String>,
    absent: Vec<(&'static str, String)>,
    took: Duration,
}

/// Builds the tests, boots every kernel that was asked for, prints what came of it.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::host_build()?;
    setup::world()?;
    setup::ebpf()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let binaries = suite::binaries(&object, &["--test", "netns_*"])?;
    stage::build_bin(&object, "vm_init")?;
    let reports = boot(&binaries, &options.kernels)?;
    print(&reports);
    let failed = reports.iter().any(|report| !report.failures.is_empty());
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Boots these kernels, or all, one after the other. Fails only if it could not begin.
pub(crate) fn boot(binaries: &[suite::Binary], kernels: &[Series]) -> Result<Vec<Report>> {
    if !cfg!(target_arch = "x86_64") {
        bail!(
            "the kernels are for x86-64, and so must the tests be, which are built for this machine"
        );
    }
    setup::machines()?;
    if shell::find(machine::QEMU).is_none() {
        bail!("{} is not on this machine", machine::QEMU);
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
    let init: PathBuf = shell::target_dir().join("debug/vm_init");
    std::fs::create_dir_all(shell::target_dir().join("vm"))?;
    let content = Content::new(&init, &used)?;

    let wanted = if kernels.is_empty() {
        Series::value_variants()
    } else {
        kernels
    };
    let fetched = wanted
        .iter()
        .map(|series| kernel::fetch(*series))
        .collect::<Result<Vec<_>>>()?;
    fetched
        .into_iter()
        .map(|kernel| {
            let (planned, absent) = tests.of(kernel.series);
            let initramfs = content.write(&kernel, &planned, TEST_LIMIT)?;
            eprintln!("vm: {} runs {} tests", kernel.package, planned.len());
            let told = machine::run(&kernel, &initramfs)?;
            std::fs::remove_file(initramfs)?;
            let passed = told
                .tests
                .iter()
                .filter(|(_, outcome, _)| *outcome == Outcome::Passed)
                .count();
            let failed = told
                .tests
                .iter()
                .filter(|(_, outcome, _)| *outcome != Outcome::Passed)
                .map(|(test, outcome, _)| match outcome {
                    Outcome::Hung => format!("{} (did not end within {TEST_LIMIT} s)", test.name),
                    _ => test.name.clone(),
                });
            let mut failures: Vec<_> = failed.chain(told.broken).collect();
            if told.tests.len() != planned.len() {
                failures.push(format!(
                    "{} of {} tests ran",
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
        })
        .collect()
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
            report.passed,
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
