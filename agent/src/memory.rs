//! The process's own memory: what is resident is what is used.
//!
//! A start, and objects that come by the thousand, touch much that is not needed afterwards: memory in which documents were taken
//! apart, and the program's own pages of what happens once. [`tidy`] gives both back.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_char, c_int, c_uint, c_void, dl_phdr_info, size_t};
use nix::errno::Errno;

/// Keeps the kernel from answering for a first byte with two megabytes: of what threads allocate, hardly any is in one piece.
pub fn small_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::warn!(%error, "the kernel may give this process huge pages, of which most stays unused");
    }
}

/// What the allocator reads before the first block (jemalloc(3), *TUNING*). As many arenas as processors. A thread keeps nothing
/// larger than buffers of requests are. A start takes much apart, such as the kernel's own types; what it frees is given back at
/// once, until [`serve`]. Freed memory that waits is used again for the next large thing, of which most is never touched, and then
/// stays for as long as that one.
#[unsafe(export_name = "_rjem_malloc_conf")]
#[used]
static SETTINGS: Settings =
    Settings(c"narenas_ratio:1,lg_tcache_max:14,dirty_decay_ms:0,muzzy_decay_ms:0".as_ptr());

/// An address of constant text, as the allocator wants it.
#[repr(transparent)]
struct Settings(*const c_char);

// SAFETY: the text is never written.
unsafe impl Sync for Settings {}

/// How long what is freed waits to be given back while requests are served: what is needed again at once costs no time then. In
/// milliseconds.
const WAITS: isize = 1_000;

/// What is freed from here on waits a while before it is given back.
pub fn serve() {
    // Arenas to come first: none may appear in between with the old time.
    control(c"arenas.dirty_decay_ms", Some(WAITS));
    // In use or not.
    let Some(arenas) = asked::<c_uint>(c"arenas.narenas") else {
        return;
    };
    for arena in 0..arenas {
        let name = CString::new(format!("arena.{arena}.dirty_decay_ms"));
        let name = name.expect("a number has no zero byte");
        // One that is not there yet begins with the time for those to come.
        let code = told(&name, Some(WAITS));
        if !matches!(code, 0 | libc::EFAULT) {
            refused(&name, code);
        }
    }
}

/// The calling thread allocates little and seldom: no memory waits for it.
pub fn seldom() {
    control(c"thread.tcache.enabled", Some(false));
}

/// Gives back what nobody uses now: blocks that were freed, but for those that other threads keep until they are [`parked`], and pages of the
/// program, which come again when they are run. To be called when much is over, as it costs some milliseconds.
pub fn tidy() {
    TIDIED.fetch_add(1, Ordering::Relaxed);
    parked();
    // 4096 stands for all arenas here.
    control::<()>(c"arena.4096.purge", None);
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

/// How often memory was given back.
static TIDIED: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// As of when the thread gave back what it kept for itself.
    static FLUSHED: Cell<u32> = const { Cell::new(0) };
}

/// The calling thread has nothing to do: if memory was given back since, it gives back what it kept for itself.
pub fn parked() {
    let tidied = TIDIED.load(Ordering::Relaxed);
    if FLUSHED.replace(tidied) != tidied {
        control::<()>(c"thread.tcache.flush", None);
    }
}

/// Tells the allocator something (jemalloc(3), *MALLCTL NAMESPACE*), and the log if it refuses.
fn control<T>(name: &CStr, value: Option<T>) {
    let code = told(name, value);
    if code != 0 {
        refused(name, code);
    }
}

fn refused(name: &CStr, code: c_int) {
    let error = Errno::from_raw(code);
    tracing::warn!(%error, ?name, "the allocator keeps more memory than it has to");
}

/// Tells the allocator something; gives 0 or an error of `errno(3)`.
fn told<T>(name: &CStr, mut value: Option<T>) -> c_int {
    let (new, length) = match &mut value {
        Some(value) => (ptr::from_mut(value).cast(), size_of::<T>()),
        None => (ptr::null_mut(), 0),
    };
    // SAFETY: nothing is asked back, and what is told is read before this returns.
    unsafe {
        tikv_jemalloc_sys::mallctl(name.as_ptr(), ptr::null_mut(), ptr::null_mut(), new, length)
    }
}

/// What the allocator says of `name`, whose type is `T`; none if it refuses, which the log says.
fn asked<T: Default>(name: &CStr) -> Option<T> {
    let (mut value, mut length) = (T::default(), size_of::<T>());
    let place = (&raw mut value).cast();
    // SAFETY: the place is as long as is said, and nothing is told.
    let code = unsafe {
        tikv_jemalloc_sys::mallctl(name.as_ptr(), place, &raw mut length, ptr::null_mut(), 0)
    };
    if code != 0 {
        refused(name, code);
        return None;
    }
    Some(value)
}

/// Changes that leave something behind which is worth the time to give it back at once.
const MANY: u64 = 500;
/// Changes for which that is done when no more of them come.
const SOME: u64 = 20;

/// How much changed since memory was given back: each change, of a status too, is taken apart and leaves something behind.
#[derive(Debug)]
pub struct Leftovers {
    changes: u64,
    /// At the last look.
    before: u64,
    /// What the source counted last.
    counted: u64,
}

impl Leftovers {
    /// Those of a start, which is over when nothing comes for a while.
    #[must_use]
    pub fn of_start() -> Self {
        Self {
            changes: SOME,
            before: 0,
            counted: 0,
        }
    }

    /// All documents were read.
    pub fn all(&mut self) {
        self.changes = MANY;
    }

    /// The source has counted so many changes.
    pub fn counted(&mut self, changes: u64) {
        self.changes += changes.saturating_sub(self.counted);
        self.counted = changes;
    }

    /// Whether it is time to [`tidy`]. To be asked now and then.
    pub fn are_over(&mut self) -> bool {
        let over = self.changes >= MANY || (self.changes >= SOME && self.changes == self.before);
        if over {
            self.changes = 0;
        }
        self.before = self.changes;
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
    use super::{Leftovers, MANY, SOME, WAITS, asked, program, seldom, serve, tidy};

    #[test]
    fn memory_is_given_back_after_many_changes_and_when_some_came_and_no_more_do() {
        let mut left = Leftovers::of_start();
        assert!(!left.are_over(), "a start may go on");
        assert!(left.are_over());
        assert!(!left.are_over());
        left.counted(SOME);
        assert!(!left.are_over(), "more may come");
        left.counted(SOME + 1);
        assert!(!left.are_over());
        assert!(left.are_over());
        left.counted(2 * SOME);
        assert!(!left.are_over());
        assert!(!left.are_over(), "these are too few");
        left.counted(2 * SOME + MANY);
        assert!(left.are_over());
        left.all();
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

    #[test]
    fn what_is_freed_waits_once_requests_are_served() {
        // SAFETY: the block is as large as is said, and is given back.
        unsafe { tikv_jemalloc_sys::dallocx(tikv_jemalloc_sys::mallocx(64, 0), 0) };
        serve();
        let waits = [c"arenas.dirty_decay_ms", c"arena.0.dirty_decay_ms"].map(asked::<isize>);
        assert_eq!(waits, [Some(WAITS); 2]);
        let thread = std::thread::spawn(|| {
            let before = asked::<bool>(c"thread.tcache.enabled");
            seldom();
            (before, asked::<bool>(c"thread.tcache.enabled"))
        });
        let outcome = thread.join().expect("it ends");
        assert_eq!(outcome, (Some(true), Some(false)));
    }
}
