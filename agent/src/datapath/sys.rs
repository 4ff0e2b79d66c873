//! The bpf(2) commands that aya does not offer: links that are made, pinned and updated by file descriptor alone, and
//! the type information of a loaded program for maps made later.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use agent_common::Wire;
use aya_obj::generated::{
    BPF_F_BEFORE, bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_type,
};

/// What a link attaches to.
pub(super) enum Target<'a> {
    /// A network interface.
    /// Its programs run in order; a new one comes first.
    Interface(u32),
    /// A cgroup or a network namespace.
    File(BorrowedFd<'a>),
}

/// `ENOTSUPP` of the kernel's `linux/errno.h`, which it returns although it is not for user space.
const ENOTSUPP: i32 = 524;

fn zeroed() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; the kernel demands zero in unused fields.
    unsafe { std::mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the attribute is initialised and as long as told; pointers in it outlive the call (see the callers).
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attr),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

fn bpf_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the command returns a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Attaches a program by a link. The program stays attached as long as the link is open or pinned.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: &Target<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    match target {
        Target::Interface(ifindex) => {
            attr.link_create.__bindgen_anon_2.target_ifindex = *ifindex;
            // A program that is already there may end the chain with a verdict of its own.
            attr.link_create.flags = BPF_F_BEFORE;
        }
        Target::File(fd) => attr.link_create.__bindgen_anon_2.target_fd = fd.as_raw_fd() as u32,
    }
    attr.link_create.attach_type = attach_type as u32;
    bpf_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Puts another program into a link, atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link's program off its hook at once.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Inode of the network namespace that a link of sk_lookup is attached in; 0 when that namespace is gone.
pub(super) fn link_netns(link: BorrowedFd<'_>) -> io::Result<u32> {
    let info = info(link)?;
    // SAFETY: the kernel fills this member for links of this type; all members are integers in any case.
    Ok(unsafe { info.__bindgen_anon_1.netns.netns_ino })
}

/// Pins an object into a bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Opens a pinned object.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    bpf_fd(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Opens loaded type information.
pub(super) fn btf_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    bpf_fd(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr)
}

/// How many jiffies the kernel counts in a second. Its coarse clocks advance by one jiffy (`clock_getres(2)`).
pub(super) fn ticks_per_second() -> io::Result<u32> {
    let step = nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
    match u32::try_from(step.tv_nsec()) {
        Ok(nanoseconds @ 1..=1_000_000_000) if step.tv_sec() == 0 => {
            Ok((1_000_000_000 + nanoseconds / 2) / nanoseconds)
        }
        _ => Err(io::Error::other(format!(
            "CLOCK_MONOTONIC_COARSE advances by {step:?}, which is no jiffy"
        ))),
    }
}

/// Writes one entry.
pub(super) fn map_update<K: Wire, V: Wire>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_ref(value) as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The fields of `struct __sk_buff` that a test run takes and gives back, at their places (kernel 5.10).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SkBuff {
    pub(super) len: u32,
    pub(super) pkt_type: u32,
    pub(super) mark: u32,
    queue_to_protocol: [u32; 5],
    priority: u32,
    ingress_ifindex: u32,
    pub(super) ifindex: u32,
    tc_index: u32,
    pub(super) cb: [u32; 5],
    hash_to_end: [u32; 31],
}
const _: () = assert!(size_of::<SkBuff>() == 192);

/// What a test run answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct TestRun {
    /// The program's return code.
    pub(super) code: u32,
    /// The context as the program left it.
    pub(super) context: SkBuff,
}

/// Runs a program of tc once on a frame, without sending it anywhere (`BPF_PROG_TEST_RUN`).
pub(super) fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: SkBuff,
) -> io::Result<TestRun> {
    let mut context_out = SkBuff::default();
    let mut attr = zeroed();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = u32::try_from(frame.len()).map_err(io::Error::other)?;
    attr.test.ctx_in = std::ptr::from_ref(&context) as u64;
    attr.test.ctx_size_in = size_of::<SkBuff>() as u32;
    attr.test.ctx_out = std::ptr::from_mut(&mut context_out) as u64;
    attr.test.ctx_size_out = size_of::<SkBuff>() as u32;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    Ok(TestRun {
        // SAFETY: the kernel filled the member; it is an integer in any case.
        code: unsafe { attr.test.retval },
        context: context_out,
    })
}

