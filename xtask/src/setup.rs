//! What the machine lacks: Debian packages, a compiler for eBPF, cargo's own tools. Nothing is installed
//! before it was named together with its reason.

use std::{env, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    ebpf::{Kind, Toolchain},
    kube, shell,
};

/// The version of bpf-linker that the programs are built and tested with.
pub(crate) const BPF_LINKER: &str = "0.13.0";
const CARGO_DENY: &str = "0.20.2";
const CARGO_MACHETE: &str = "0.9.2";
const AIOQUIC: &str = "1.7.2";
/// LLVM of Debian's rustc-web, and of the linker that goes with it.
const DISTRIBUTION_LLVM: u32 = 22;

/// What `cargo xtask setup` can be told.
#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Also install what `cargo xtask tidy` runs.
    #[arg(long)]
    tidy: bool,
    /// Also build the Kubernetes that `cargo xtask test --kube` and `conformance` run in (root, and Go to build it).
    #[arg(long)]
    kube: bool,
}

/// Something that may be missing.
#[derive(Debug)]
struct Package {
    name: String,
    why: &'static str,
    /// Missing from the distribution is no error.
    optional: bool,
}

impl Package {
    fn new(name: impl Into<String>, why: &'static str) -> Self {
        Self {
            name: name.into(),
            why,
            optional: false,
        }
    }
}

/// What building, the demo, the quickstart and the tests of one machine need. Others ask for more when they are called.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // First, since a part of what it needs is not installed here: that is told before anything has taken its time.
    if options.kube {
        kube::prepare("up")?;
        helm()?;
    }
    host_build()?;
    ebpf()?;
    world()?;
    clients()?;
    if options.tidy {
        tidy()?;
    }
    eprintln!("setup: everything is there");
    Ok(ExitCode::SUCCESS)
}

/// What the agent's own build needs beyond a Rust toolchain.
pub(crate) fn host_build() -> Result<()> {
    apt(vec![
        Package::new(
            "gcc",
            "links Rust programs and compiles the cryptography library",
        ),
        Package::new("libc6-dev", "the C library's headers, for the same"),
        Package::new("make", "builds the allocator"),
    ])
}

/// What a world of network namespaces needs.
pub(crate) fn world() -> Result<()> {
    apt(vec![
        Package::new(
            "iproute2",
            "makes network namespaces, veth pairs and routes",
        ),
        Package::new(
            "util-linux",
            "nsenter and unshare start programs inside them",
        ),
        Package::new("curl", "is the client of the HTTP rows"),
        Package::new("ca-certificates", "roots for crates.io"),
        Package {
            optional: true,
            ..Package::new(
                "bpftool",
                "shows the kernel's tables to you; nothing depends on it",
            )
        },
    ])
}

/// What plays clients and servers that are not written in Rust.
pub(crate) fn clients() -> Result<()> {
    apt(vec![
        Package::new("python3", "runs the tests of other implementations"),
        Package::new(
            "python3-grpcio",
            "is one of them: gRPC, which has its library in C",
        ),
        Package::new("python3-websockets", "is one of them: WebSockets"),
        Package::new("python3-h2", "is one of them: HTTP/2"),
        Package::new("python3-wsproto", "is one of them: WebSockets over HTTP/2"),
        Package::new(
            "python3-venv",
            "makes a place for what Debian 12 does not have",
        ),
    ])?;
    aioquic()
}

/// HTTP/3 for Python, in an environment of its own that sees the distribution's packages too.
fn aioquic() -> Result<()> {
    let folder = shell::root().join("target/python");
    let python = folder.join("bin/python3");
    let own = env::var_os("CARDINAL_PYTHON").map_or_else(|| python.clone(), PathBuf::from);
    let mut asked = shell::command(own);
    let asked = asked.args(["-c", "import aioquic"]).output();
    if asked.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    eprintln!(
        "setup: aioquic {AIOQUIC}, a client of HTTP/3 for tests, goes into {}",
        folder.display()
    );
    let mut made = shell::command("/usr/bin/python3");
    made.args(["-m", "venv", "--system-site-packages"])
        .arg(&folder);
    shell::run(&mut made)?;
    let mut installed = shell::command(&python);
    installed.args(["-m", "pip", "install", "--quiet"]);
    shell::run(installed.arg(format!("aioquic=={AIOQUIC}")))?;
    Ok(())
}

