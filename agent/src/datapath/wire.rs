//! The border to aya: our wire types as aya's plain old data.

use agent_common::Wire;

/// A wire type that aya may copy to and from a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Raw<T: Wire>(pub(super) T);

// SAFETY: `Wire` demands what `Pod` does (no padding, any bit pattern valid, no references), and `Raw` is transparent.
unsafe impl<T: Wire> aya::Pod for Raw<T> {}

// SAFETY: `Raw` is transparent over a wire type.
unsafe impl<T: Wire> Wire for Raw<T> {}

/// A wire key that belongs to one generation.
pub(super) trait OfGeneration: Wire {
    /// That generation.
    fn generation(&self) -> u32;
}

macro_rules! of_generation {
    ($($key:ty),+) => {$(
        impl OfGeneration for $key {
            fn generation(&self) -> u32 {
                <$key>::generation(self)
            }
        }
    )+};
}
of_generation!(agent_common::EndpointKey, agent_common::ListenerKey);

/// The bytes of a wire value.
pub(super) fn bytes<T: Wire>(value: &T) -> &[u8] {
    // SAFETY: a wire type has no padding, so every byte of it is initialised; the slice lives as long as the value.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}
