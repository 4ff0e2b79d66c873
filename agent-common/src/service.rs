//! Service addresses, the choice of a backend, and the way back.
//!
//! A [`Service`] names a range of the array `choices`, of which a random [`Choice`] leads to an index of the array
//! `backends`. Slots of both arrays are written only while no live generation names them, so that a reader needs no
//! lock; what a service is to a generation is the [`crate::Versioned`] entry of `services` and nothing else.

use crate::address::{Words, bytes, words};

/// A service address, as a client connects to it. The key of the map `services`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    address: Words,
    port: [u8; 2],
    protocol: u8,
    pad: u8,
}
crate::wire!(ServiceKey = 20);

impl ServiceKey {
    /// `port` in network order; `protocol` is the IP protocol number.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: [u8; 2], protocol: u8) -> Self {
        Self {
            address: words(address),
            port,
            protocol,
            pad: 0,
        }
    }
    /// The service's address.
    #[must_use]
    pub const fn address(&self) -> [u8; 16] {
        bytes(self.address)
    }
    /// The service's port, network order.
    #[must_use]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }
    /// IP protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
}

/// How connections to a service address are answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    first: u32,
    count: u32,
    affinity_seconds: u32,
}
crate::wire!(Service = 12);

impl Service {
    /// Choices `first .. first + count`; a count of 0 refuses every connection. A client keeps its backend for
    /// `affinity_seconds` after its last connection, 0 for not at all.
    #[must_use]
    pub const fn new(first: u32, count: u32, affinity_seconds: u32) -> Self {
        Self {
            first,
            count,
            affinity_seconds,
        }
    }
    /// Index of the first choice.
    #[must_use]
    #[inline(always)]
    pub const fn first(&self) -> u32 {
        self.first
    }
    /// How many choices there are: one for each backend.
    #[must_use]
    #[inline(always)]
    pub const fn count(&self) -> u32 {
        self.count
    }
    /// How long a client keeps its backend, 0 for not at all.
    #[must_use]
    #[inline(always)]
    pub const fn affinity_seconds(&self) -> u32 {
        self.affinity_seconds
    }

    /// The choice that a random number falls on, and where in that choice it falls, as [`Choice::backend`] takes it.
    /// Both are parts of one product (Lemire, "Fast Random Integer Generation in an Interval", 2019), which costs no
    /// division. Uneven by less than `count` in 2^32.
    #[must_use]
    #[inline(always)]
    pub const fn pick(&self, random: u32) -> (u32, u32) {
        let product = random as u64 * self.count as u64;
        (
            self.first.wrapping_add((product >> 32) as u32),
            product as u32,
        )
    }
}

/// One column of a service's alias table (Walker, "An Efficient Method for Generating Discrete Random Variables with
/// General Distributions", 1977): a weighted choice at the price of one look-up, however many backends there are.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    backend: u32,
    alias: u32,
    threshold: u32,
}
crate::wire!(Choice = 12);

impl Choice {
    /// Leads to `backend` for `threshold` of 2^32 random numbers, and to `alias` for the others.
    #[must_use]
    pub const fn new(backend: u32, alias: u32, threshold: u32) -> Self {
        Self {
            backend,
            alias,
            threshold,
        }
    }
    /// The index in `backends` that a random number leads to.
    #[must_use]
    #[inline(always)]
    pub const fn backend(&self, random: u32) -> u32 {
        if random < self.threshold {
            self.backend
        } else {
            self.alias
        }
    }
    /// The backend that this column belongs to.
    #[must_use]
    pub const fn own(&self) -> u32 {
        self.backend
    }
}

/// A backend of one service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    address: Words,
    port: [u8; 2],
    pad: [u8; 2],
    since: u32,
    until: u32,
}
crate::wire!(Backend = 28);

impl Backend {
    /// `port` in network order; `since` is the generation that the slot was written for.
    #[must_use]
    pub const fn new(address: [u8; 16], port: [u8; 2], since: u32) -> Self {
        Self {
            address: words(address),
            port,
            pad: [0; 2],
            since,
            until: u32::MAX,
        }
    }
    /// The same backend, which `generation` does not have any more.
    #[must_use]
    pub const fn until(self, generation: u32) -> Self {
        Self {
            until: generation,
            ..self
        }
    }
    /// The backend's address.
    #[must_use]
    #[inline(always)]
    pub const fn address(&self) -> [u8; 16] {
        bytes(self.address)
    }
    /// The same in words.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> Words {
        self.address
    }
    /// The backend's port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }
    /// The first generation that has it.
    #[must_use]
    #[inline(always)]
    pub const fn since(&self) -> u32 {
        self.since
    }
    /// Whether it ends with a generation that was prepared or is there already.
    #[must_use]
    pub const fn ends(&self) -> bool {
        self.until != u32::MAX
    }
    /// Whether this is the backend that was in the slot since `since`, and `generation` has it. Only what was remembered
    /// has to ask: what a [`Choice`] of a generation names is that generation's. A slot that is given to another backend
    /// gets another `since`, unless the first one was never offered to anybody.
    #[must_use]
    #[inline(always)]
    pub const fn serves(&self, since: u32, generation: u32) -> bool {
        self.since == since && since <= generation && generation < self.until
    }
}

