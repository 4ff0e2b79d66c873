//! `cargo xtask tidy`: what a change has to pass, in the order of what fails fastest.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{ebpf, setup, shell, suite};

/// What `cargo xtask tidy` can be told.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Leave out the tests.
    #[arg(long)]
    no_test: bool,
    /// Leave out the check against published advisories, whose database is fetched with git.
    #[arg(long)]
    offline: bool,
}

/// Stops at the first thing that is not as it should be.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::host_build()?;
    setup::ebpf()?;
    setup::tidy()?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    shell::run(shell::cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    ebpf::tidy()?;
    shell::run(
        shell::cargo()
            .args([
                "doc",
                "--locked",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    let mut deny = shell::cargo();
    deny.args(["deny", "--locked", "check", "bans", "licenses", "sources"]);
    if options.offline {
        eprintln!("--offline: dependencies are not checked against published advisories");
    } else {
        deny.arg("advisories");
    }
    shell::run(&mut deny)?;
    // It takes its own name for a folder if it believes that it was started by `cargo run`, as this program was.
    shell::run(shell::cargo().arg("machete").env_remove("CARGO_PKG_NAME"))?;
    if options.no_test {
        Ok(ExitCode::SUCCESS)
    } else {
        suite::run(&suite::Options::default())
    }
}
