//! Ctrl-C, SIGTERM and SIGHUP.
//!
//! A command that saves is asked to stop: it finishes its step and saves. Any other command, and one that is asked a second time, ends
//! at once. What is registered here ends with it: folders of unfinished files, and processes that were started.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// The exit code that a shell reports for a process ended by Ctrl-C.
pub const EXIT_CODE: u8 = 130;

static LISTENS: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);
static REGISTRY: Mutex<Registry> = Mutex::new(Registry { next: 0, entries: BTreeMap::new() });

/// What ends with the process.
#[derive(Debug)]
pub enum Passing {
    /// A folder with its contents.
    Folder(PathBuf),
    /// A folder, if it is empty.
    EmptyFolder(PathBuf),
    Process(Pid),
}

/// What is registered.
#[derive(Debug)]
pub struct Registry {
    next: u64,
    entries: BTreeMap<u64, Passing>,
}

impl Registry {
    /// Adds an entry, which stays until what is returned is dropped.
    pub fn add(&mut self, passing: Passing) -> Registered {
        self.next += 1;
        self.entries.insert(self.next, passing);
        Registered { key: self.next }
    }
}

/// An entry of the registry.
#[derive(Debug)]
pub struct Registered {
    key: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        hold().entries.remove(&self.key);
    }
}

/// The registry. While it is held no signal ends the process: for what must not be half done.
pub fn hold() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a child process with this one, as long as the returned value lives.
pub fn end_with(child: &Child) -> Option<Registered> {
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw)?;
    Some(hold().add(Passing::Process(id)))
}

/// Handles signals, from now on to the end of the process.
pub fn handle() {
    static HANDLED: Once = Once::new();
    HANDLED.call_once(|| {
        // `nohup` starts a command that is to outlive its terminal.
        let handled = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| *signal != SIGHUP || !is_ignored(SIGHUP));
        // If no handler can be set, a signal ends the process, and a later command cleans up.
        let Ok(mut signals) = Signals::new(handled) else { return };
        thread::spawn(move || {
            for signal in signals.forever() {
                if !LISTENS.load(Ordering::SeqCst) || ASKED.swap(true, Ordering::SeqCst) {
                    end(signal);
                }
            }
        });
    });
}

/// Makes the first signal a request to stop, which does not end the process.
pub fn listen() {
    LISTENS.store(true, Ordering::SeqCst);
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Ends what is registered, and the process.
fn end(signal: i32) -> ! {
    // Held to the end: threads that would register or publish something wait.
    let registry = hold();
    // Newest first: it may lie in an older one.
    for passing in registry.entries.values().rev() {
        match passing {
            Passing::Process(id) => drop(kill_process(*id, Signal::TERM)),
            Passing::Folder(path) => remove(path),
            Passing::EmptyFolder(path) => drop(fs::remove_dir(path)),
        }
    }
    low_level::exit(128 + signal)
}

/// Removes a folder into which other threads may still write.
fn remove(folder: &PathBuf) {
    const TRIES: usize = 20;
    for _ in 0..TRIES {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => thread::sleep(Duration::from_millis(10)),
            _ => return,
        }
    }
}

/// Whether the process was started with a signal ignored.
fn is_ignored(signal: i32) -> bool {
    let Ok(status) = fs::read_to_string("/proc/self/status") else { return false };
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}
