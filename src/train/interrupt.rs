//! Ctrl-C and SIGTERM: a run finishes its step and saves. A second one ends the process at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

static ASKED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// What a shell reports for a process that Ctrl-C ended.
pub const EXIT_CODE: u8 = 130;

/// Lets signals ask instead of end. Where no handler can be set, the signal ends the process, and the last checkpoint stays.
pub fn listen() {
    ASKED.get_or_init(|| {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds nothing asked yet.
            let _ = flag::register_conditional_shutdown(signal, i32::from(EXIT_CODE), Arc::clone(&asked));
            let _ = flag::register(signal, Arc::clone(&asked));
        }
        asked
    });
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.get().is_some_and(|asked| asked.load(Ordering::SeqCst))
}