/// What a program without a C library of the machine is built with.
pub(crate) fn static_build(target: &str) -> Result<()> {
    apt(vec![Package::new(
        "musl-tools",
        "compiles C for a static program",
    )])?;
    let there = shell::output(shell::command("rustc").args([
        "--print",
        "target-libdir",
        "--target",
        target,
    ]))?;
    if !PathBuf::from(there).is_dir() {
        eprintln!("setup: the standard library for {target} is missing; rustup fetches it");
        shell::run(shell::command("rustup").args(["target", "add", target]))?;
    }
    Ok(())
}

/// What a Kubernetes in network namespaces needs beside Go.
pub(crate) fn kube() -> Result<()> {
    apt(vec![
        Package::new(
            "iproute2",
            "makes network namespaces, veth pairs and routes",
        ),
        Package::new("util-linux", "nsenter starts programs inside them"),
        Package::new("openssl", "makes the control plane's keys and certificates"),
        Package::new(
            "nftables",
            "has the rules of kube-proxy, beside which agents are tested",
        ),
    ])
}

/// What the benchmark compares the datapath with.
pub(crate) fn peers() -> Result<()> {
    apt(vec![
        Package::new(
            "nftables",
            "is a peer of the benchmark: policy as a set, services as chains",
        ),
        Package::new(
            "iptables",
            "is a peer of the benchmark: services as a list of rules",
        ),
    ])
}

/// What the benchmark compares the router with, and what it sends HTTP/2 with.
pub(crate) fn proxies() -> Result<()> {
    apt(vec![
        Package::new("nginx", "is a peer of the benchmark: a proxy"),
        Package::new("haproxy", "is a peer of the benchmark: a proxy"),
        Package::new(
            "nghttp2-client",
            "its h2load sends the benchmark's HTTP/2 requests",
        ),
        Package::new("util-linux", "taskset keeps each side on one core"),
    ])
}

/// The conformance suite for HTTP/2, which Go builds; or in words why it is not here. Asked for by `CARDINAL_H2SPEC`, it has
/// to be there.
pub(crate) fn h2spec() -> Result<Result<PathBuf, String>> {
    let h2spec = GoProgram {
        name: "h2spec",
        what: "the conformance suite for HTTP/2",
        variable: "CARDINAL_H2SPEC",
        source: "github.com/summerwind/h2spec/cmd/h2spec@latest",
    };
    h2spec.find()
}

/// Helm, which the chart is tested with.
pub(crate) fn helm() -> Result<PathBuf> {
    let helm = GoProgram {
        name: "helm",
        what: "which renders the chart",
        variable: "CARDINAL_HELM",
        source: "helm.sh/helm/v4/cmd/helm@v4.3.0",
    };
    helm.find()?.map_err(anyhow::Error::msg)
}

/// A program that is built with Go where no package brings it.
struct GoProgram {
    name: &'static str,
    what: &'static str,
    /// Names the program, if somebody has it elsewhere.
    variable: &'static str,
    source: &'static str,
}

