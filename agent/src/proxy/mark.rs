//! Marks of the router's own sockets, by which the kernel's programs know whose bytes they carry.
//!
//! The upper twelve bits are Cardinal's (`0xca5`); bits 16 to 19 say what the traffic is.

/// Bytes of the north gate.
pub const NORTH: u32 = 0xca52_0000;
/// Bytes of the west gate.
pub const WEST: u32 = 0xca53_0000;
/// The router's other connections to upstreams.
pub const OTHER: u32 = 0xca54_0000;
