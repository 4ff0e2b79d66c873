//! Addresses as the maps hold them: 16 bytes, network order, IPv4 mapped into IPv6.

use core::net::{IpAddr, Ipv6Addr};

/// The bytes of an address as a map holds them.
#[must_use]
pub const fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// An address in map form as four words, each with its bytes as they lie in memory: what a hook of the kernel reads and writes
/// at once.
pub type Words = [u32; 4];

/// The words of an address in map form.
#[must_use]
#[inline(always)]
pub const fn words(bytes: [u8; 16]) -> Words {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The bytes of an address in words.
#[must_use]
#[inline(always)]
pub const fn bytes(words: Words) -> [u8; 16] {
    let [first, second, third, fourth] = words;
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    let [i, j, k, l] = third.to_ne_bytes();
    let [m, n, o, p] = fourth.to_ne_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The address that 16 map bytes mean; v4-mapped bytes come back as IPv4.
#[must_use]
pub const fn address_ip(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from_octets(bytes).to_canonical()
}

/// Whether the bytes are a v4-mapped address.
#[must_use]
#[inline(always)]
pub const fn is_v4(bytes: &[u8; 16]) -> bool {
    matches!(
        bytes,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, _, _, _, _]
    )
}

/// The IPv4 address `a.b.c.d` in map form.
#[must_use]
#[inline(always)]
pub const fn mapped(a: u8, b: u8, c: u8, d: u8) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
