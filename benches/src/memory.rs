//! What the kernel says of this process's memory.

use anyhow::{Context, Result};

/// The most resident memory that this process has had.
///
/// # Errors
/// Where there is no `/proc`.
pub fn peak_resident_bytes() -> Result<u64> {
    read("VmHWM")
}

/// The resident memory of this process now.
///
/// # Errors
/// Where there is no `/proc`.
pub fn current_resident_bytes() -> Result<u64> {
    read("VmRSS")
}

fn read(key: &str) -> Result<u64> {
    let path = "/proc/self/status";
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .with_context(|| format!("{path} has no {key}"))?;
    Ok(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_follows_an_allocation() -> Result<()> {
        let before = peak_resident_bytes()?;
        let block = vec![1_u8; 64 << 20];
        let after = peak_resident_bytes()?;
        assert_eq!(block.iter().map(|&byte| usize::from(byte)).sum::<usize>(), 64 << 20);
        assert!(after >= before + (32 << 20));
        assert!(current_resident_bytes()? <= after);
        Ok(())
    }
}
