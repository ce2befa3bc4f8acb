//! How much memory this process has taken.

/// The most memory that this process ever held at once, in bytes; `None` where the system doesn't
/// say (`VmHWM` in `/proc/self/status` does on Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    peak_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_bytes_and_grows_with_what_is_touched() {
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t   1540 kB\nVmRSS:\t 1 kB\n"), Some(1540 * 1024));
        assert_eq!(peak_of("Name:\tx\n"), None);
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_memory_bytes().unwrap() >= touched.len() as u64);
    }
}
