//! What others do to a pod's interface: programs of their own, and ours taken away. Plain bpf(2), so that nothing of the
//! agent's own code is trusted here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type};

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> i64 {
    // SAFETY: the attribute is initialised and as long as told; what it points to outlives the call (see the callers).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    assert!(
        result >= 0,
        "bpf({command:?}): {}",
        io::Error::last_os_error()
    );
    result
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: the command returned a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers.
    unsafe { std::mem::zeroed() }
}

/// A program of somebody else that lets everything pass.
pub(crate) fn program() -> OwnedFd {
    // `r0 = 0` (`TCX_PASS`), `exit`.
    let code: [u64; 2] = [0xb7, 0x95];
    let license = c"GPL";
    let mut load = zeroed();
    load.__bindgen_anon_3.prog_type = bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS as u32;
    load.__bindgen_anon_3.insns = code.as_ptr() as u64;
    load.__bindgen_anon_3.insn_cnt = code.len() as u32;
    load.__bindgen_anon_3.license = license.as_ptr() as u64;
    owned(bpf(bpf_cmd::BPF_PROG_LOAD, &mut load))
}

/// Pins something of somebody else's.
pub(crate) fn pin(object: &OwnedFd, path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL");
    let mut pin = zeroed();
    pin.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    pin.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut pin);
}

/// A program of somebody else at an interface (tcx ingress, 6.6), as long as this lives.
pub(crate) fn lets_all_pass(ifindex: u32) -> OwnedFd {
    let program = program();
    let mut link = zeroed();
    link.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    link.link_create.__bindgen_anon_2.target_ifindex = ifindex;
    link.link_create.attach_type = bpf_attach_type::BPF_TCX_INGRESS as u32;
    owned(bpf(bpf_cmd::BPF_LINK_CREATE, &mut link))
}

/// Takes a pinned link's program off its hook, as `bpftool link detach` does.
pub(crate) fn detach_pinned(path: &Path) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL");
    let mut get = zeroed();
    get.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let link = owned(bpf(bpf_cmd::BPF_OBJ_GET, &mut get));
    let mut detach = zeroed();
    detach.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut detach);
}

/// The interface that a link holds a program at, as the kernel tells its owner; 0 once it was taken off.
pub(crate) fn attached_to(link: &OwnedFd) -> u32 {
    let info = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", link.as_raw_fd()))
        .expect("the kernel describes a descriptor");
    info.lines()
        .find_map(|line| line.strip_prefix("ifindex:"))
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or_else(|| panic!("a link of an interface: {info}"))
}
