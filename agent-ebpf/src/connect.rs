//! Service addresses become backends where a connection starts, so that no packet needs translation.
//!
//! A socket's own view stays the service address: `getpeername` and the source of received datagrams are turned back.
//!
//! Which backend: the one that the client had, if the service has affinity, it is not older than the service says, and
//! the backend still is one of this generation's; otherwise a random one by weight. A random choice needs no memory and
//! no agreement between nodes, since nothing asks again: what was chosen stays with the socket as long as that lives.
//! Consistent hashing (Maglev) would answer another question, which is how nodes that share no memory send every packet
//! of one connection to one backend. Here the client's own node decides, once for each connection, and what must be
//! remembered of a client is in the map `affinities`. A socket that sends without being connected is asked about at each
//! datagram: its cookie decides, so that it keeps to one backend as long as the service has the same ones (a handshake
//! of QUIC or DTLS is more than one datagram).
//!
//! Nearly every socket that these hooks see has nothing to do with a service. It costs them one look-up in an array: whether
//! the port has ever been a service's, or a backend's (`ports`).
//!
//! Who the client is: the network namespace, that is the pod, or the node with all that runs in its own namespace.

use agent_common::{
    Affinity, AffinityKey, Backend, Lost, Ports, Service, ServiceKey, TranslationKey,
    TranslationValue,
    address::{Words, bytes},
};
use aya_ebpf::{
    EbpfContext as _, Global,
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns,
        bpf_set_retval,
    },
    programs::SockAddrContext,
};

use crate::maps::{
    AFFINITIES, BACKENDS, CHOICES, PORTS, SERVICES, TRANSLATIONS, active_generation, count_lost,
};

/// Return code of a hook that lets the call go on.
pub const ALLOW: i32 = 1;

/// Whether `bpf_set_retval` exists (kernel 5.18). The agent sets it before the programs are loaded; the verifier takes it
/// for a constant, so that an older kernel never looks at the call behind it.
#[unsafe(no_mangle)]
static NAMES_REFUSAL: Global<u8> = Global::new(0);

/// What a connect or sendmsg hook answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The call fails with `ECONNREFUSED`, as nobody is there; with `EPERM` where the kernel has no other word (below
    /// 5.18).
    Refuse,
    /// It goes on.
    Allow,
}

impl From<Answer> for i32 {
    #[inline(always)]
    fn from(answer: Answer) -> Self {
        /// Of the kernel's `asm-generic/errno.h`.
        const ECONNREFUSED: i32 = 111;
        match answer {
            Answer::Refuse => {
                if NAMES_REFUSAL.load() != 0 {
                    // SAFETY: the helper takes a number and fails only for one that is no error.
                    unsafe { bpf_set_retval(-ECONNREFUSED) };
                }
                0
            }
            Answer::Allow => ALLOW,
        }
    }
}

/// How a family's address stands in the context.
pub trait Family {
    /// The address in map form.
    fn address(addr: *mut bpf_sock_addr) -> Words;
    /// Replaces the address; `false` if the family cannot hold it.
    fn set_address(addr: *mut bpf_sock_addr, address: Words) -> bool;
}

/// An IPv4 socket's call.
pub enum V4 {}
/// An IPv6 socket's call.
pub enum V6 {}

/// The first three words of an IPv4 address in map form (RFC 4291 section 2.5.5.2).
const MAPPED: [u32; 3] = [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff])];

impl Family for V4 {
    #[inline(always)]
    fn address(addr: *mut bpf_sock_addr) -> Words {
        // SAFETY: the context is valid for the program's run, and this field is readable by the v4 hooks.
        let address = unsafe { core::ptr::read_volatile(&raw const (*addr).user_ip4) };
        [MAPPED[0], MAPPED[1], MAPPED[2], address]
    }

