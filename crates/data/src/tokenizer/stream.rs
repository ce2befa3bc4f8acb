//! Decoding ids one by one, never half a character.

use std::ops::Range;
use std::sync::Arc;

use super::bytes::ByteVocabulary;
use super::file::FileTokenizer;
use crate::Result;

/// Tokens after which bytes that still make no character are given up on.
const MOST_PENDING: usize = 64;

/// Turns ids that come one by one into text that can be printed at once.
///
/// A piece is handed out when its last character is complete; the pieces put together are what
/// [`Tokenizer::decode`](crate::Tokenizer::decode) makes of all the ids, but for the space before the
/// first word of a decoder that [goes on from a text](crate::Tokenizer::stream_after). Only for a vocabulary
/// with byte fallback, whose decoder judges a run of bytes as a whole, may the two differ, where
/// the bytes are no UTF-8.
///
/// ```
/// # fn main() -> foretoken_data::Result<()> {
/// let mut stream = foretoken_data::Tokenizer::bytes().stream();
/// assert_eq!(stream.push(0xC3)?, None); // the first half of é
/// assert_eq!(stream.push(0xA9)?, Some("é".to_owned()));
/// assert_eq!(stream.finish()?, "");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StreamDecoder {
    state: State,
    /// Ids behind the vocabulary that have no text.
    silent: Range<usize>,
}

#[derive(Debug)]
enum State {
    /// The bytes of a character that is not complete.
    Bytes(Vec<u8>),
    File(Window),
}

/// The last tokens, decoded together: what a token looks like can depend on the one before it
/// (spaces) and on those after it (characters of several tokens).
#[derive(Debug)]
struct Window {
    tokenizer: Arc<FileTokenizer>,
    ids: Vec<u32>,
    /// Tokens of `ids` whose text ended on a whole character.
    settled: usize,
    /// Bytes of the window's text that were handed out.
    emitted: usize,
}

impl StreamDecoder {
    pub(super) fn bytes(silent: Range<usize>) -> Self {
        Self { state: State::Bytes(Vec::with_capacity(4)), silent }
    }

    pub(super) fn file(tokenizer: Arc<FileTokenizer>, silent: Range<usize>) -> Self {
        let window = Window { tokenizer, ids: Vec::new(), settled: 0, emitted: 0 };
        Self { state: State::File(window), silent }
    }

    /// Takes the id before the first, if it is known to end a character.
    pub(super) fn follow(&mut self, id: u32) -> Result<()> {
        match &mut self.state {
            State::File(window) if !self.silent.contains(&(id as usize)) => window.follow(id),
            _ => Ok(()),
        }
    }

    /// Takes the next id; gives the text that is now certain, if any.
    ///
    /// # Errors
    /// For an id outside the vocabulary, unless its model has it.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.silent.contains(&(id as usize)) {
            return Ok(None);
        }
        let text = match &mut self.state {
            State::Bytes(pending) => {
                pending.extend(ByteVocabulary::byte(id)?);
                take_characters(pending)
            }
            State::File(window) => window.push(id)?,
        };
        Ok((!text.is_empty()).then_some(text))
    }

    /// Ends the text: what was held back, with U+FFFD for a character that never came to its end.
    /// The decoder is then as new.
    ///
    /// # Errors
    /// When a `tokenizer.json`'s decoder fails.
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.state {
            State::Bytes(pending) => {
                let rest = String::from_utf8_lossy(pending).into_owned();
                pending.clear();
                Ok(rest)
            }
            State::File(window) => window.finish(),
        }
    }
}

/// Takes everything but an unfinished character off the front.
fn take_characters(pending: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    for chunk in pending.utf8_chunks() {
        text.push_str(chunk.valid());
        used += chunk.valid().len();
        let bad = chunk.invalid();
        let unfinished = used + bad.len() == pending.len()
            && std::str::from_utf8(bad).is_err_and(|error| error.error_len().is_none());
        if bad.is_empty() || unfinished {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        used += bad.len();
    }
    pending.drain(..used);
    text
}

impl Window {
    fn follow(&mut self, id: u32) -> Result<()> {
        let text = self.tokenizer.decode(&[id])?;
        if !self.tokenizer.is_special(id) && !text.contains(char::REPLACEMENT_CHARACTER) {
            (self.ids, self.settled, self.emitted) = (vec![id], 1, text.len());
        }
        Ok(())
    }

    fn push(&mut self, id: u32) -> Result<String> {
        self.tokenizer.check(id)?;
        if self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        let settles = whole.len() == text.len() || self.ids.len() - self.settled > MOST_PENDING;
        let certain = if settles { text.as_str() } else { whole };
        let new = certain.get(self.emitted..).unwrap_or_default().to_owned();
        self.emitted = self.emitted.max(certain.len());
        if settles {
            self.ids.drain(..self.settled);
            self.settled = self.ids.len();
            self.emitted = self.tokenizer.decode(&self.ids)?.len();
        }
        Ok(new)
    }

    fn finish(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        let rest = text.get(self.emitted..).unwrap_or_default().to_owned();
        self.ids.clear();
        self.settled = 0;
        self.emitted = 0;
        Ok(rest)
    }
}
