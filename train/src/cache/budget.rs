//! How much of the disk a cache may take.

use std::io;
use std::path::Path;

use lstc_tuned::cache::Size;
use rustix::fs::statvfs;

/// What stays free on a disk if no budget is given: at most this much, and at most half of what is free.
const MARGIN: u64 = 10 << 30;

/// What stays free on a disk even if the budget is larger: checkpoints need some.
const RESERVE: u64 = 256 << 20;

/// Bytes between two checks of the disk.
const LOOK: u64 = 16 << 20;

/// Why there is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The budget does not have that many bytes left.
    Budget,
    /// The disk is about to be full.
    Disk,
}

/// Bytes that a cache may take, and takes.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    limit: u64,
    used: u64,
    /// Bytes that may be written before the disk is checked again.
    unlooked: u64,
}

impl Budget {
    /// For a cache that already takes `used` bytes: what was asked for, or the disk's free space less a margin.
    ///
    /// # Errors
    /// From the file system.
    pub fn new(folder: &Path, asked: Option<Size>, used: u64) -> io::Result<Budget> {
        let limit = match asked {
            Some(Size(bytes)) => bytes,
            None => used.saturating_add(unasked(free(folder)?)),
        };
        Ok(Budget { limit, used, unlooked: 0 })
    }

    /// Takes this many bytes of the budget.
    ///
    /// # Errors
    /// No room.
    pub fn take(&mut self, folder: &Path, bytes: u64) -> Result<(), Full> {
        let used = self.used.checked_add(bytes).filter(|used| *used <= self.limit).ok_or(Full::Budget)?;
        if bytes > self.unlooked {
            let step = bytes.max(LOOK);
            // A disk that does not report its free space fails a write when it is full.
            if free(folder).is_ok_and(|free| free < step.saturating_add(RESERVE)) {
                return Err(Full::Disk);
            }
            self.unlooked = step;
        }
        self.unlooked -= bytes;
        self.used = used;
        Ok(())
    }

    /// Undoes [`Budget::take`].
    pub fn give_back(&mut self, bytes: u64) {
        self.used = self.used.saturating_sub(bytes);
    }

    pub fn limit(&self) -> Size {
        Size(self.limit)
    }

    pub fn used(&self) -> Size {
        Size(self.used)
    }
}

/// How many of the free bytes a cache may take if no budget is given.
fn unasked(free: u64) -> u64 {
    free - MARGIN.min(free / 2)
}

/// Bytes of a folder's disk that this user may still take.
fn free(folder: &Path) -> io::Result<u64> {
    let stat = statvfs(folder)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_not_taken() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut budget = Budget::new(folder.path(), Some(Size(1000)), 400).expect("a disk");
        let mut take = |bytes| budget.take(folder.path(), bytes);
        assert_eq!(
            [take(500), take(101), take(100), take(u64::MAX)],
            [Ok(()), Err(Full::Budget), Ok(()), Err(Full::Budget)]
        );
        assert_eq!(budget.used(), Size(1000));
    }

    #[test]
    fn without_a_budget_the_disk_keeps_a_margin() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let free = free(folder.path()).expect("a disk");
        let budget = Budget::new(folder.path(), None, 7).expect("a disk");
        assert!(budget.limit().0 <= free.saturating_add(7));
        // A small cache has room on a disk that is nearly full, a large one leaves 10 GiB of a large one.
        assert_eq!([0, 1 << 30, 100 << 30].map(unasked), [0, 1 << 29, 90 << 30]);
        let mut endless = Budget::new(folder.path(), Some(Size(u64::MAX)), 0).expect("a disk");
        assert_eq!(endless.take(folder.path(), free), Err(Full::Disk));
    }
}
