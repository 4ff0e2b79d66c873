//! Addresses as two words: the same sixteen bytes that maps hold, in a form that is compared and copied at once.

use aya_ebpf::btf_maps::lpm_trie::Key;

/// An address in map form: network order, IPv4 mapped into IPv6.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Address {
    high: u64,
    low: u64,
}

/// The middle of a mapped address (RFC 4291 section 2.5.5.2) and nothing behind it.
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

impl Address {
    /// No address: the unspecified one of IPv6.
    pub const NONE: Self = Self { high: 0, low: 0 };

    /// An IPv4 address, as four bytes lie in memory.
    #[inline(always)]
    pub const fn v4(raw: u32) -> Self {
        let [a, b, c, d] = raw.to_ne_bytes();
        Self {
            high: 0,
            low: MAPPED | u64::from_ne_bytes([0, 0, 0, 0, a, b, c, d]),
        }
    }

    /// An IPv6 address, as its halves lie in memory.
    #[inline(always)]
    pub const fn v6(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// The address of these bytes.
    #[inline(always)]
    pub const fn of(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            low: u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        }
    }

    /// The bytes, as a key or an event holds them.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 16] {
        // SAFETY: two integers without padding are sixteen bytes, and any of them are bytes.
        unsafe { core::mem::transmute::<Self, [u8; 16]>(self) }
    }

    /// The key that the longest prefix of an address is looked up with.
    #[inline(always)]
    pub fn prefix(self) -> Key<[u8; 16]> {
        Key::new(128, self.bytes())
    }

    /// The first two bytes.
    #[inline(always)]
    const fn head(self) -> [u8; 2] {
        let [a, b, ..] = self.high.to_ne_bytes();
        [a, b]
    }

    /// Whether it is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low as u32 == MAPPED as u32
    }

    /// Whether it is all zero.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.high | self.low == 0
    }

    /// Whether two addresses are one.
    #[inline(always)]
    pub const fn is(self, other: Self) -> bool {
        self.high == other.high && self.low == other.low
    }

    /// 224.0.0.0/4, 255.255.255.255, ff00::/8.
    #[inline(always)]
    pub const fn is_group(self, v4: bool) -> bool {
        if v4 {
            let [_, _, _, _, first, ..] = self.low.to_ne_bytes();
            first >= 224 && (first < 240 || first == 255)
        } else {
            self.head()[0] == 0xff
        }
    }

    /// Scope of an IPv6 group (RFC 4291 section 2.7).
    #[inline(always)]
    pub const fn group_scope(self) -> u8 {
        self.head()[1] & 0x0f
    }

    /// fe80::/10.
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        let [first, second] = self.head();
        first == 0xfe && second & 0xc0 == 0x80
    }
}

/// A port, as its two bytes lie in memory.
#[inline(always)]
pub const fn port(bytes: [u8; 2]) -> u16 {
    u16::from_ne_bytes(bytes)
}
