//! `cargo xtask image`: the agent as an OCI image of one static program, and the list of what it is made of.
//!
//! The image has no distribution in it: the program, the root certificates that it checks servers of key sets with, and nothing that
//! could be run beside it. The same sources, compilers and certificates give the same digest, in whatever folder: no time, no path and no
//! name of a machine is in there. The list (CycloneDX) is attached to the image as an artifact that refers to it (OCI image
//! specification 1.1, "Referrers").

mod bill;
mod layout;
mod tar;

use std::{
    env,
    ffi::OsStr,
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
    setup::ebpf()?;
    let object = ebpf::build(&ebpf::Options::default())?;
    let program = program(&object)?;
    let version = env!("CARGO_PKG_VERSION");
    let tag = options.tag.as_deref().unwrap_or(version);
    let default = || shell::target_dir().join("image");
    let out = options.out.clone().unwrap_or_else(default);
    let roots = fs::read(&options.roots)
        .with_context(|| format!("failed to read {}", options.roots.display()))?;

    let program =
        fs::read(&program).with_context(|| format!("failed to read {}", program.display()))?;
    let bill = bill::of(TARGET, &program)?;
    let image = layout::Image {
        version,
        layer: files(&program, &roots),
        entrypoint: "/usr/bin/cardinal-agent",
    };
    let digest = layout::write(&out, tag, &image, &bill)?;
    // Beside the layout too, for programs that read files.
    let beside = out.with_extension("cdx.json");
    fs::write(&beside, bill.to_string())
        .with_context(|| format!("failed to write {}", beside.display()))?;
    println!("{digest}");
    eprintln!(
        "{} holds cardinal-agent:{tag} and its bill of materials, which is in {} too. To a registry:\n  \
         skopeo copy --preserve-digests oci:{}:{tag} docker://REGISTRY/cardinal-agent:{tag}",
        out.display(),
        beside.display(),
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

/// Builds the agent as images hold it, without this machine's folders in its own messages.
pub(crate) fn program(object: &Path) -> Result<PathBuf> {
    setup::static_build(TARGET)?;
    let mut cargo = shell::cargo();
    cargo
        .args(["build", "--locked", "--release", "--target", TARGET])
        .args(["--package", "cardinal-agent"])
        .env("CC_x86_64_unknown_linux_musl", "musl-gcc")
        // The allocator would ask the processor of this machine how long addresses are, or guess.
        .env("JEMALLOC_SYS_WITH_LG_VADDR", "48")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            shell::remapped().join(OsStr::new("\u{1f}")),
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
