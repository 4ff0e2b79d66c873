//! Addresses as the maps hold them: 16 bytes, network order, IPv4 mapped into IPv6.

use core::net::{IpAddr, Ipv6Addr};

/// The first twelve bytes of every v4-mapped address (RFC 4291 section 2.5.5.2).
pub const V4_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

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
