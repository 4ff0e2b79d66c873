//! An array of the kernel as memory of this process: as many entries as wanted are written without a call.
//!
//! What is mapped counts as resident, whether it is touched or not, and the arrays are made for large nodes. So the array is
//! mapped window by window, each when its first entry is asked for: slots are given from the lowest on.

use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;

use agent_common::Wire;
use aya::maps::MapData;

use super::error::Error;

/// Entries of a window. An entry takes a multiple of eight bytes, so that windows are multiples of 64 KiB and begin with a page on every
/// platform.
const WINDOW: u32 = 8_192;

/// An array map that was made with `BPF_F_MMAPABLE` (kernel 5.5). Programs see what is written here at once.
pub(super) struct Mapped<T> {
    map: MapData,
    name: &'static str,
    count: u32,
    windows: Vec<Option<Window>>,
    values: PhantomData<T>,
}

/// A mapped part of an array.
struct Window {
    start: NonNull<u8>,
    /// Bytes of the mapping.
    length: usize,
}

// SAFETY: the memory is this value's alone on this side of the border, and the same for every thread.
unsafe impl Send for Window {}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing points into it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

impl<T: Wire> Mapped<T> {
    /// Bytes from one entry to the next: the kernel gives each a multiple of eight (`array_map_alloc`).
    const STRIDE: usize = size_of::<T>().next_multiple_of(8);

    /// Takes an array whose values are of this type. Nothing of it is mapped yet.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, and when the map's values have another size.
    pub(super) fn new(map: MapData, name: &'static str) -> Result<Self, Error> {
        let info = map.info().map_err(Error::map("read", name))?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(Error::Contradiction { map: name });
        }
        let count = info.max_entries();
        Ok(Self {
            map,
            name,
            count,
            windows: (0..count.div_ceil(WINDOW)).map(|_| None).collect(),
            values: PhantomData,
        })
    }

    /// How many entries there are.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Where an entry is; none beyond the end.
    fn at(&mut self, index: u32) -> Result<Option<*mut T>, Error> {
        if index >= self.count {
            return Ok(None);
        }
        let (number, inside) = (index / WINDOW, index % WINDOW);
        let first = number * WINDOW;
        let window = match &mut self.windows[number as usize] {
            Some(window) => window,
            absent => {
                let entries = WINDOW.min(self.count - first) as usize;
                let mapped = window(
                    &self.map,
                    Self::STRIDE * first as usize,
                    Self::STRIDE * entries,
                );
                let failed = format!("map the memory of map `{}`", self.name);
                absent.insert(mapped.map_err(Error::kernel(failed))?)
            }
        };
        // SAFETY: the index is below the count, so the entry is inside of its window.
        let entry = unsafe { window.start.add(Self::STRIDE * inside as usize) };
        Ok(Some(entry.as_ptr().cast::<T>()))
    }

    /// An entry; none beyond the end.
    ///
    /// # Errors
    ///
    /// When the kernel does not map the part of the array that the entry is in.
    pub(super) fn get(&mut self, index: u32) -> Result<Option<T>, Error> {
        let entry = self.at(index)?;
        // SAFETY: the entry is inside of a mapping and aligned to eight, and every bit pattern is a value. Programs do
        // not write.
        Ok(entry.map(|entry| unsafe { entry.read_volatile() }))
    }

    /// Writes an entry.
    ///
    /// # Errors
    ///
    /// As above, and when the entry is beyond the end.
    pub(super) fn set(&mut self, index: u32, value: T) -> Result<(), Error> {
        let contradiction = Error::Contradiction { map: self.name };
        let entry = self.at(index)?.ok_or(contradiction)?;
        // SAFETY: as above. Programs that read it meanwhile do so with any bit pattern in mind (see the caller).
        unsafe { entry.write_volatile(value) };
        Ok(())
    }
}

/// Maps so many bytes of an array from an offset on.
fn window(map: &MapData, offset: usize, length: usize) -> std::io::Result<Window> {
    let offset = libc::off_t::try_from(offset).map_err(std::io::Error::other)?;
    // SAFETY: asks for memory that nothing else uses; the descriptor is open, and the mapping keeps the map.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            map.fd().as_fd().as_raw_fd(),
            offset,
        )
    };
    match NonNull::new(start.cast::<u8>()) {
        Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Window { start, length }),
        _ => Err(std::io::Error::last_os_error()),
    }
}
