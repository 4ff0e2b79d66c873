//! The process's own memory: what is resident is what is used.
//!
//! A start, and objects that come by the thousand, touch much that is not needed afterwards: memory in which documents were taken
//! apart, and the program's own pages of what happens once. [`tidy`] gives both back.

use std::ops::Range;

use libc::{c_int, c_void, dl_phdr_info, size_t};
use nix::errno::Errno;

/// Keeps the kernel from answering for a first byte with two megabytes: of what threads allocate, hardly any is in one piece.
pub fn small_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::warn!(%error, "the kernel may give this process huge pages, of which most stays unused");
    }
}

/// Gives back what nobody uses now: blocks that the calling thread freed, and pages of the program, which come again when they are
/// run. To be called when much is over, as it costs some milliseconds.
pub fn tidy() {
    // SAFETY: only blocks that are free are given back.
    unsafe { libmimalloc_sys::mi_collect(true) };
    for range in program() {
        let (start, length) = (range.start as *mut c_void, range.len());
        // SAFETY: the range is inside of a part of the program that is mapped from its file and is never written. The file is held by
        // the mapping, so that what is read there later is what was there before.
        let outcome = unsafe { libc::madvise(start, length, libc::MADV_DONTNEED) };
        if let Err(error) = Errno::result(outcome) {
            tracing::debug!(%error, "pages of the program stay in memory");
        }
    }
}

/// Documents that leave something behind which is worth the time to give it back at once.
const MANY: usize = 500;
/// Documents for which that is done when no more of them come.
const SOME: usize = 20;

/// How many documents were read since memory was given back.
#[derive(Debug)]
pub struct Leftovers {
    read: usize,
    /// At the last look.
    before: usize,
}

impl Leftovers {
    /// Those of a start, at which everything is read.
    #[must_use]
    pub fn of_start() -> Self {
        Self {
            read: MANY,
            before: 0,
        }
    }

    /// Documents were read; none: all of them.
    pub fn read(&mut self, documents: Option<usize>) {
        self.read = documents.map_or(MANY, |more| self.read.saturating_add(more));
    }

    /// Whether it is time to [`tidy`]. To be asked now and then.
    pub fn are_over(&mut self) -> bool {
        let over = self.read >= MANY || (self.read >= SOME && self.read == self.before);
        if over {
            self.read = 0;
        }
        self.before = self.read;
        over
    }
}

/// Where the parts of the program are that are read and run only, in whole pages.
fn program() -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    // SAFETY: the callback is called before this returns and with what it was given here.
    unsafe { libc::dl_iterate_phdr(Some(part), (&raw mut ranges).cast()) };
    ranges
}

/// Notes the parts of the first object, which is the program itself, and ends the walk.
unsafe extern "C" fn part(info: *mut dl_phdr_info, _size: size_t, ranges: *mut c_void) -> c_int {
    // SAFETY: both are valid for the call, and nobody else has the list.
    let (info, ranges) = unsafe { (&*info, &mut *ranges.cast::<Vec<Range<usize>>>()) };
    // SAFETY: the linker's own account of the object, which is there as long as the object.
    let parts = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // SAFETY: asks for a constant of the system.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(1 << 16);
    for part in parts {
        // What was relocated is in parts that may be written, even if they are not any more.
        if part.p_type == libc::PT_LOAD && part.p_flags & libc::PF_W == 0 {
            let start = (info.dlpi_addr + part.p_vaddr) as usize;
            let end = start + part.p_memsz as usize;
            // A page that is shared with a neighbour is left alone.
            let (start, end) = (start.next_multiple_of(page), end / page * page);
            if start < end {
                ranges.push(start..end);
            }
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::{Leftovers, MANY, SOME, program, tidy};

    #[test]
    fn memory_is_given_back_after_many_documents_and_when_some_came_and_no_more_do() {
        let mut left = Leftovers::of_start();
        assert!(left.are_over(), "a start reads everything");
        assert!(!left.are_over());
        left.read(Some(SOME));
        assert!(!left.are_over(), "more may come");
        left.read(Some(1));
        assert!(!left.are_over());
        assert!(left.are_over());
        left.read(Some(SOME - 1));
        assert!(!left.are_over());
        assert!(!left.are_over(), "these are too few");
        left.read(Some(MANY));
        assert!(left.are_over());
        left.read(None);
        assert!(left.are_over());
    }

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let here = the_program_goes_on_without_its_pages as *const () as usize;
        let parts = program();
        assert!(parts.iter().any(|part| part.contains(&here)), "{parts:?}");
        let kept: Vec<String> = (0..1_000).map(|number| number.to_string()).collect();
        tidy();
        assert_eq!(kept.len(), 1_000);
        assert_eq!(kept[999], "999");
    }
}
