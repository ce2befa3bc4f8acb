//! Where the documents of a shard begin and end.

use std::ops::Range;

use crate::{Error, Result, TokenShard};

impl TokenShard {
    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.ends().len()
    }

    /// Where a document's tokens lie, without the end-of-text tokens around it.
    ///
    /// # Errors
    /// When there are not that many documents.
    pub fn document(&self, index: usize) -> Result<Range<usize>> {
        let before = match index.checked_sub(1) {
            Some(previous) => self.document_end(previous)?,
            None => 0,
        };
        let range = before.saturating_add(self.separator())..self.document_end(index)?;
        if range.start <= range.end && range.end <= self.len() {
            return Ok(range);
        }
        // Only a documents' file that was tampered with says so.
        Err(self.bad_documents())
    }

    fn document_end(&self, index: usize) -> Result<usize> {
        match self.ends().get(index) {
            Some(&end) => Ok(u64::from_le_bytes(end) as usize),
            None => Err(Error::OutOfRange {
                what: "documents",
                start: index,
                end: index + 1,
                len: self.documents(),
                split: self.split(),
            }),
        }
    }

    /// Makes sure that the documents lie one behind the other and within the shard.
    pub(crate) fn check_documents(&self) -> Result<()> {
        let separator = self.separator() as u64;
        let mut place = 0_u64;
        for &end in self.ends() {
            let end = u64::from_le_bytes(end);
            if place.checked_add(separator).is_none_or(|begin| begin > end) {
                return Err(self.bad_documents());
            }
            place = end;
        }
        if self.ends().is_empty() || place.saturating_add(separator) <= self.len() as u64 {
            return Ok(());
        }
        Err(self.bad_documents())
    }

    /// How many [`spans`](Self::span) there are: the documents, and what follows the last.
    pub(crate) fn spans(&self) -> usize {
        self.documents() + 1
    }

    /// A document with the end-of-text tokens before and behind it, or the tokens behind the last
    /// one; empty where there is nothing but end-of-text tokens.
    pub(crate) fn span(&self, index: usize) -> Range<usize> {
        let ends = self.ends();
        let end_of = |index: usize| ends.get(index).map(|&end| u64::from_le_bytes(end) as usize);
        let start = index.checked_sub(1).and_then(end_of).unwrap_or(0).min(self.len());
        let separator = self.separator();
        let (text_end, end) = match end_of(index) {
            Some(end) => (end, end.saturating_add(separator)),
            None => (self.len(), self.len()),
        };
        if text_end <= start + separator {
            return start..start;
        }
        start..end.min(self.len())
    }

    /// Gives each of the tokens from `start` on the number of its document among those that
    /// `to` reaches into, from 0. An end-of-text token belongs to the document that it ends, the
    /// shard's first to the first.
    pub(crate) fn number_documents(&self, start: usize, to: &mut [u32]) {
        let separator = self.separator() as u64;
        // Where the document behind this end begins.
        let boundary = |end: &[u8; 8]| u64::from_le_bytes(*end).saturating_add(separator);
        let ends = self.ends();
        let first = ends.partition_point(|end| boundary(end) <= start as u64);
        let (mut number, mut filled) = (0, 0);
        for end in &ends[first..] {
            let place = boundary(end).saturating_sub(start as u64);
            if place >= to.len() as u64 {
                break;
            }
            let place = place as usize;
            if place > filled {
                to[filled..place].fill(number);
                number += 1;
                filled = place;
            }
        }
        to[filled..].fill(number);
    }

    /// 1 where an end-of-text token stands between documents, else 0.
    fn separator(&self) -> usize {
        usize::from(self.manifest().tokenizer.end_of_text.is_some())
    }

    fn bad_documents(&self) -> Error {
        Error::ShardChecksum { path: self.dir().join(&self.info().documents_file) }
    }
}
