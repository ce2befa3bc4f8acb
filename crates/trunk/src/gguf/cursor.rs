//! Bounds-checked little-endian reading.

use crate::bytes::Problem;

/// A place in a file's bytes. Every read names what it was after, for the error.
#[derive(Clone)]
pub(super) struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Cursor<'b> {
    pub(super) fn new(bytes: &'b [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()) }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Bytes behind the cursor.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'b [u8], Problem> {
        if count > self.left() {
            return Err(format!(
                "cut short or damaged: {what} at byte {} needs {count} bytes, {} are left",
                self.at,
                self.left()
            ));
        }
        let taken = &self.bytes[self.at..][..count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Problem> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Problem> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Problem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that each take at least `least` bytes further on.
    pub(super) fn count(&mut self, least: usize, what: &str) -> Result<usize, Problem> {
        let count = self.u64(what)?;
        match usize::try_from(count) {
            Ok(count) if count.checked_mul(least).is_some_and(|bytes| bytes <= self.left()) => {
                Ok(count)
            }
            _ => Err(format!("damaged: {what} is {count}, more than the file has room for")),
        }
    }

    /// A length and as many bytes of UTF-8.
    pub(super) fn text(&mut self, what: &str) -> Result<&'b str, Problem> {
        let len = self.count(1, what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|error| format!("{what} is no UTF-8 text: {error}"))
    }
}