    #[inline(always)]
    fn set_address(addr: *mut bpf_sock_addr, address: Words) -> bool {
        let [first, second, third, address] = address;
        if [first, second, third] != MAPPED {
            return false;
        }
        // SAFETY: the context is valid for the program's run, and this field is writable by the v4 hooks.
        unsafe { core::ptr::write_volatile(&raw mut (*addr).user_ip4, address) };
        true
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(addr: *mut bpf_sock_addr) -> Words {
        let mut words = [0; 4];
        for (index, word) in words.iter_mut().enumerate() {
            // SAFETY: the context is valid for the program's run, and these fields are readable by the v6 hooks, four
            // bytes at a time.
            *word = unsafe { core::ptr::read_volatile(&raw const (*addr).user_ip6[index]) };
        }
        words
    }

    #[inline(always)]
    fn set_address(addr: *mut bpf_sock_addr, address: Words) -> bool {
        for (index, word) in address.into_iter().enumerate() {
            // SAFETY: the context is valid for the program's run, and these fields are writable by the v6 hooks, four
            // bytes at a time.
            unsafe { core::ptr::write_volatile(&raw mut (*addr).user_ip6[index], word) };
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

/// An entry was replaced twice while it was read.
struct Unsteady;

/// What a service address is to a generation.
///
/// The kernel gives the memory of an entry to another key as soon as it is replaced, and a program at these hooks may be
/// preempted while it reads. So the entry is copied and looked up again: the agent writes a key at most once between two
/// grace periods, so one that is found at the same place and of the same generation was not replaced meanwhile, and the
/// copy is whole. What was replaced is read once more. There is no barrier between the two (5.10 has none for these
/// programs): a processor that reorders loads would have to hold the copy back for a whole look-up, in which the agent
/// replaces this entry and another one.
#[inline(always)]
fn service(key: &ServiceKey, generation: u32) -> Result<Option<Service>, Unsteady> {
    for _ in 0..2 {
        let Some(found) = SERVICES.get_ptr(key) else {
            return Ok(None);
        };
        // SAFETY: the pointer is memory of the map, whatever entry it holds, and every bit pattern is a value.
        let copy = unsafe { core::ptr::read_volatile(found) };
        // What is read is the pointer that was found first: verifiers before 5.18 do not see that its equal is not null either.
        if SERVICES.get_ptr(key) == Some(found)
            // SAFETY: as above.
            && unsafe { core::ptr::read_volatile(found) }.since() == copy.since()
        {
            return Ok(copy.at(generation).copied());
        }
    }
    Err(Unsteady)
}

/// A backend by weight; `None` if the tables contradict each other.
#[inline(always)]
fn choose(ctx: &SockAddrContext, call: Call, service: &Service) -> Option<(u32, Backend)> {
    let random = match call {
        // SAFETY: the helper takes no argument and cannot fail.
        Call::Connect => unsafe { bpf_get_prandom_u32() },
        // Cookies count up: the upper half of this product (Fibonacci hashing) spreads them evenly.
        Call::Send => (cookie(ctx).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32,
    };
    let (column, rest) = service.pick(random);
    // Slots that a live generation names are not written.
    let index = CHOICES.get(column)?.backend(rest);
    Some((index, *BACKENDS.get(index)?))
}

/// The backend that this client had, else one by weight, which is then the client's.
#[inline(always)]
fn remembered(
    ctx: &SockAddrContext,
    call: Call,
    service: &Service,
    key: ServiceKey,
    generation: u32,
) -> Option<Backend> {
    // SAFETY: the helper takes the program's context.
    let client = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: the helper takes no argument and cannot fail.
    let now = unsafe { bpf_ktime_get_ns() };
    let key = AffinityKey::new(client, key);
    if let Some(known) = AFFINITIES.get_ptr_mut(&key) {
        // SAFETY: the pointer is memory of the map, whatever entry it holds, and every bit pattern is a value.
        let had = unsafe { core::ptr::read_volatile(known) };
        if had.holds(service, now)
            && let Some(backend) = BACKENDS.get(had.backend())
            && backend.serves(had.since(), generation)
            // The kernel may have given the entry's memory to another client while it was read.
            && AFFINITIES.get_ptr_mut(&key) == Some(known)
        {
            // SAFETY: as above; at worst another client's entry lives a little longer.
            unsafe { (*known).touch(now) };
            return Some(*backend);
        }
    }
    let (index, backend) = choose(ctx, call, service)?;
    if AFFINITIES
        .insert(&key, &Affinity::new(index, backend.since(), now), 0)
        .is_err()
    {
        count_lost(Lost::Affinity);
    }
    Some(backend)
}

/// What is noted of a port, and its bit there.
#[inline(always)]
fn noted(port: [u8; 2]) -> Option<(&'static Ports, u64)> {
    let (index, bit) = Ports::place(port);
    Some((PORTS.get(index)?, bit))
}

/// Whether a socket connects, or sends a datagram of many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Once in most sockets' life.
    Connect,
    /// Often again to the same backend.
    Send,
}

/// Remembers what a socket asked for.
#[inline(always)]
fn remember(call: Call, key: &TranslationKey, value: &TranslationValue) {
    if call == Call::Send {
        // An entry that is written again is a new one in the place of the old, which costs several times as much as finding
        // that it says the same.
        // SAFETY: compared at once; a reused slot says of another socket what should be said of this one, whose entry is then
        // as lost as if it had been pushed out a moment later.
        let known = unsafe { TRANSLATIONS.get(key) };
        if known.is_some_and(|known| known == value) {
            return;
        }
    }
    if TRANSLATIONS.insert(key, value, 0).is_err() {
        count_lost(Lost::Translation);
    }
}

/// Service address to backend. An address that is no service's is left alone.
#[inline(always)]
pub fn forward<F: Family>(ctx: &SockAddrContext, call: Call) -> Answer {
    let addr = ctx.sock_addr;
    let asked_port = port(addr);
    // Before the generation is read: no generation that was active at this moment has a service there.
    if !noted(asked_port).is_some_and(|(ports, bit)| ports.has_service(bit)) {
        return Answer::Allow;
    }
    let generation = active_generation();
    let asked = F::address(addr);
    // SAFETY: the context is valid for the program's run; all hooks may read the field.
    let protocol = unsafe { core::ptr::read_volatile(&raw const (*addr).protocol) } as u8;
    let key = ServiceKey::new(bytes(asked), asked_port, protocol);
    let service = match service(&key, generation) {
        Ok(Some(service)) => service,
        Ok(None) => return Answer::Allow,
        Err(Unsteady) => return Answer::Refuse,
    };
    if service.count() == 0 {
        return Answer::Refuse;
    }
    let backend = if service.affinity_seconds() == 0 {
        choose(ctx, call, &service).map(|(_, backend)| backend)
    } else {
        remembered(ctx, call, &service, key, generation)
    };
    let Some(backend) = backend else {
        return Answer::Refuse;
    };
    if !F::set_address(addr, backend.words()) {
        return Answer::Refuse;
    }
    set_port(addr, backend.port());
    let key = TranslationKey::new(cookie(ctx), backend.words(), backend.port());
    remember(call, &key, &TranslationValue::new(asked, asked_port));
    Answer::Allow
}

/// Backend to the service address that this socket asked for.
#[inline(always)]
pub fn backward<F: Family>(ctx: &SockAddrContext) {
    let addr = ctx.sock_addr;
    let port = port(addr);
    // A socket that was led to a backend was so after the backend's port was noted.
    if !noted(port).is_some_and(|(ports, bit)| ports.has_backend(bit)) {
        return;
    }
    let key = TranslationKey::new(cookie(ctx), F::address(addr), port);
    // SAFETY: the value is copied at once; a reused slot shows another service's address to a socket, and no more.
    if let Some(asked) = unsafe { TRANSLATIONS.get(&key) }.copied()
        && F::set_address(addr, asked.words())
    {
        set_port(addr, asked.port());
    }
}
