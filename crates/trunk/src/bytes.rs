//! Little-endian numbers at places that are checked.

/// What is wrong with a file, without its path.
pub(crate) type Problem = String;

/// `count` bytes from `at` on.
pub(crate) fn slice<'b>(
    bytes: &'b [u8],
    at: usize,
    count: usize,
    what: &str,
) -> Result<&'b [u8], Problem> {
    at.checked_add(count).and_then(|end| bytes.get(at..end)).ok_or_else(|| {
        format!(
            "cut short or damaged: {what} at byte {at} would be {count} bytes, of {} in all",
            bytes.len()
        )
    })
}

/// Up to eight bytes as a number.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

/// A place or a length in a file. One that memory cannot have is outside of every file.
pub(crate) fn place(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