impl GoProgram {
    /// Where it is, after it was built if need be, or in words why it is not here.
    fn find(&self) -> Result<Result<PathBuf, String>> {
        let Self { name, source, .. } = self;
        if let Some(named) = env::var_os(self.variable) {
            let named = PathBuf::from(named);
            if !named.is_file() {
                bail!(
                    "{} names {}, which is no file",
                    self.variable,
                    named.display()
                );
            }
            return Ok(Ok(named));
        }
        let home = PathBuf::from(env::var_os("HOME").unwrap_or_default());
        let built = home.join("go/bin").join(name);
        if let Some(found) = shell::find(name).or_else(|| built.is_file().then(|| built.clone())) {
            return Ok(Ok(found));
        }
        if shell::find("go").is_none() {
            return Ok(Err(format!(
                "{name} is not here, and no Go to build it with (go install {source})"
            )));
        }
        eprintln!("setup: building {name}, {}", self.what);
        let mut go = shell::command("go");
        go.args(["install", source])
            .env("GOBIN", home.join("go/bin"));
        match shell::run(&mut go) {
            Ok(_) => Ok(Ok(built)),
            Err(error) => Ok(Err(format!("{name} could not be built: {error:#}"))),
        }
    }
}

/// What booting other kernels needs.
pub(crate) fn machines() -> Result<()> {
    apt(vec![
        Package::new(
            "qemu-system-x86",
            "boots the kernels of other distributions, in software",
        ),
        Package::new(
            "debian-archive-keyring",
            "has the keys that Debian's kernel packages are signed with",
        ),
        Package::new("dpkg", "unpacks them"),
        Package::new("xz-utils", "unpacks their modules"),
    ])
}

/// A compiler and a linker for the eBPF programs, if either is missing.
pub(crate) fn ebpf() -> Result<()> {
    let toolchain = Toolchain::find(None);
    let linker = shell::find("bpf-linker").is_some();
    if let (Some(toolchain), true) = (&toolchain, linker) {
        eprintln!("setup: eBPF toolchain is there: {toolchain}");
        return Ok(());
    }

    let debian = Toolchain::find(Some(Kind::Distribution)).is_some()
        || candidate("libstd-rust-web-dev-bpf")?;
    let kind = if toolchain.is_none() && debian {
        Kind::Distribution
    } else {
        Kind::Nightly
    };
    if toolchain.is_none() {
        match kind {
            Kind::Distribution => apt(vec![
                Package::new(
                    "rustc-web",
                    "a compiler whose core library also exists for eBPF",
                ),
                Package::new("libstd-rust-web-dev-bpf", "that core library"),
            ])?,
            Kind::Nightly => {
                eprintln!(
                    "setup: this distribution has no compiler for eBPF, so rustup's nightly builds the core library from source"
                );
                shell::run(shell::command("rustup").args([
                    "toolchain",
                    "install",
                    "nightly",
                    "--profile",
                    "minimal",
                    "--component",
                    "rust-src",
                ]))?;
            }
        }
    }
    let toolchain =
        Toolchain::find(None).context("a compiler for eBPF was installed, but cannot be found")?;
    eprintln!("setup: eBPF toolchain: {toolchain}");
    if !linker {
        bpf_linker(toolchain.kind())?;
    }
    Ok(())
}

/// Builds the linker with the LLVM that the compiler has: bitcode of a newer LLVM cannot be read by an older one.
fn bpf_linker(kind: Kind) -> Result<()> {
    let llvm = kind.llvm_major().unwrap_or(DISTRIBUTION_LLVM);
    let dev = format!("llvm-{llvm}-dev");
    if !installed(&dev) && !candidate(&dev)? {
        eprintln!(
            "setup: this distribution has no {dev}, which building bpf-linker needs; its published binary is taken instead"
        );
        return published_linker();
    }
    apt(vec![
        Package::new(
            &dev,
            "bpf-linker is built with the LLVM that the compiler has",
        ),
        Package::new(
            format!("libpolly-{llvm}-dev"),
            "a library that LLVM's own build description names",
        ),
        Package::new("g++", "LLVM is C++"),
        Package::new("zlib1g-dev", "LLVM links with it"),
        Package::new("libzstd-dev", "LLVM links with it"),
    ])?;
    let prefix_variable = format!("LLVM_SYS_{llvm}1_PREFIX");
    let prefix = format!("/usr/lib/llvm-{llvm}");
    eprintln!(
        "setup: building bpf-linker {BPF_LINKER}, which links the programs into one object (some minutes)"
    );
    shell::run(
        shell::cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                BPF_LINKER,
                "--locked",
                "--no-default-features",
                "--features",
                &format!("llvm-{llvm}"),
            ])
            .env("LLVM_PREFIX", &prefix)
            .env(prefix_variable, &prefix),
    )?;
    Ok(())
}

