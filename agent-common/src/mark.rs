//! Packet marks (`skb->mark`, `SO_MARK`): how the router's packets and steered packets are told apart.

/// What a mark of Cardinal's says. The low 16 bits of a mark are left to others.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Set by `cell_egress`: route the packet to the router's transparent listener.
    Steer = 0xca51_0000,
    /// The router speaks to a pod as the external gateway.
    NorthGate = 0xca52_0000,
    /// The router speaks to a pod as the internal gateway.
    WestGate = 0xca53_0000,
    /// The router's other traffic to upstreams.
    Upstream = 0xca54_0000,
}

impl Mark {
    /// The bits that a mark of Cardinal's decides: the product's and the meaning's.
    pub const MASK: u32 = 0xffff_0000;
    /// The routing table that steered packets are looked up in.
    pub const STEER_TABLE: u32 = 0xca5;

    /// The mark within `raw`, if it is one of Cardinal's.
    #[must_use]
    #[inline(always)]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw & Self::MASK {
            0xca51_0000 => Some(Self::Steer),
            0xca52_0000 => Some(Self::NorthGate),
            0xca53_0000 => Some(Self::WestGate),
            0xca54_0000 => Some(Self::Upstream),
            _ => None,
        }
    }

    /// The value for `SO_MARK`.
    #[must_use]
    #[inline(always)]
    pub const fn raw(self) -> u32 {
        self as u32
    }
}
