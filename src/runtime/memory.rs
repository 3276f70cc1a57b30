//! What memory this process holds, as the kernel counts it.

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Resident now, shared files included.
    pub now: u64,
    /// The most that was resident at once.
    pub peak: u64,
}

impl Resident {
    /// Reads `/proc/self/status`; zeros where the kernel does not tell.
    pub fn read() -> Resident {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Resident { now: field(&status, "VmRSS:"), peak: field(&status, "VmHWM:") }
    }
}

/// A line such as `VmRSS:    1234 kB`, in bytes.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_what_was_touched() {
        let before = Resident::read();
        let touched = vec![1_u8; 64 << 20];
        let after = Resident::read();
        assert!(after.peak >= before.now + (60 << 20), "{before:?} {after:?}");
        assert_eq!(touched[touched.len() - 1], 1);
    }
}
