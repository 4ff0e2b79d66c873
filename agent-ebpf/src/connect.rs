//! Service addresses become backends where a connection starts, so that no packet needs translation.
//!
//! A socket's own view stays the service address: `getpeername` and the source of received datagrams are turned back.

use agent_common::{
    BackendKey, Lost, ServiceKey, TranslationKey, TranslationValue, address::mapped, is_v4,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie},
    programs::SockAddrContext,
};

use crate::maps::{BACKENDS, SERVICES, TRANSLATIONS, active_generation, count_lost};

/// Return code of a hook that lets the call go on.
pub const ALLOW: i32 = 1;

/// What a connect or sendmsg hook answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call fails with `EPERM`.
    Refuse,
    /// It goes on.
    Allow,
}

impl From<Answer> for i32 {
    #[inline(always)]
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Refuse => 0,
            Answer::Allow => ALLOW,
        }
    }
}

/// How a family's address stands in the context.
pub trait Family {
    /// The address in map form.
    fn address(addr: *mut bpf_sock_addr) -> [u8; 16];
    /// Replaces the address; `false` if the family cannot hold it.
    fn set_address(addr: *mut bpf_sock_addr, address: &[u8; 16]) -> bool;
}

/// An IPv4 socket's call.
pub enum V4 {}
/// An IPv6 socket's call.
pub enum V6 {}

impl Family for V4 {
    #[inline(always)]
    fn address(addr: *mut bpf_sock_addr) -> [u8; 16] {
        // SAFETY: the context is valid for the program's run, and this field is readable by the v4 hooks.
        let [a, b, c, d] =
            unsafe { core::ptr::read_volatile(&raw const (*addr).user_ip4) }.to_ne_bytes();
        mapped(a, b, c, d)
    }

    #[inline(always)]
    fn set_address(addr: *mut bpf_sock_addr, address: &[u8; 16]) -> bool {
        if !is_v4(address) {
            return false;
        }
        let value = u32::from_ne_bytes([address[12], address[13], address[14], address[15]]);
        // SAFETY: the context is valid for the program's run, and this field is writable by the v4 hooks.
        unsafe { core::ptr::write_volatile(&raw mut (*addr).user_ip4, value) };
        true
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(addr: *mut bpf_sock_addr) -> [u8; 16] {
        let mut bytes = [0; 16];
        for word in 0..4 {
            // SAFETY: the context is valid for the program's run, and these fields are readable by the v6 hooks, four
            // bytes at a time.
            let value = unsafe { core::ptr::read_volatile(&raw const (*addr).user_ip6[word]) };
            bytes[word * 4..word * 4 + 4].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    #[inline(always)]
    fn set_address(addr: *mut bpf_sock_addr, address: &[u8; 16]) -> bool {
        for word in 0..4 {
            let at = word * 4;
            let value = u32::from_ne_bytes([
                address[at],
                address[at + 1],
                address[at + 2],
                address[at + 3],
            ]);
            // SAFETY: the context is valid for the program's run, and these fields are writable by the v6 hooks, four
            // bytes at a time.
            unsafe { core::ptr::write_volatile(&raw mut (*addr).user_ip6[word], value) };
        }
        true
    }
}

/// `user_port` holds the port's two bytes in network order in its first two bytes.
#[inline(always)]
fn port(addr: *mut bpf_sock_addr) -> [u8; 2] {
    // SAFETY: the context is valid for the program's run; all hooks may read the field.
    let value = unsafe { core::ptr::read_volatile(&raw const (*addr).user_port) };
    (value as u16).to_ne_bytes()
}

#[inline(always)]
fn set_port(addr: *mut bpf_sock_addr, port: [u8; 2]) {
    // SAFETY: the context is valid for the program's run; all hooks may write the field, four bytes at a time.
    unsafe {
        core::ptr::write_volatile(
            &raw mut (*addr).user_port,
            u32::from(u16::from_ne_bytes(port)),
        )
    };
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Service address to a random backend. An address that is no service's is left alone.
#[inline(always)]
pub fn forward<F: Family>(ctx: &SockAddrContext) -> Answer {
    let addr = ctx.sock_addr;
    let generation = active_generation();
    let asked = F::address(addr);
    let asked_port = port(addr);
    // SAFETY: the context is valid for the program's run; all hooks may read the field.
    let protocol = unsafe { core::ptr::read_volatile(&raw const (*addr).protocol) } as u8;
    // SAFETY: entries of an active generation are neither changed nor removed by the agent.
    let service =
        unsafe { SERVICES.get(ServiceKey::new(generation, asked, asked_port, protocol)) }.copied();
    let Some(service) = service else {
        return Answer::Allow;
    };
    if service.count() == 0 {
        return Answer::Refuse;
    }
    // SAFETY: the helper takes no argument and cannot fail.
    let pick = unsafe { bpf_get_prandom_u32() } % service.count();
    // SAFETY: as for the service.
    let backend = unsafe {
        BACKENDS.get(BackendKey::new(
            generation,
            service.first().wrapping_add(pick),
        ))
    }
    .copied();
    let Some(backend) = backend else {
        return Answer::Refuse;
    };
    if !F::set_address(addr, &backend.address()) {
        return Answer::Refuse;
    }
    set_port(addr, backend.port());
    let key = TranslationKey::new(cookie(ctx), backend.address(), backend.port());
    if TRANSLATIONS
        .insert(&key, &TranslationValue::new(asked, asked_port), 0)
        .is_err()
    {
        count_lost(Lost::Translation);
    }
    Answer::Allow
}

/// Backend to the service address that this socket asked for.
#[inline(always)]
pub fn backward<F: Family>(ctx: &SockAddrContext) {
    let addr = ctx.sock_addr;
    let key = TranslationKey::new(cookie(ctx), F::address(addr), port(addr));
    // SAFETY: the value is copied at once; a reused slot shows another service's address to a socket, and no more.
    if let Some(asked) = unsafe { TRANSLATIONS.get(&key) }.copied()
        && F::set_address(addr, &asked.address())
    {
        set_port(addr, asked.port());
    }
}
