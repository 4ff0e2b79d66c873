//! The calls of bpf(2) that `splice` needs: aya loads programs from objects only.

use std::{
    ffi::{CStr, c_char},
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};

use super::code::Instruction;

/// Room for the verifier's words on a program of a few dozen instructions.
const LOG: usize = 64 * 1024;

fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the attributes are initialised and as long as told; each caller keeps alive what they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            libc::c_long::from(command as u32),
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// For commands that give a descriptor.
fn open(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    let descriptor = bpf(command, attributes)?;
    // SAFETY: the command gave a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn empty() -> bpf_attr {
    // SAFETY: a union of structures of integers.
    unsafe { std::mem::zeroed() }
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}

/// The kernel's names have 15 bytes at most.
fn named(name: &str) -> [c_char; 16] {
    let mut place = [0; 16];
    for (to, from) in place.iter_mut().take(15).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    place
}

/// Makes a map.
pub(super) fn map(
    kind: bpf_map_type,
    key: usize,
    value: usize,
    entries: u32,
    name: &str,
) -> Result<OwnedFd> {
    let mut attributes = empty();
    attributes.__bindgen_anon_1.map_type = kind as u32;
    attributes.__bindgen_anon_1.key_size = u32::try_from(key)?;
    attributes.__bindgen_anon_1.value_size = u32::try_from(value)?;
    attributes.__bindgen_anon_1.max_entries = entries;
    attributes.__bindgen_anon_1.map_name = named(name);
    open(bpf_cmd::BPF_MAP_CREATE, &mut attributes)
        .with_context(|| format!("failed to create map `{name}`"))
}

/// Loads a program. The error has the verifier's words.
pub(super) fn program(
    kind: bpf_prog_type,
    hook: bpf_attach_type,
    code: &[Instruction],
    name: &str,
) -> Result<OwnedFd> {
    let mut log = vec![0_u8; LOG];
    let mut attributes = empty();
    attributes.__bindgen_anon_3.prog_type = kind as u32;
    attributes.__bindgen_anon_3.expected_attach_type = hook as u32;
    attributes.__bindgen_anon_3.insns = code.as_ptr() as u64;
    attributes.__bindgen_anon_3.insn_cnt = u32::try_from(code.len())?;
    attributes.__bindgen_anon_3.license = c"GPL".as_ptr() as u64;
    attributes.__bindgen_anon_3.log_level = 1;
    attributes.__bindgen_anon_3.log_buf = log.as_mut_ptr() as u64;
    attributes.__bindgen_anon_3.log_size = u32::try_from(LOG)?;
    attributes.__bindgen_anon_3.prog_name = named(name);
    open(bpf_cmd::BPF_PROG_LOAD, &mut attributes).with_context(|| {
        let words = CStr::from_bytes_until_nul(&log).map_or_else(
            |_| String::new(),
            |words| words.to_string_lossy().into_owned(),
        );
        format!("failed to load program `{name}`: {}", words.trim())
    })
}

/// Has a program run for all sockets of a cgroup, as long as the link lives.
pub(super) fn link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: bpf_attach_type,
) -> Result<OwnedFd> {
    let mut attributes = empty();
    attributes.link_create.__bindgen_anon_1.prog_fd = number(program);
    attributes.link_create.__bindgen_anon_2.target_fd = number(cgroup);
    attributes.link_create.attach_type = hook as u32;
    open(bpf_cmd::BPF_LINK_CREATE, &mut attributes).context("failed to attach to a cgroup")
}

/// Has a program run for all sockets of a map, as long as the map lives. (Links to such maps are Linux 6.10's.)
pub(super) fn attach(
    program: BorrowedFd<'_>,
    map: BorrowedFd<'_>,
    hook: bpf_attach_type,
) -> Result<()> {
    let mut attributes = empty();
    attributes.__bindgen_anon_5.__bindgen_anon_1.target_fd = number(map);
    attributes.__bindgen_anon_5.attach_bpf_fd = number(program);
    attributes.__bindgen_anon_5.attach_type = hook as u32;
    bpf(bpf_cmd::BPF_PROG_ATTACH, &mut attributes).context("failed to attach to a map")?;
    Ok(())
}

/// Sums up an entry of a map of 64-bit numbers that each core has its own of.
pub(super) fn sum(map: BorrowedFd<'_>, key: u32) -> Result<u64> {
    let cores = aya::util::nr_cpus()
        .map_err(|(_file, error)| error)
        .context("failed to count the cores")?;
    let mut values = vec![0_u64; cores];
    let mut attributes = empty();
    attributes.__bindgen_anon_2.map_fd = number(map);
    attributes.__bindgen_anon_2.key = std::ptr::from_ref(&key) as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = values.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes).context("failed to read a counter")?;
    Ok(values.iter().sum())
}
