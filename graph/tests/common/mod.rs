//! What tests of bad input watch: panic messages and memory.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Panic messages that reached the hook that was there before the crate's own.
pub static MESSAGES: AtomicUsize = AtomicUsize::new(0);

/// Counts panic messages from now on. Comes before the first model is read.
pub fn count_messages() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            MESSAGES.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
}

/// A figure of `/proc/self/status` in MiB; 0 where there is none.
pub fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1024
}
