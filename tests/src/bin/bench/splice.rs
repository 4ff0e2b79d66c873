//! Socket splicing, as a prototype to measure: what one end of a connection sends is put into the other end's queue inside
//! the kernel, and no packet is made of it.
//!
//! A program at the node's cgroup puts both sockets of a connection into a map, by the addresses and ports that they see.
//! These are the same in every namespace, as long as nobody translates them. A program at the map sees each message
//! that one of its sockets sends, and redirects it to the socket with the reverse key.
//!
//! It is no part of the product, which has no such programs: what skips the stack meets no gate.

mod code;
mod kernel;

use std::{
    fs::File,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya_obj::generated::{bpf_attach_type, bpf_map_type, bpf_prog_type};

use code::{Code, Instruction, Reg};

/// More sockets than are ever open at a time.
const SOCKETS: u32 = 4096;

/// The key of a socket on the stack: four words from here on, namely its own address, the other's (both in network order),
/// its own port, the other's (both in the machine's order).
const KEY: i16 = -16;
/// The size of a key.
const KEY_SIZE: usize = 16;
/// The number of a counter on the stack.
const COUNTER: i16 = KEY - 4;

// Linux `include/uapi/linux/bpf.h`: `enum bpf_func_id`.
const MAP_LOOKUP_ELEM: i32 = 1;
const SOCK_HASH_UPDATE: i32 = 70;
const MSG_REDIRECT_HASH: i32 = 71;
/// A message goes to a socket's queue of what it is to read, not out of it.
const INGRESS: i32 = 1;
/// The verdict that lets a message pass, redirected or not; also what a redirection answers that was possible.
const PASS: u32 = 1;

/// Offsets in `struct bpf_sock_ops`. The port of the other end is in network order, the own one is not.
mod ops {
    pub(super) const OP: i16 = 0;
    pub(super) const FAMILY: i16 = 20;
    pub(super) const REMOTE_IP4: i16 = 24;
    pub(super) const LOCAL_IP4: i16 = 28;
    pub(super) const REMOTE_PORT: i16 = 64;
    pub(super) const LOCAL_PORT: i16 = 68;
    /// A connection of ours was accepted.
    pub(super) const ACTIVE_ESTABLISHED: u32 = 4;
    /// We accepted a connection.
    pub(super) const PASSIVE_ESTABLISHED: u32 = 5;
    pub(super) const AF_INET: u32 = 2;
}

/// Offsets in `struct sk_msg_md`, with the same orders.
mod msg {
    pub(super) const REMOTE_IP4: i16 = 20;
    pub(super) const LOCAL_IP4: i16 = 24;
    pub(super) const REMOTE_PORT: i16 = 60;
    pub(super) const LOCAL_PORT: i16 = 64;
}

/// Spliced connections of a node, as long as this lives.
#[derive(Debug)]
pub(crate) struct Splice {
    counters: OwnedFd,
    /// Everything else that has to stay.
    _kept: [OwnedFd; 4],
}

/// Messages that sockets of the map sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Messages {
    /// Went to the other end inside the kernel.
    pub(crate) redirected: u64,
    /// Went through the stack, since the other end was not in the map.
    pub(crate) passed: u64,
}

impl Splice {
    /// Splices connections that begin from now on, both ends of which are sockets of the cgroup with one of these
    /// addresses, and one end of which has one of the ports.
    pub(crate) fn attach(cgroup: &Path, addresses: &[Ipv4Addr], ports: &[u16]) -> Result<Self> {
        let sockets = kernel::map(
            bpf_map_type::BPF_MAP_TYPE_SOCKHASH,
            KEY_SIZE,
            size_of::<u64>(),
            SOCKETS,
            "splice_sockets",
        )?;
        let counters = kernel::map(
            bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY,
            size_of::<u32>(),
            size_of::<u64>(),
            2,
            "splice_counters",
        )?;
        let sends = kernel::program(
            bpf_prog_type::BPF_PROG_TYPE_SK_MSG,
            bpf_attach_type::BPF_SK_MSG_VERDICT,
            &sends(sockets.as_raw_fd(), counters.as_raw_fd())?,
            "splice_sends",
        )?;
        kernel::attach(
            sends.as_fd(),
            sockets.as_fd(),
            bpf_attach_type::BPF_SK_MSG_VERDICT,
        )?;
        let begins = kernel::program(
            bpf_prog_type::BPF_PROG_TYPE_SOCK_OPS,
            bpf_attach_type::BPF_CGROUP_SOCK_OPS,
            &begins(sockets.as_raw_fd(), addresses, ports)?,
            "splice_begins",
        )?;
        let cgroup =
            File::open(cgroup).with_context(|| format!("failed to open {}", cgroup.display()))?;
        let link = kernel::link(
            begins.as_fd(),
            cgroup.as_fd(),
            bpf_attach_type::BPF_CGROUP_SOCK_OPS,
        )?;
        Ok(Self {
            counters,
            _kept: [sockets, sends, begins, link],
        })
    }