/// Which of 64 ports that lie side by side have been a service's, and which a backend's. An element of the array `ports`.
///
/// The hooks ask here first, since most sockets have nothing to do with a service. A port is noted before the first
/// generation that uses it is written, and stays noted as long as the map: a socket may ask for its peer long after the
/// last generation that had the backend. What is noted in vain costs a look-up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    services: u64,
    backends: u64,
}
crate::wire!(Ports = 16);

impl Ports {
    /// Elements of the array.
    pub const COUNT: u32 = (1 << 16) / u64::BITS;

    /// Where a port (network order) is noted: the index of the element, and the bit.
    #[must_use]
    #[inline(always)]
    pub const fn place(port: [u8; 2]) -> (u32, u64) {
        let port = u16::from_be_bytes(port) as u32;
        (port / u64::BITS, 1 << (port % u64::BITS))
    }
    /// Notes a service's port by its bit.
    pub const fn add_service(&mut self, bit: u64) {
        self.services |= bit;
    }
    /// Notes a backend's port by its bit.
    pub const fn add_backend(&mut self, bit: u64) {
        self.backends |= bit;
    }
    /// Whether the bit is that of a port that a service has or had.
    #[must_use]
    #[inline(always)]
    pub const fn has_service(&self, bit: u64) -> bool {
        self.services & bit != 0
    }
    /// Whether the bit is that of a port that a backend has or had.
    #[must_use]
    #[inline(always)]
    pub const fn has_backend(&self, bit: u64) -> bool {
        self.backends & bit != 0
    }
    /// Both that are noted in one of two elements.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self {
            services: self.services | other.services,
            backends: self.backends | other.backends,
        }
    }
}

/// A client of a service with affinity. The key of the map `affinities`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityKey {
    client: u64,
    service: ServiceKey,
    pad: u32,
}
crate::wire!(AffinityKey = 32);

impl AffinityKey {
    /// `client` is the cookie of the client's network namespace: a pod, or the node itself.
    #[must_use]
    #[inline(always)]
    pub const fn new(client: u64, service: ServiceKey) -> Self {
        Self {
            client,
            service,
            pad: 0,
        }
    }
    /// The service that was asked for.
    #[must_use]
    pub const fn service(&self) -> ServiceKey {
        self.service
    }
}

/// The backend that a client got last.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    seen: u64,
    backend: u32,
    since: u32,
}
crate::wire!(Affinity = 16);

impl Affinity {
    /// `since` is the backend's, `seen` is in nanoseconds of the monotonic clock (`bpf_ktime_get_ns`).
    #[must_use]
    #[inline(always)]
    pub const fn new(backend: u32, since: u32, seen: u64) -> Self {
        Self {
            seen,
            backend,
            since,
        }
    }
    /// Index in `backends`.
    #[must_use]
    #[inline(always)]
    pub const fn backend(&self) -> u32 {
        self.backend
    }
    /// What the slot said of itself.
    #[must_use]
    #[inline(always)]
    pub const fn since(&self) -> u32 {
        self.since
    }
    /// The client connected again.
    #[inline(always)]
    pub const fn touch(&mut self, now: u64) {
        self.seen = now;
    }
    /// Whether the client is bound to it at `now`.
    #[must_use]
    #[inline(always)]
    pub const fn holds(&self, service: &Service, now: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        // Another CPU may have noted a connection since `now`.
        now.saturating_sub(self.seen) < service.affinity_seconds as u64 * SECOND
    }
}

/// A backend as one socket sees it. The key of the map `translations`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationKey {
    cookie: u64,
    address: Words,
    port: [u8; 2],
    pad: u16,
    rest: u32,
}
crate::wire!(TranslationKey = 32);

impl TranslationKey {
    /// `cookie` is the socket's; `address` and `port` (network order) are the backend's.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, address: Words, port: [u8; 2]) -> Self {
        Self {
            cookie,
            address,
            port,
            pad: 0,
            rest: 0,
        }
    }
}

/// The service address that the socket asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationValue {
    address: Words,
    port: [u8; 2],
    pad: u16,
}
crate::wire!(TranslationValue = 20);

impl TranslationValue {
    /// `port` in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: Words, port: [u8; 2]) -> Self {
        Self {
            address,
            port,
            pad: 0,
        }
    }
    /// The service's address.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> Words {
        self.address
    }
    /// The service's port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }
}
