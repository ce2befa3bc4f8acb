//! Reading shards.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::files::sha256_hex;
use crate::map::map_file;
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
#[derive(Debug)]
pub struct TokenShard {
    dir: PathBuf,
    split: Split,
    manifest: Arc<Manifest>,
    tokens: Option<Mmap>,
    ends: Option<Mmap>,
}

impl TokenShard {
    fn open(dir: &Path, split: Split, manifest: Arc<Manifest>) -> Result<Self> {
        let info = manifest.splits.get(split);
        let tokens =
            mapped(&dir.join(&info.file), info.tokens.saturating_mul(manifest.token_bytes as u64))?;
        let ends = mapped(&dir.join(&info.documents_file), info.documents.saturating_mul(8))?;
        Ok(Self { dir: dir.to_path_buf(), split, tokens, ends, manifest })
    }

    /// How many tokens there are, those between documents included.
    pub fn len(&self) -> usize {
        self.raw().len() / self.manifest.token_bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_none()
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
        match self.manifest.token_bytes {
            2 => to.extend(
                raw.as_chunks().0.iter().map(|&token| i64::from(u16::from_le_bytes(token))),
            ),
            _ => to.extend(
                raw.as_chunks().0.iter().map(|&token| i64::from(u32::from_le_bytes(token))),
            ),
        }
        Ok(())
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.ends.as_deref().map_or(0, <[u8]>::len) / 8
    }

    /// Where a document's tokens lie, without the end-of-text tokens around it.
    ///
    /// # Errors
    /// When there are not that many documents.
    pub fn document(&self, index: usize) -> Result<Range<usize>> {
        let separator = usize::from(self.manifest.tokenizer.end_of_text.is_some());
        let before = match index.checked_sub(1) {
            Some(previous) => self.document_end(previous)?,
            None => 0,
        };
        let range = before + separator..self.document_end(index)?;
        if range.start <= range.end && range.end <= self.len() {
            return Ok(range);
        }
        // Only a documents' file that was tampered with says so.
        Err(Error::ShardChecksum { path: self.dir.join(&self.info().documents_file) })
    }

    fn document_end(&self, index: usize) -> Result<usize> {
        let ends = self.ends.as_deref().unwrap_or_default().as_chunks().0;
        match ends.get(index) {
            Some(&end) => Ok(u64::from_le_bytes(end) as usize),
            None => Err(Error::OutOfRange {
                what: "documents",
                start: index,
                end: index + 1,
                len: self.documents(),
                split: self.split,
            }),
        }
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
        let files = [
            (&info.file, &info.sha256, self.raw()),
            (
                &info.documents_file,
                &info.documents_sha256,
                self.ends.as_deref().unwrap_or_default(),
            ),
        ];
        for (name, sha256, content) in files {
            if &sha256_hex(content) != sha256 {
                return Err(Error::ShardChecksum { path: self.dir.join(name) });
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
        self.tokens.as_deref().unwrap_or_default()
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

fn mapped(path: &Path, expected: u64) -> Result<Option<Mmap>> {
    let map = map_file(path)?;
    let found = map.as_deref().map_or(0, <[u8]>::len) as u64;
    if found == expected {
        return Ok(map);
    }
    Err(Error::ShardLength { path: path.to_path_buf(), expected, found })
}