/// The linker as its authors publish it, with an LLVM of its own inside: for distributions whose LLVM is older than the
/// compiler's, such as Ubuntu. Written from the tools' documentation; the machines that this project is tested on cannot
/// reach what it fetches.
fn published_linker() -> Result<()> {
    if shell::find("cargo-binstall").is_none() {
        eprintln!("setup: cargo-binstall fetches it; building that (some minutes)");
        shell::run(shell::cargo().args(["install", "cargo-binstall", "--locked"]))?;
    }
    let version = format!("bpf-linker@{BPF_LINKER}");
    shell::run(shell::cargo().args(["binstall", "--no-confirm", &version]))?;
    Ok(())
}

/// What `cargo xtask tidy` runs that cargo does not bring.
pub(crate) fn tidy() -> Result<()> {
    match Toolchain::find(None).map(|toolchain| toolchain.kind()) {
        Some(Kind::Distribution) => apt(vec![Package::new(
            "rust-web-clippy",
            "lints the eBPF programs with their own compiler",
        )])?,
        _ => {
            shell::run(shell::command("rustup").args([
                "component",
                "add",
                "clippy",
                "--toolchain",
                "nightly",
            ]))?;
        }
    }
    for (name, version, why) in [
        (
            "cargo-deny",
            CARGO_DENY,
            "checks licences, advisories and sources of dependencies",
        ),
        (
            "cargo-machete",
            CARGO_MACHETE,
            "finds dependencies that nothing uses",
        ),
    ] {
        if shell::find(name).is_none() {
            eprintln!("setup: {name} {version} {why}; building it (some minutes)");
            shell::run(shell::cargo().args(["install", name, "--version", version, "--locked"]))?;
        }
    }
    Ok(())
}

/// Installs those of the packages that are missing.
fn apt(packages: Vec<Package>) -> Result<()> {
    let missing: Vec<Package> = packages
        .into_iter()
        .filter(|package| !installed(&package.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if shell::find("apt-get").is_none() {
        let names: Vec<_> = missing
            .iter()
            .map(|package| package.name.as_str())
            .collect();
        bail!(
            "this machine has no apt-get: install what Debian calls {} with its own package manager",
            names.join(", ")
        );
    }
    eprintln!("setup: these Debian packages are missing:");
    for package in &missing {
        eprintln!("  {:<26} {}", package.name, package.why);
    }
    shell::run(shell::as_root("apt-get")?.args(["update", "-qq"]))?;
    let mut names = Vec::new();
    for package in &missing {
        if package.optional && !candidate(&package.name)? {
            eprintln!(
                "setup: this distribution has no package {}; going on without it",
                package.name
            );
            continue;
        }
        names.push(package.name.as_str());
    }
    if !names.is_empty() {
        shell::run(
            shell::as_root("apt-get")?
                .args(["install", "-y", "--no-install-recommends"])
                .args(&names)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )?;
    }
    Ok(())
}

fn installed(package: &str) -> bool {
    shell::output(shell::command("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Whether the distribution's archive has the package; a fresh machine has no list of it before the first update.
fn candidate(package: &str) -> Result<bool> {
    let known = || {
        shell::output(shell::command("apt-cache").args(["show", "--no-all-versions", package]))
            .is_ok()
    };
    if shell::find("apt-cache").is_none() {
        return Ok(false);
    }
    if known() {
        return Ok(true);
    }
    static UPDATE: std::sync::Once = std::sync::Once::new();
    let mut outcome = Ok(());
    UPDATE.call_once(|| {
        outcome = shell::as_root("apt-get")
            .and_then(|mut apt| shell::run(apt.args(["update", "-qq"])).map(|_| ()));
    });
    outcome?;
    Ok(known())
}
