//! Reading shards.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::files::sha256_hex;
use crate::map::MappedFile;
use crate::{Error, Manifest, Result, Split, SplitInfo, Tokenizer};

/// Opens a split of a prepared corpus, whose folder is `dir`.
///
/// # Errors
/// When the folder has no manifest, or the shard is missing or not as long as the manifest says.
pub fn open_split(dir: &Path, split: Split) -> Result<TokenShard> {
    TokenShard::open(dir, split, Arc::new(Manifest::read(dir)?))
}

/// The tokens of a split, memory-mapped: nothing is read before it is used, and processes that
/// open the same shard share its memory.
///
/// Documents follow each other with the end-of-text token before the first and behind each.
///
/// The files stay open. Removing them, or preparing the folder anew, therefore does a run no harm;
/// a file that another program cuts short or writes to is what
/// [`check_files`](Self::check_files) is for.
#[derive(Debug)]
pub struct TokenShard {
    dir: PathBuf,
    split: Split,
    manifest: Arc<Manifest>,
    tokens: MappedFile,
    ends: MappedFile,
}

impl TokenShard {
    fn open(dir: &Path, split: Split, manifest: Arc<Manifest>) -> Result<Self> {
        let info = manifest.splits.get(split);
        let token_bytes = info.tokens.saturating_mul(manifest.token_bytes as u64);
        let tokens = MappedFile::open(&dir.join(&info.file), token_bytes)?;
        let ends_bytes = info.documents.saturating_mul(8);
        let ends = MappedFile::open(&dir.join(&info.documents_file), ends_bytes)?;
        Ok(Self { dir: dir.to_path_buf(), split, tokens, ends, manifest })
    }

    /// How many tokens there are, those between documents included.
    pub fn len(&self) -> usize {
        self.raw().len() / self.manifest.token_bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.raw().is_empty()
    }

    /// Which split this is.
    pub fn split(&self) -> Split {
        self.split
    }

    /// The shard folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest of the folder.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The manifest's entry for this split.
    pub fn info(&self) -> &SplitInfo {
        self.manifest.splits.get(self.split)
    }

    /// One more than the largest token that can occur.
    pub fn vocab_size(&self) -> usize {
        self.manifest.vocab_size
    }

    /// Some of the tokens.
    ///
    /// # Errors
    /// When the range is not within the shard.
    pub fn tokens(&self, range: Range<usize>) -> Result<Vec<u32>> {
        let raw = self.slice(range)?;
        Ok(match self.manifest.token_bytes {
            2 => raw.as_chunks().0.iter().map(|&token| u16::from_le_bytes(token).into()).collect(),
            _ => raw.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token)).collect(),
        })
    }

    /// Appends some of the tokens to `to`, as the integers that tensors of indices are made of.
    ///
    /// # Errors
    /// When the range is not within the shard.
    pub fn extend_indices(&self, range: Range<usize>, to: &mut Vec<i64>) -> Result<()> {
        let raw = self.slice(range)?;
        let filled = to.len();
        to.resize(filled + raw.len() / self.manifest.token_bytes, 0);
        widen(raw, self.manifest.token_bytes, &mut to[filled..]);
        Ok(())
    }

    /// Fills `to` with the tokens from `start` on, as [`extend_indices`](Self::extend_indices)
    /// does, in memory that is there already.
    ///
    /// # Errors
    /// When the shard ends before `to` does.
    pub fn read_indices(&self, start: usize, to: &mut [i64]) -> Result<()> {
        let raw = self.slice(start..start.saturating_add(to.len()))?;
        widen(raw, self.manifest.token_bytes, to);
        Ok(())
    }

    /// Makes sure that the shard's files are as they were when it was opened. It costs two system
    /// calls, so samplers do it before every batch.
    ///
    /// A shard is memory-mapped: to read what another program cut off would end the process with
    /// SIGBUS. That can still happen between this check and the reading, a matter of microseconds;
    /// at any other time the run ends with an error that names the file. A removed file is only
    /// logged, since it stays readable, and a file that was merely touched is read through once
    /// and found to be the same.
    ///
    /// # Errors
    /// [`Error::ShardChanged`] when a file has another length, [`Error::ShardChecksum`] when it
    /// was written to and has other content.
    pub fn check_files(&self) -> Result<()> {
        let info = self.info();
        self.tokens.check(&info.sha256)?;
        self.ends.check(&info.documents_sha256)
    }

    /// Makes sure that the shard speaks a tokenizer's language.
    ///
    /// # Errors
    /// [`Error::OtherVocabulary`] where it does not.
    pub fn check_tokenizer(&self, tokenizer: &Tokenizer) -> Result<()> {
        self.manifest.check_tokenizer(&self.dir, tokenizer)
    }

    /// Reads the whole shard and compares it with the manifest: checksums, and that every token
    /// is within the vocabulary.
    ///
    /// # Errors
    /// [`Error::ShardChecksum`] or [`Error::ShardToken`] where it differs.
    pub fn verify(&self) -> Result<()> {
        let info = self.info();
        for (file, sha256) in [(&self.tokens, &info.sha256), (&self.ends, &info.documents_sha256)] {
            if &sha256_hex(file.bytes()) != sha256 {
                return Err(Error::ShardChecksum { path: file.path().to_path_buf() });
            }
        }
        let outside = self.position(|token| token as usize >= self.vocab_size());
        match outside {
            None => Ok(()),
            Some((index, token)) => Err(Error::ShardToken {
                path: self.dir.join(&info.file),
                token,
                index,
                vocab_size: self.vocab_size(),
            }),
        }
    }

    /// The first token that `wanted` says yes to, with its place.
    fn position(&self, wanted: impl Fn(u32) -> bool) -> Option<(usize, u32)> {
        let raw = self.raw();
        let mut wide;
        let mut narrow;
        let tokens: &mut dyn Iterator<Item = u32> = if self.manifest.token_bytes == 2 {
            narrow = raw.as_chunks().0.iter().map(|&token| u32::from(u16::from_le_bytes(token)));
            &mut narrow
        } else {
            wide = raw.as_chunks().0.iter().map(|&token| u32::from_le_bytes(token));
            &mut wide
        };
        tokens.enumerate().find(|&(_, token)| wanted(token))
    }

    fn raw(&self) -> &[u8] {
        self.tokens.bytes()
    }

    /// The place behind each document's last token, as little-endian u64.
    pub(crate) fn ends(&self) -> &[[u8; 8]] {
        self.ends.bytes().as_chunks().0
    }

    fn slice(&self, range: Range<usize>) -> Result<&[u8]> {
        let width = self.manifest.token_bytes;
        let out_of_range = || Error::OutOfRange {
            what: "tokens",
            start: range.start,
            end: range.end,
            len: self.len(),
            split: self.split,
        };
        if range.start > range.end || range.end > self.len() {
            return Err(out_of_range());
        }
        let bytes = range.start * width..range.end * width;
        self.raw().get(bytes).ok_or_else(out_of_range)
    }
}

/// Makes 64 bits of each token. No token is looked at, so compilers turn the loops into the
/// processor's widening loads.
fn widen(raw: &[u8], token_bytes: usize, to: &mut [i64]) {
    if token_bytes == 2 {
        for (to, &token) in to.iter_mut().zip(raw.as_chunks().0) {
            *to = i64::from(u16::from_le_bytes(token));
        }
    } else {
        for (to, &token) in to.iter_mut().zip(raw.as_chunks().0) {
            *to = i64::from(u32::from_le_bytes(token));
        }
    }
}
