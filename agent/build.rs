//! Puts the eBPF object into the agent, when there is one.
//!
//! `CARDINAL_EBPF_OBJECT` names the file that `cargo xtask build-ebpf` made. Without it the agent builds all the same,
//! for machines without the eBPF toolchain, and then runs with `--datapath none` only.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rustc-check-cfg=cfg(ebpf_object)");
    println!("cargo::rerun-if-env-changed=CARDINAL_EBPF_OBJECT");
    let Some(object) = env::var_os("CARDINAL_EBPF_OBJECT").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let object = PathBuf::from(object);
    println!("cargo::rerun-if-changed={}", object.display());
    let target = PathBuf::from(env::var("OUT_DIR")?).join("cardinal.bpf.o");
    fs::copy(&object, &target)
        .map_err(|error| format!("CARDINAL_EBPF_OBJECT names {}: {error}", object.display()))?;
    println!("cargo::rustc-cfg=ebpf_object");
    Ok(())
}