/// Makes a map of one entry, whose key and value have four bytes each; `inner` shows what a map of maps holds.
pub(super) fn map_create(kind: bpf_map_type, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: all members are integers, and this one is zeroed like the rest.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = kind as u32;
    create.key_size = 4;
    create.value_size = 4;
    create.max_entries = 1;
    if let Some(inner) = inner {
        create.inner_map_fd = inner.as_raw_fd() as u32;
    }
    bpf_fd(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Writes many entries with one call, for which a map of maps waits for its readers once instead of once per entry (kernel 6.8).
/// `None` if the kernel has no such call for this map (maps of maps: before 5.19); then nothing was written.
pub(super) fn map_update_batch<K: Wire, V: Wire>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> io::Result<Option<()>> {
    let count = keys.len().min(values.len());
    map_batch(
        bpf_cmd::BPF_MAP_UPDATE_BATCH,
        map,
        keys.as_ptr() as u64,
        values.as_ptr() as u64,
        count,
    )
}

/// Removes many entries with one call; `None` as for [`map_update_batch`].
pub(super) fn map_delete_batch<K: Wire>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<Option<()>> {
    map_batch(
        bpf_cmd::BPF_MAP_DELETE_BATCH,
        map,
        keys.as_ptr() as u64,
        0,
        keys.len(),
    )
}

fn map_batch(
    command: bpf_cmd,
    map: BorrowedFd<'_>,
    keys: u64,
    values: u64,
    count: usize,
) -> io::Result<Option<()>> {
    let mut attr = zeroed();
    attr.batch.keys = keys;
    attr.batch.values = values;
    attr.batch.count = u32::try_from(count).map_err(io::Error::other)?;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    match bpf(command, &mut attr) {
        Ok(_) => Ok(Some(())),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads one entry; `None` if there is none.
pub(super) fn map_lookup<K: Wire, V: Wire + Default>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = V::default();
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_mut(&mut value) as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes one entry; gone already is fine.
pub(super) fn map_delete<K: Wire>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    match bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Hands every entry of a map to `each`, many per call. Where the kernel has no such call for this map (LPM tries: before
/// 5.16), one by one. `max_entries` is the map's size.
pub(super) fn map_read<K: Wire, V: Wire>(
    map: BorrowedFd<'_>,
    max_entries: usize,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    /// Entries per call: so many that the call costs little of what they cost, and few enough that their place is no memory worth
    /// speaking of, as maps are read every few seconds. A bucket of a hash must fit; a map has as many buckets as entries.
    const MANY: usize = 256;
    let many = MANY.min(max_entries.max(1));
    // SAFETY: `Wire` types are valid for every bit pattern.
    let (mut keys, mut values): (Vec<K>, Vec<V>) = unsafe {
        (
            vec![std::mem::zeroed(); many],
            vec![std::mem::zeroed(); many],
        )
    };
    // Where the next call goes on: a bucket for hashes, a key for tries.
    let mut place = [0u8; 64];
    const { assert!(size_of::<K>() <= 64) };
    let mut first = true;
    loop {
        let mut attr = zeroed();
        let mut next = [0u8; 64];
        attr.batch.in_batch = if first { 0 } else { place.as_ptr() as u64 };
        attr.batch.out_batch = next.as_mut_ptr() as u64;
        attr.batch.keys = keys.as_mut_ptr() as u64;
        attr.batch.values = values.as_mut_ptr() as u64;
        attr.batch.count = many as u32;
        attr.batch.map_fd = map.as_raw_fd() as u32;
        let outcome = bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr);
        let done = match &outcome {
            Ok(_) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP | libc::ENOSPC) if first => {
                    return map_read_singly(map, each);
                }
                _ => return outcome.map(drop),
            },
        };
        // SAFETY: the kernel filled the member; it is an integer in any case.
        let count = (unsafe { attr.batch.count } as usize).min(many);
        for (key, value) in keys.iter().zip(&values).take(count) {
            each(key, value);
        }
        if done {
            return Ok(());
        }
        place = next;
        first = false;
    }
}

fn map_read_singly<K: Wire, V: Wire>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(&K, &V),
) -> io::Result<()> {
    // SAFETY: `Wire` types are valid for every bit pattern.
    let (mut key, mut next, mut value): (K, K, V) = unsafe { std::mem::zeroed() };
    let mut first = true;
    loop {
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = if first {
            0
        } else {
            std::ptr::from_ref(&key) as u64
        };
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = std::ptr::from_mut(&mut next) as u64;
        match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        (key, first) = (next, false);
        let mut attr = zeroed();
        attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = std::ptr::from_ref(&key) as u64;
        attr.__bindgen_anon_2.__bindgen_anon_1.value = std::ptr::from_mut(&mut value) as u64;
        match bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) {
            Ok(_) => each(&key, &value),
            // Removed in between.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The kernel's number of a map or program: what it is told apart by from another in the same place.
pub(super) fn object_id(object: BorrowedFd<'_>) -> io::Result<u32> {
    // All three kinds of information begin with the type and the number.
    info(object).map(|info| info.id)
}

/// What a link does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkState {
    /// The number of its program.
    pub(super) program: u32,
    /// Whether the program is still at its hook.
    pub(super) attached: bool,
}

/// Asks a link what it does.
pub(super) fn link_state(link: BorrowedFd<'_>) -> io::Result<LinkState> {
    /// `BPF_LINK_TYPE_CGROUP` of the kernel's `linux/bpf.h`.
    const CGROUP: u32 = 3;
    let info = info(link)?;
    // SAFETY: the kernel fills the member of the link's type, and zero where there is no hook any more; all are integers.
    let attached = unsafe {
        match info.type_ {
            CGROUP => info.__bindgen_anon_1.cgroup.cgroup_id != 0,
            // An interface's number or a namespace's inode, both in the first four bytes.
            _ => info.__bindgen_anon_1.netns.netns_ino != 0,
        }
    };
    Ok(LinkState {
        program: info.prog_id,
        attached,
    })
}

fn info(object: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: all zero is a valid `bpf_link_info`, which the kernel fills as far as it is long.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = object.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info)
}
