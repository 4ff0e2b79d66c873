//! An array of the kernel as memory of this process: as many entries as wanted are written without a call.

use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;

use agent_common::Wire;
use aya::maps::MapData;

use super::error::Error;

/// An array map that was made with `BPF_F_MMAPABLE` (kernel 5.5). Programs see what is written here at once.
pub(super) struct Mapped<T> {
    start: NonNull<u8>,
    /// Bytes of the mapping.
    length: usize,
    count: u32,
    values: PhantomData<T>,
}

// SAFETY: the memory is this value's alone on this side of the border, and the same for every thread.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Wire> Mapped<T> {
    /// Bytes from one entry to the next: the kernel gives each a multiple of eight (`array_map_alloc`).
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Maps all of an array whose values are of this type.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, and when the map's values have another size.
    pub(super) fn new(map: &MapData, name: &'static str) -> Result<Self, Error> {
        let info = map.info().map_err(Error::map("read", name))?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(Error::Contradiction { map: name });
        }
        let count = info.max_entries();
        let length = Self::STRIDE * count as usize;
        // SAFETY: asks for memory that nothing else uses; the descriptor is open, and the mapping keeps the map.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        let failed = Error::kernel(format!("map the memory of map `{name}`"));
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self {
                start,
                length,
                count,
                values: PhantomData,
            }),
            _ => Err(failed(std::io::Error::last_os_error())),
        }
    }

    /// How many entries there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    fn at(&self, index: u32) -> Option<*mut T> {
        (index < self.count).then(|| {
            // SAFETY: the index is below the count, so the entry is inside of the mapping.
            unsafe { self.start.add(Self::STRIDE * index as usize) }
                .as_ptr()
                .cast::<T>()
        })
    }

    /// An entry; none beyond the end.
    pub(super) fn get(&self, index: u32) -> Option<T> {
        // SAFETY: the entry is inside of the mapping and aligned to eight, and every bit pattern is a value. Programs do
        // not write.
        self.at(index).map(|entry| unsafe { entry.read_volatile() })
    }

    /// Writes an entry; `false` beyond the end.
    pub(super) fn set(&mut self, index: u32, value: T) -> bool {
        let entry = self.at(index);
        if let Some(entry) = entry {
            // SAFETY: as above. Programs that read it meanwhile do so with any bit pattern in mind (see the caller).
            unsafe { entry.write_volatile(value) };
        }
        entry.is_some()
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing points into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