    /// What was counted so far.
    pub(crate) fn messages(&self) -> Result<Messages> {
        Ok(Messages {
            redirected: kernel::sum(self.counters.as_fd(), PASS)?,
            passed: kernel::sum(self.counters.as_fd(), 0)?,
        })
    }
}

/// A connection begins: its socket is put into the map. One that finds no room is counted with its messages, which pass.
fn begins(sockets: i32, addresses: &[Ipv4Addr], ports: &[u16]) -> Result<Vec<Instruction>> {
    let mut code = Code::default()
        .copy(Reg::R6, Reg::R1)
        .load(Reg::R2, Reg::R6, ops::OP)
        .jump_if(Reg::R2, ops::ACTIVE_ESTABLISHED, "established")
        .jump_unless(Reg::R2, ops::PASSIVE_ESTABLISHED, "end")
        .label("established")
        .load(Reg::R2, Reg::R6, ops::FAMILY)
        .jump_unless(Reg::R2, ops::AF_INET, "end")
        .load(Reg::R7, Reg::R6, ops::REMOTE_IP4);
    for address in addresses {
        code = code.jump_if(
            Reg::R7,
            u32::from_ne_bytes(address.octets()),
            "on this node",
        );
    }
    code = code
        .jump("end")
        .label("on this node")
        .load(Reg::R8, Reg::R6, ops::LOCAL_PORT)
        .load(Reg::R9, Reg::R6, ops::REMOTE_PORT)
        .host_order(Reg::R9);
    for port in ports {
        code = code.jump_if(Reg::R8, (*port).into(), "spliced").jump_if(
            Reg::R9,
            (*port).into(),
            "spliced",
        );
    }
    code.jump("end")
        .label("spliced")
        .load(Reg::R2, Reg::R6, ops::LOCAL_IP4)
        .store(KEY, Reg::R2)
        .store(KEY + 4, Reg::R7)
        .store(KEY + 8, Reg::R8)
        .store(KEY + 12, Reg::R9)
        .copy(Reg::R1, Reg::R6)
        .map(Reg::R2, sockets)
        .on_stack(Reg::R3, KEY)
        .set(Reg::R4, 0)
        .call(SOCK_HASH_UPDATE)
        .label("end")
        .set(Reg::R0, 1)
        .exit()
        .finish()
}

/// A socket of the map sends: the message goes to the other end, if that is in the map too, and is counted.
fn sends(sockets: i32, counters: i32) -> Result<Vec<Instruction>> {
    Code::default()
        .load(Reg::R2, Reg::R1, msg::REMOTE_IP4)
        .store(KEY, Reg::R2)
        .load(Reg::R2, Reg::R1, msg::LOCAL_IP4)
        .store(KEY + 4, Reg::R2)
        .load(Reg::R2, Reg::R1, msg::REMOTE_PORT)
        .host_order(Reg::R2)
        .store(KEY + 8, Reg::R2)
        .load(Reg::R2, Reg::R1, msg::LOCAL_PORT)
        .store(KEY + 12, Reg::R2)
        .map(Reg::R2, sockets)
        .on_stack(Reg::R3, KEY)
        .set(Reg::R4, INGRESS)
        .call(MSG_REDIRECT_HASH)
        .store(COUNTER, Reg::R0)
        .map(Reg::R1, counters)
        .on_stack(Reg::R2, COUNTER)
        .call(MAP_LOOKUP_ELEM)
        .jump_if_null(Reg::R0, "end")
        .set(Reg::R1, 1)
        .add_atomically(Reg::R0, Reg::R1)
        .label("end")
        .set(Reg::R0, PASS.cast_signed())
        .exit()
        .finish()
}
