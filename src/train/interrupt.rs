//! Ctrl-C and SIGTERM: a run finishes its step and saves. A second one ends the process at once.

use std::process;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// What a shell reports for a process that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

/// Lets signals ask instead of end.
pub fn listen() {
    static LISTEN: Once = Once::new();
    LISTEN.call_once(|| {
        // Where no handler can be set, a signal ends the process, and the last checkpoint stays.
        let _ = ctrlc::set_handler(|| {
            if ASKED.swap(true, Ordering::SeqCst) {
                process::exit(i32::from(EXIT_CODE));
            }
        });
    });
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
