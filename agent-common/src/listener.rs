//! Gateway addresses, and the router's sockets behind them.

/// A gateway address and port. The key of the map `listeners`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ListenerKey {
    generation: u32,
    socket: SocketKey,
}
crate::wire!(ListenerKey = 24);

impl ListenerKey {
    /// The address that `socket` answers, in `generation`.
    #[must_use]
    #[inline(always)]
    pub const fn new(generation: u32, socket: SocketKey) -> Self {
        Self { generation, socket }
    }
    /// The generation that the entry belongs to.
    #[must_use]
    pub const fn generation(&self) -> u32 {
        self.generation
    }
}

/// What a listener is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    gate: u32,
}
crate::wire!(Listener = 4);

impl Listener {
    /// `gate` is the identity that the gateway plays ([`crate::Identity::NORTH_GATE`],
    /// [`crate::Identity::WEST_GATE`]), or none.
    #[must_use]
    pub const fn new(gate: crate::Identity) -> Self {
        Self { gate: gate.raw() }
    }
    /// The gate that the gateway plays.
    #[must_use]
    pub const fn gate(&self) -> crate::Identity {
        crate::Identity::from_raw(self.gate)
    }
}

/// The key of the map `sockets`. It has no generation: a socket outlives the generations that name it, and an entry
/// never changes its meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketKey {
    address: [u8; 16],
    port: [u8; 2],
    protocol: u8,
    pad: u8,
}
crate::wire!(SocketKey = 20);

impl SocketKey {
    /// The router's transparent IPv4 listener: the unspecified address (as v4-mapped) and no port, TCP.
    pub const TRANSPARENT_V4: Self = Self::new(crate::address::mapped(0, 0, 0, 0), [0; 2], 6);
    /// The router's transparent IPv6 listener.
    pub const TRANSPARENT_V6: Self = Self::new([0; 16], [0; 2], 6);

    /// `port` in network order; `protocol` is the IP protocol number.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: [u8; 16], port: [u8; 2], protocol: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            pad: 0,
        }
    }
    /// The address.
    #[must_use]
    pub const fn address(&self) -> [u8; 16] {
        self.address
    }
    /// The port, host order.
    #[must_use]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
    /// The IP protocol number.
    #[must_use]
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }
}
