//! The second pass over a corpus: kept files become tokens in shards.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::documents::{Format, Piece, read_documents};
use crate::files::hex;
use crate::scan::{Scanned, chunks};
use crate::source::SourceFile;
use crate::writer::{SplitWriter, to_shard_bytes, token_bytes};
use crate::{
    CorpusSource, Error, PrepareOptions, Progress, Result, Split, SplitFractions, SplitRule,
    Splits, Tokenizer,
};

/// Bytes of text that are tokenized between two reports of progress.
const CHUNK: u64 = 16 << 20;

/// Reads the kept files again and writes the three shards; gives the hash of their text too.
pub(crate) fn write_shards(
    options: &PrepareOptions,
    rule: SplitRule,
    files: &[SourceFile],
    scanned: &[Scanned],
    progress: &dyn Fn(Progress),
) -> Result<(String, Splits)> {
    let encoder = Encoder {
        source: &options.source,
        tokenizer: &options.tokenizer,
        fractions: options.split,
        rule,
        token_bytes: token_bytes(options.tokenizer.vocab_size()),
    };
    let mut start = 0;
    let kept: Vec<SourceFile> = files
        .iter()
        .zip(scanned)
        .filter(|(_, found)| found.dropped.is_none())
        .map(|(file, _)| file.clone())
        .collect();
    let mut starts = scanned.iter().filter(|found| found.dropped.is_none()).map(|found| {
        start += found.bytes;
        (start - found.bytes, found.bytes)
    });
    let total: u64 = kept.iter().map(|file| file.bytes).sum();
    let mut done = 0;
    let mut shards = Shards::new(options, encoder.token_bytes)?;
    for chunk in chunks(&kept, CHUNK) {
        progress(Progress::Tokenizing { done, total });
        let places: Vec<(u64, u64)> = starts.by_ref().take(chunk.len()).collect();
        match (chunk, places.as_slice()) {
            ([file], &[place]) if file.bytes > CHUNK => {
                encoder.long_file(file, place, &mut shards, &mut |read| {
                    let done = done + read.min(file.bytes);
                    progress(Progress::Tokenizing { done, total });
                })?;
            }
            _ => {
                let encoded: Vec<Result<Vec<Encoded>>> = chunk
                    .par_iter()
                    .zip(&places)
                    .map(|(file, &place)| encoder.file(file, place))
                    .collect();
                for encoded in encoded {
                    shards.append(&encoded?)?;
                }
            }
        }
        done += chunk.iter().map(|file| file.bytes).sum::<u64>();
    }
    progress(Progress::Tokenizing { done, total });
    shards.finish()
}

/// A part of a document on its way into a shard.
struct Encoded {
    name: Option<String>,
    text: String,
    last: bool,
    /// For each split that it goes to: tokens, bytes of text, whether the document ends there.
    parts: Vec<(Split, Vec<u8>, u64, bool)>,
}

/// What turns the documents of files into parts of shards.
struct Encoder<'p> {
    source: &'p CorpusSource,
    tokenizer: &'p Tokenizer,
    fractions: SplitFractions,
    rule: SplitRule,
    token_bytes: usize,
}

impl Encoder<'_> {
    fn format(&self, file: &SourceFile) -> Format {
        match self.source {
            CorpusSource::PythonCode { .. } => Format::Text,
            CorpusSource::Path(_) => Format::of(&file.path),
        }
    }

    /// The file's documents, each piece with the place in the corpus at which it begins. The file
    /// has to be as long as it was when it was scanned.
    fn read(
        &self,
        file: &SourceFile,
        (start, bytes): (u64, u64),
        each: &mut dyn FnMut(Piece, u64) -> Result<()>,
    ) -> Result<()> {
        let mut place = start;
        read_documents(file, self.format(file), &mut |piece| {
            let at = place;
            place += piece.text.len() as u64;
            each(piece, at)
        })?;
        if place - start == bytes {
            return Ok(());
        }
        Err(Error::SourceChanged { path: file.path.clone() })
    }

    fn file(&self, file: &SourceFile, place: (u64, u64)) -> Result<Vec<Encoded>> {
        let mut encoded = Vec::new();
        self.read(file, place, &mut |piece, at| {
            encoded.push(self.piece(file, piece, at)?);
            Ok(())
        })?;
        Ok(encoded)
    }

    /// A file too long for memory: its pieces are tokenized side by side, a few at a time.
    fn long_file(
        &self,
        file: &SourceFile,
        place: (u64, u64),
        shards: &mut Shards,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let mut waiting: Vec<(Piece, u64)> = Vec::new();
        let mut bytes = 0;
        let flush = |waiting: &mut Vec<(Piece, u64)>, shards: &mut Shards| {
            let encoded: Vec<Result<Encoded>> = std::mem::take(waiting)
                .into_par_iter()
                .map(|(piece, at)| self.piece(file, piece, at))
                .collect();
            let encoded = encoded.into_iter().collect::<Result<Vec<_>>>()?;
            shards.append(&encoded)
        };
        self.read(file, place, &mut |piece, at| {
            bytes += piece.text.len() as u64;
            waiting.push((piece, at));
            if bytes >= CHUNK {
                bytes = 0;
                flush(&mut waiting, shards)?;
                progress(at - place.0);
            }
            Ok(())
        })?;
        flush(&mut waiting, shards)
    }

    fn piece(&self, file: &SourceFile, piece: Piece, at: u64) -> Result<Encoded> {
        let dealt = match self.format(file) {
            Format::Text => self.fractions.of_key(file.key.as_bytes()),
            Format::JsonLines => self.fractions.of_key(piece.text.as_bytes()),
        };
        let parts = self
            .rule
            .divide(&piece.text, at, dealt, piece.last)
            .into_iter()
            .map(|part| {
                let ids = self.tokenizer.encode(part.text)?;
                let tokens = to_shard_bytes(&ids, self.token_bytes);
                Ok((part.split, tokens, part.text.len() as u64, part.ends))
            })
            .collect::<Result<_>>()?;
        Ok(Encoded { name: piece.name, text: piece.text, last: piece.last, parts })
    }
}

/// The three shards and the hash of all text, while they are being written.
struct Shards {
    writers: [SplitWriter; 3],
    content: Sha256,
}

impl Shards {
    fn new(options: &PrepareOptions, token_bytes: usize) -> Result<Self> {
        let end_of_text = options.tokenizer.end_of_text();
        let writer = |split| SplitWriter::new(&options.out_dir, split, token_bytes, end_of_text);
        Ok(Self {
            writers: [writer(Split::Train)?, writer(Split::Validation)?, writer(Split::Test)?],
            content: Sha256::new(),
        })
    }

    fn append(&mut self, encoded: &[Encoded]) -> Result<()> {
        let Self { writers, content } = self;
        let hash = || {
            // 0xFF is part of no UTF-8 text.
            for piece in encoded {
                if let Some(name) = &piece.name {
                    content.update(name.as_bytes());
                    content.update([0xFF]);
                }
                content.update(piece.text.as_bytes());
                if piece.last {
                    content.update([0xFF]);
                }
            }
        };
        let write = || {
            encoded.iter().flat_map(|piece| &piece.parts).try_for_each(
                |(split, tokens, bytes, ends)| {
                    writers[*split as usize].append(tokens, *bytes, *ends)
                },
            )
        };
        rayon::join(hash, write).1
    }

    fn finish(self) -> Result<(String, Splits)> {
        let [train, validation, test] = self.writers;
        let splits = Splits {
            train: train.finish()?,
            validation: validation.finish()?,
            test: test.finish()?,
        };
        Ok((hex(&self.content.finalize()), splits))
    }
}
