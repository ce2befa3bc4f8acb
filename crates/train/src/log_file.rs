//! A file that grows while a training goes on.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Error;

/// What is appended reaches the file at least this often, for those who watch it grow.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// A file, open at its end and buffered.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    flushed: Instant,
    file: BufWriter<File>,
}

impl LogFile {
    /// Takes over `file`, which is the one at `path`.
    pub(crate) fn new(path: PathBuf, file: File) -> Self {
        Self { path, flushed: Instant::now(), file: BufWriter::new(file) }
    }

    /// Appends bytes; where the last flush is a second ago, they reach the file with all before.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all(bytes).map_err(|error| self.failed(error))?;
        if self.flushed.elapsed() < FLUSH_EVERY { Ok(()) } else { self.flush() }
    }

    /// Hands everything to the system.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        self.flushed = Instant::now();
        self.file.flush().map_err(|error| self.failed(error))
    }

    /// The error of a write that `source` kept from the file.
    pub(crate) fn failed(&self, source: io::Error) -> Error {
        Error::Write { path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_an_error_that_names_the_file() {
        let full = PathBuf::from("/dev/full");
        let open = std::fs::OpenOptions::new().write(true).open(&full).unwrap();
        let mut file = LogFile::new(full, open);
        file.append(b"a line\n").unwrap();
        let error = file.flush().unwrap_err().to_string();
        assert!(error.contains("/dev/full"), "{error}");
    }

    #[test]
    fn what_was_appended_is_in_the_file_after_a_flush_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut file = LogFile::new(path.clone(), File::create(&path).unwrap());
        file.append(b"one ").unwrap();
        file.append(b"two").unwrap();
        file.flush().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    }
}
