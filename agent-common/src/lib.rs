//! Keys and values of Cardinal's kernel maps.
//!
//! What flows in: addresses, identities and verdicts that the agent computed. What flows out: bytes that the eBPF
//! programs read, and bytes that they write back (flows, counters, events). Both sides compile this crate, so one
//! definition decides every layout. It has no dependency and no behaviour beyond building and reading its own types.
//!
//! Conventions: addresses are 16 bytes in network order, IPv4 as v4-mapped (`::ffff:a.b.c.d`, RFC 4291 section
//! 2.5.5.2); ports inside keys are two bytes in network order; every padding byte has a name and is zero, because
//! the kernel compares hash keys byte by byte.
#![no_std]

pub mod address;
pub mod control;
pub mod counter;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod identity;
pub mod listener;
pub mod mark;
pub mod policy;
pub mod reason;
pub mod service;
pub mod versioned;

pub use address::{address_bytes, address_ip, is_v4};
pub use control::Control;
pub use counter::{Counter, CounterKey, Limit, LimitKey, Lost, Tally};
pub use endpoint::{Endpoint, EndpointKey};
pub use event::{Event, Hook};
pub use flow::{FlowKey, FlowState, FlowValue, FragmentKey, FragmentValue};
pub use identity::{Identity, IdentityKey, IdentityValue};
pub use listener::{Listener, ListenerKey, SocketKey};
pub use mark::Mark;
pub use policy::{Action, Lookups, Rule, RuleKey};
pub use reason::{Direction, Path, Reason, Verdict};
pub use service::{
    Affinity, AffinityKey, Backend, Choice, Ports, Service, ServiceKey, TranslationKey,
    TranslationValue,
};
pub use versioned::Versioned;

/// A type that may cross the border between the agent and the kernel as bytes.
///
/// # Safety
///
/// The type is `repr(C)`, has no implicit padding and an alignment of at most 8, and every bit pattern of its size is a
/// value of it.
pub unsafe trait Wire: Copy + 'static {}

macro_rules! wire {
    ($($name:ty = $size:literal),+ $(,)?) => {$(
        const _: () = assert!(core::mem::size_of::<$name>() == $size && core::mem::align_of::<$name>() <= 8);
        // SAFETY: the size equals the sum of the fields' sizes (checked by the assertion above and by the layout
        // test), and all fields are integers or arrays of them.
        unsafe impl $crate::Wire for $name {}
    )+};
}
pub(crate) use wire;

// SAFETY: integers have no padding and no invalid bit pattern.
unsafe impl Wire for u32 {}
// SAFETY: as above.
unsafe impl Wire for u64 {}
