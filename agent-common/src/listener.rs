//! Gateway addresses and the router's sockets behind them.

/// A gateway address and port. The key of the map `listeners`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerKey {
    generation: u32,
    address: [u8; 16],
    port: [u8; 2],
    protocol: u8,
    pad: u8,
}
crate::wire!(ListenerKey = 24);

impl ListenerKey {
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

/// Which of the router's sockets answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    socket: u32,
}
crate::wire!(Listener = 4);

impl Listener {
    /// Index of the router's transparent IPv4 listener in the map `sockets`.
    pub const TRANSPARENT_V4: u32 = 0;
    /// Index of the router's transparent IPv6 listener in the map `sockets`.
    pub const TRANSPARENT_V6: u32 = 1;
    /// First index that is free for gateways' listeners.
    pub const FIRST_GATEWAY: u32 = 2;

    /// `socket` is an index of the map `sockets`.
    #[must_use]
    pub const fn new(socket: u32) -> Self {
        Self { socket }
    }
    /// Index in the map `sockets`.
    #[must_use]
    #[inline(always)]
    pub const fn socket(&self) -> u32 {
        self.socket
    }
}
