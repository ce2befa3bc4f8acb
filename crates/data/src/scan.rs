//! The first pass over a corpus: what each file is, and whether it is kept.

use std::fs::File;
use std::io::Read;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::documents::{Format, read_records, record_text};
use crate::files::sha256_of;
use crate::filters::{self, DropReason, Fingerprint, Seen};
use crate::source::SourceFile;
use crate::{CorpusSource, Error, Progress, Result, SplitFractions};

/// Bytes of files that are looked at between two reports of progress.
const CHUNK: u64 = 64 << 20;

/// What the first pass finds out about a file.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) sha256: [u8; 32],
    pub(crate) dropped: Option<DropReason>,
    /// Documents in it that have text.
    pub(crate) documents: u64,
    /// Bytes of their text.
    pub(crate) bytes: u64,
    /// How many of them the hash deals to each split.
    pub(crate) dealt: [u64; 3],
    /// Records without text.
    pub(crate) empty: u64,
    fingerprint: Option<Fingerprint>,
}

/// Looks at all files; their results come in the same order.
pub(crate) fn scan(
    source: &CorpusSource,
    fractions: SplitFractions,
    files: &[SourceFile],
    progress: &dyn Fn(Progress),
) -> Result<Vec<Scanned>> {
    let total = files.iter().map(|file| file.bytes).sum();
    let alone = source.path().is_file();
    let mut seen = Seen::default();
    let mut scanned: Vec<Scanned> = Vec::with_capacity(files.len());
    let mut done = 0;
    for chunk in chunks(files, CHUNK) {
        progress(Progress::Scanning { done, total });
        let found: Vec<Result<Scanned>> = chunk
            .par_iter()
            .map(|file| match source {
                CorpusSource::PythonCode { .. } => scan_code(file, fractions),
                CorpusSource::Path(_) => match Format::of(&file.path) {
                    Format::Text => scan_text(file, fractions, alone),
                    Format::JsonLines => scan_records(file, fractions),
                },
            })
            .collect();
        for found in found {
            let mut found = found?;
            if let Some(fingerprint) = found.fingerprint.take() {
                found.drop_if(seen.duplicate(&fingerprint));
            }
            scanned.push(found);
        }
        done += chunk.iter().map(|file| file.bytes).sum::<u64>();
    }
    progress(Progress::Scanning { done, total });
    Ok(scanned)
}

/// Neighbouring files, together about `bytes` long.
pub(crate) fn chunks(files: &[SourceFile], bytes: u64) -> impl Iterator<Item = &[SourceFile]> {
    let mut rest = files;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fitting = rest.iter().take_while(|file| {
            sum += file.bytes;
            sum <= bytes
        });
        let (chunk, after) = rest.split_at(fitting.count().max(1).min(rest.len()));
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

impl Scanned {
    /// One document of `bytes` bytes.
    fn document(
        sha256: [u8; 32],
        file: &SourceFile,
        bytes: u64,
        fractions: SplitFractions,
    ) -> Self {
        let mut dealt = [0; 3];
        dealt[fractions.of_key(file.key.as_bytes()) as usize] = 1;
        Self { sha256, dropped: None, documents: 1, bytes, dealt, empty: 0, fingerprint: None }
    }

    fn drop_if(&mut self, reason: Option<DropReason>) {
        if reason.is_some() {
            self.dropped = reason;
            self.documents = 0;
            self.dealt = [0; 3];
        }
    }
}

fn scan_code(file: &SourceFile, fractions: SplitFractions) -> Result<Scanned> {
    let by_name = filters::is_test(&file.key).then_some(DropReason::Test);
    let unread = by_name.or_else(|| filters::size_reason(file.bytes));
    if unread.is_some() {
        let sha256 = sha256_of(&file.path)?;
        let mut scanned = Scanned::document(sha256, file, file.bytes, fractions);
        scanned.drop_if(unread);
        return Ok(scanned);
    }
    let content = std::fs::read(&file.path).map_err(Error::io("read", &file.path))?;
    let sha256 = Sha256::digest(&content).into();
    let mut scanned = Scanned::document(sha256, file, content.len() as u64, fractions);
    match filters::inspect(&content) {
        Ok(fingerprint) => scanned.fingerprint = Some(fingerprint),
        Err(reason) => scanned.drop_if(Some(reason)),
    }
    Ok(scanned)
}

/// Reads a text of any length once, to see whether it is one.
fn scan_text(file: &SourceFile, fractions: SplitFractions, alone: bool) -> Result<Scanned> {
    let mut reader = File::open(&file.path).map_err(Error::io("read", &file.path))?;
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut visible = false;
    let mut bad: Option<u64> = None;
    let mut buffer = Vec::with_capacity(1 << 20);
    loop {
        let carried = buffer.len();
        let read = (&mut reader)
            .take(1 << 20)
            .read_to_end(&mut buffer)
            .map_err(Error::io("read", &file.path))?;
        hash.update(&buffer[carried..]);
        let checked = bytes - carried as u64;
        bytes += read as u64;
        if bad.is_none() {
            visible |= buffer.iter().any(|byte| !byte.is_ascii_whitespace());
            let zero = buffer.iter().position(|&byte| byte == 0);
            let whole = match std::str::from_utf8(&buffer) {
                Ok(_) => buffer.len(),
                Err(error) if error.error_len().is_none() && read > 0 => error.valid_up_to(),
                Err(error) => {
                    bad = Some(checked + error.valid_up_to() as u64);
                    buffer.len()
                }
            };
            bad = zero.map(|at| checked + at as u64).or(bad);
            buffer.drain(..whole);
        } else {
            buffer.clear();
        }
        if read == 0 {
            break;
        }
    }
    let mut scanned = Scanned::document(hash.finalize().into(), file, bytes, fractions);
    match bad {
        Some(offset) if alone => {
            return Err(Error::NotText { path: file.path.clone(), offset });
        }
        Some(_) => scanned.drop_if(Some(DropReason::NotText)),
        None if !visible => scanned.drop_if(Some(DropReason::Empty)),
        None => {}
    }
    Ok(scanned)
}

fn scan_records(file: &SourceFile, fractions: SplitFractions) -> Result<Scanned> {
    let mut hash = Sha256::new();
    let mut scanned = Scanned::document([0; 32], file, 0, fractions);
    scanned.documents = 0;
    scanned.dealt = [0; 3];
    read_records(file, &mut |line, raw| {
        hash.update(raw);
        let text = record_text(&file.path, line, raw)?;
        if text.is_empty() {
            scanned.empty += 1;
            return Ok(());
        }
        scanned.documents += 1;
        scanned.bytes += text.len() as u64;
        scanned.dealt[fractions.of_key(text.as_bytes()) as usize] += 1;
        Ok(())
    })?;
    scanned.sha256 = hash.finalize().into();
    Ok(scanned)
}
