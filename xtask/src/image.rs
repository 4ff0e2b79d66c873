//! `cargo xtask image`: the agent as an OCI image of one static program, and the list of what it is made of.
//!
//! The image has no distribution in it: the program, the root certificates that it checks servers of key sets with, and nothing that
//! could be run beside it. The same sources, compiler and certificates give the same digest: no time, no name of a machine and no
//! folder of it is in there. The list (CycloneDX) is attached to the image as an artifact that refers to it (OCI image
//! specification 1.1, "Referrers").

mod bill;
mod layout;
mod tar;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{ebpf, setup, shell, stage};

/// What `cargo xtask image` can be told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Folder of the OCI layout, which is made anew [default: target/image].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Tag of the image in the layout [default: the agent's version].
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Bundle of root certificates to take along.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/ssl/certs/ca-certificates.crt"
    )]
    roots: PathBuf,
}

/// The platform that images are for: that of the eBPF object and of the tests.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// Builds the program and writes the layout.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    setup::host_build()?;
    setup::static_build(TARGET)?;
    setup::ebpf()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let program = program(&object)?;
    let version = env!("CARGO_PKG_VERSION");
    let tag = options.tag.as_deref().unwrap_or(version);
    let default = || shell::target_dir().join("image");
    let out = options.out.clone().unwrap_or_else(default);
    let roots = fs::read(&options.roots)
        .with_context(|| format!("failed to read {}", options.roots.display()))?;

    let bill = bill::of("cardinal-agent", TARGET)?;
    let image = layout::Image {
        version,
        layer: files(&fs::read(&program)?, &roots),
        entrypoint: "/usr/bin/cardinal-agent",
    };
    let digest = layout::write(&out, tag, &image, &bill)?;
    println!("{digest}");
    eprintln!(
        "{} holds cardinal-agent:{tag} and its bill of materials. To a registry:\n  skopeo copy oci:{}:{tag} docker://REGISTRY/cardinal-agent:{tag}",
        out.display(),
        out.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The files of the image's one layer.
fn files(program: &[u8], roots: &[u8]) -> Vec<u8> {
    let mut archive = tar::Archive::default();
    for folder in ["etc/", "etc/ssl/", "etc/ssl/certs/", "usr/", "usr/bin/"] {
        archive.folder(folder);
    }
    archive.file("etc/ssl/certs/ca-certificates.crt", 0o644, roots);
    archive.file("usr/bin/cardinal-agent", 0o755, program);
    archive.finish()
}

/// Builds the agent without anything of this machine in it.
fn program(object: &Path) -> Result<PathBuf> {
    let root = shell::root();
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let mut cargo = shell::cargo();
    cargo
        .args(["build", "--locked", "--release", "--target", TARGET])
        .args(["--package", "cardinal-agent"])
        .env("CC_x86_64_unknown_linux_musl", "musl-gcc")
        .env(
            "RUSTFLAGS",
            format!(
                "--remap-path-prefix={}=/cardinal --remap-path-prefix={}=/cargo",
                root.display(),
                home.display()
            ),
        );
    stage::embed(&mut cargo, Some(object));
    shell::run(&mut cargo)?;
    let program = shell::target_dir()
        .join(TARGET)
        .join("release/cardinal-agent");
    if !program.is_file() {
        bail!("cargo built no {}", program.display());
    }
    Ok(program)
}

#[cfg(test)]
mod tests;
