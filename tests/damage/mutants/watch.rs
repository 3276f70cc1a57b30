//! What holds for every mutant: it takes little time, it allocates little at once, and if it fails, it is named.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// The longest that a mutant may take, on a machine that does much else at the same time.
const LIMIT: Duration = Duration::from_secs(60);

/// The most bytes that are allocated at once. The files are much smaller, and so is a row at its limit.
const LARGEST: usize = 128 << 20;

/// The largest allocation so far.
static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATED.fetch_max(size, Ordering::Relaxed);
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

/// Watches the mutants of a kind of file. One that hangs ends the process.
pub struct Watch {
    what: String,
    begun: SyncSender<u64>,
    longest: Duration,
}

/// A mutant that is being judged.
struct Judged<'w>(&'w str, u64);

impl Drop for Judged<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("mutant {} of {}: LSTC_MUTANT={} makes it again", self.1, self.0, self.1);
        }
    }
}

impl Watch {
    pub fn new(what: &str) -> Watch {
        let (begun, seeds) = sync_channel(0);
        let what = what.to_owned();
        let named = what.clone();
        std::thread::spawn(move || {
            let mut current = None;
            loop {
                match seeds.recv_timeout(LIMIT) {
                    Ok(seed) => current = Some(seed),
                    Err(RecvTimeoutError::Disconnected) => break,
                    Err(RecvTimeoutError::Timeout) => {
                        eprintln!("mutant {current:?} of {named} takes longer than {LIMIT:?}");
                        std::process::abort();
                    }
                }
            }
        });
        Watch { what, begun, longest: Duration::ZERO }
    }

    /// Judges the mutant of a seed.
    pub fn over(&mut self, seed: u64, judge: impl FnOnce() -> &'static str) -> &'static str {
        let _named = Judged(&self.what, seed);
        self.begun.send(seed).expect("the watching thread lives as long");
        let start = Instant::now();
        let outcome = judge();
        self.longest = self.longest.max(start.elapsed());
        let allocated = ALLOCATED.load(Ordering::Relaxed);
        assert!(allocated <= LARGEST, "{allocated} bytes are allocated at once");
        outcome
    }

    /// How long one mutant took at most.
    pub fn longest(&self) -> Duration {
        self.longest
    }
}
