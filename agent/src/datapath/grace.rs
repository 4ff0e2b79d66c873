//! Waiting until every program that runs now has ended.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya_obj::generated::bpf_map_type;

use super::{error::Error, sys};

/// A map of maps of one entry, which no program reads. A write into such a map returns only after all programs that
/// could have read the old entry have ended, and the kernel does not ask which those are: it waits for a grace period
/// of RCU (kernel 4.20, `maybe_wait_bpf_programs`).
#[derive(Debug)]
pub(super) struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    /// Makes the two maps.
    pub(super) fn new() -> Result<Self, Error> {
        let failed = || Error::kernel("make the map that grace periods are waited for with");
        let inner = sys::map_create(bpf_map_type::BPF_MAP_TYPE_ARRAY, None).map_err(failed())?;
        let outer = sys::map_create(
            bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS,
            Some(inner.as_fd()),
        )
        .map_err(failed())?;
        Ok(Self { outer, inner })
    }

    /// Returns when every program has ended that runs now. Some milliseconds.
    ///
    /// # Errors
    ///
    /// When the kernel refuses; then nothing was waited for.
    pub(super) fn wait(&self) -> Result<(), Error> {
        sys::map_update(self.outer.as_fd(), &0u32, &(self.inner.as_raw_fd() as u32))
            .map_err(Error::kernel("wait for a grace period"))
    }
}
