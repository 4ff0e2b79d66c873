//! Service addresses, their backends, and the way back.

/// A service address, as a client connects to it. The key of the map `services`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    generation: u32,
    address: [u8; 16],
    port: [u8; 2],
    protocol: u8,
    pad: u8,
}
crate::wire!(ServiceKey = 24);

impl ServiceKey {
    /// `port` in network order; `protocol` is the IP protocol number.
    #[must_use]
    #[inline(always)]
    pub const fn new(generation: u32, address: [u8; 16], port: [u8; 2], protocol: u8) -> Self {
        Self {
            generation,
            address,
            port,
            protocol,
            pad: 0,
        }
    }
    /// The generation that the entry belongs to.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }
}

/// Where a service's backends stand in the map `backends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    first: u32,
    count: u32,
}
crate::wire!(Service = 8);

impl Service {
    /// Backends `first .. first + count`; a count of 0 refuses every connection.
    #[must_use]
    pub const fn new(first: u32, count: u32) -> Self {
        Self { first, count }
    }
    /// Index of the first backend.
    #[must_use]
    #[inline(always)]
    pub const fn first(&self) -> u32 {
        self.first
    }
    /// How many backends there are.
    #[must_use]
    #[inline(always)]
    pub const fn count(&self) -> u32 {
        self.count
    }
}

/// The key of the map `backends`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BackendKey {
    generation: u32,
    index: u32,
}
crate::wire!(BackendKey = 8);

impl BackendKey {
    /// Backend number `index` of `generation`.
    #[must_use]
    #[inline(always)]
    pub const fn new(generation: u32, index: u32) -> Self {
        Self { generation, index }
    }
    /// The generation that the entry belongs to.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }
}

/// A backend's address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    address: [u8; 16],
    port: [u8; 2],
    pad: [u8; 2],
}
crate::wire!(Backend = 20);

impl Backend {
    /// `port` in network order.
    #[must_use]
    pub const fn new(address: [u8; 16], port: [u8; 2]) -> Self {
        Self {
            address,
            port,
            pad: [0; 2],
        }
    }
    /// The backend's address.
    #[must_use]
    #[inline(always)]
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }
    /// The backend's port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }
}

/// A backend as one socket sees it. The key of the map `translations`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationKey {
    cookie: u64,
    address: [u8; 16],
    port: [u8; 2],
    pad: [u8; 6],
}
crate::wire!(TranslationKey = 32);

impl TranslationKey {
    /// `cookie` is the socket's; `address` and `port` (network order) are the backend's.
    #[must_use]
    #[inline(always)]
    pub const fn new(cookie: u64, address: [u8; 16], port: [u8; 2]) -> Self {
        Self {
            cookie,
            address,
            port,
            pad: [0; 6],
        }
    }
}

/// The service address that the socket asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslationValue {
    address: [u8; 16],
    port: [u8; 2],
    pad: [u8; 2],
}
crate::wire!(TranslationValue = 20);

impl TranslationValue {
    /// `port` in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: [u8; 2]) -> Self {
        Self {
            address,
            port,
            pad: [0; 2],
        }
    }
    /// The service's address.
    #[must_use]
    #[inline(always)]
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }
    /// The service's port, network order.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }
}
