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
