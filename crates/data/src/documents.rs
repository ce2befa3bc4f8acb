//! Reading the documents of a file: the whole of it, or a record a line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::source::SourceFile;
use crate::{Error, Result};

/// Bytes of a text that are tokenized at a time.
const PIECE: usize = 4 << 20;

/// What a file of a text corpus holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One document.
    Text,
    /// A document a line.
    JsonLines,
}

impl Format {
    pub(crate) fn of(path: &Path) -> Self {
        let json = |end: &std::ffi::OsStr| {
            end.eq_ignore_ascii_case("jsonl") || end.eq_ignore_ascii_case("ndjson")
        };
        match path.extension() {
            Some(end) if json(end) => Self::JsonLines,
            _ => Self::Text,
        }
    }
}

/// A document, or a part of a long one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    /// The document's name in the corpus, on its first piece.
    pub(crate) name: Option<String>,
    /// Whether the document ends with this piece.
    pub(crate) last: bool,
}

/// Hands a file's documents to `each`, long ones in pieces that end with a line.
pub(crate) fn read_documents(
    file: &SourceFile,
    format: Format,
    each: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    match format {
        Format::Text => read_text(file, PIECE, each),
        Format::JsonLines => read_records(file, &mut |line, raw| {
            let text = record_text(&file.path, line, raw)?;
            if text.is_empty() {
                return Ok(());
            }
            each(Piece { text, name: Some(format!("{}:{line}", file.key)), last: true })
        }),
    }
}

fn read_text(
    file: &SourceFile,
    piece: usize,
    each: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<()> {
    let mut reader = File::open(&file.path).map_err(Error::io("read", &file.path))?;
    let mut buffer = Vec::with_capacity(piece.min(file.bytes as usize) + 1);
    let mut name = Some(file.key.clone());
    let mut offset = 0;
    loop {
        let wanted = piece.saturating_sub(buffer.len()).max(1) as u64;
        let read = (&mut reader)
            .take(wanted)
            .read_to_end(&mut buffer)
            .map_err(Error::io("read", &file.path))?;
        let last = (read as u64) < wanted;
        let cut = if last { buffer.len() } else { piece_end(&buffer) };
        if cut == 0 && !last {
            continue;
        }
        let rest = buffer.split_off(cut);
        let text = String::from_utf8(std::mem::replace(&mut buffer, rest)).map_err(|error| {
            Error::NotText {
                path: file.path.clone(),
                offset: offset + error.utf8_error().valid_up_to() as u64,
            }
        })?;
        offset += text.len() as u64;
        each(Piece { text, name: name.take(), last })?;
        if last {
            return Ok(());
        }
    }
}

/// Where a long text may be cut so that tokenizers that split at white space do not notice: before
/// the last line that begins with something visible, else behind the last whole character.
fn piece_end(buffer: &[u8]) -> usize {
    let line = buffer
        .windows(2)
        .rposition(|pair| pair[0] == b'\n' && !pair[1].is_ascii_whitespace() && pair[1].is_ascii());
    match line {
        Some(newline) => newline + 1,
        None => (0..buffer.len()).rev().find(|&at| buffer[at] & 0xC0 != 0x80).unwrap_or_default(),
    }
}

/// Hands the lines of a `.jsonl` file to `each`, with their numbers from 1; blank ones are skipped.
pub(crate) fn read_records(
    file: &SourceFile,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let open = File::open(&file.path).map_err(Error::io("read", &file.path))?;
    let mut reader = BufReader::with_capacity(1 << 20, open);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(Error::io("read", &file.path))?;
        if read == 0 {
            break;
        }
        if !line.trim_ascii().is_empty() {
            each(number, &line)?;
        }
    }
    Ok(())
}

/// The fields that a record's text is taken from.
#[derive(Deserialize)]
struct Record {
    text: Option<String>,
    content: Option<String>,
    prompt: Option<String>,
    completion: Option<String>,
    response: Option<String>,
    instruction: Option<String>,
    input: Option<String>,
    output: Option<String>,
}

impl Record {
    fn into_text(self) -> Option<String> {
        if let Some(text) = self.text.or(self.content) {
            return Some(text);
        }
        if let Some(prompt) = self.prompt {
            return Some(join([Some(prompt), self.completion.or(self.response)]));
        }
        match (self.instruction, self.output) {
            (Some(instruction), Some(output)) => {
                Some(join([Some(instruction), self.input, Some(output)]))
            }
            _ => None,
        }
    }
}

/// One part after the other, on a new line where no white space stands between them.
fn join<const N: usize>(parts: [Option<String>; N]) -> String {
    let parts = parts.into_iter().flatten().filter(|part| !part.is_empty());
    parts.fold(String::new(), |mut whole, part| {
        let apart = whole.is_empty()
            || whole.ends_with(char::is_whitespace)
            || part.starts_with(char::is_whitespace);
        if !apart {
            whole.push('\n');
        }
        whole.push_str(&part);
        whole
    })
}

/// The text of a line of a `.jsonl` file.
pub(crate) fn record_text(path: &Path, line: u64, raw: &[u8]) -> Result<String> {
    let refuse = |problem: String| Error::JsonLine { path: path.to_path_buf(), line, problem };
    let record: Record =
        serde_json::from_slice(raw).map_err(|error| refuse(json_problem(&error, raw)))?;
    record.into_text().ok_or_else(|| {
        refuse(format!(
            "this record has no text: it has {}, and one of `text`, `content`, `prompt` (with \
             `completion`) or `instruction` with `output` is needed",
            fields(raw)
        ))
    })
}

fn json_problem(error: &serde_json::Error, raw: &[u8]) -> String {
    if std::str::from_utf8(raw).is_err() {
        return "this line is not UTF-8".to_owned();
    }
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = message.strip_suffix(&place).unwrap_or(&message);
    match error.classify() {
        serde_json::error::Category::Data => {
            format!("this record's fields are not as expected: {message}")
        }
        _ => format!("this line is not a JSON object: {message} (column {})", error.column()),
    }
}

fn fields(raw: &[u8]) -> String {
    let names: Vec<String> = match serde_json::from_slice(raw) {
        Ok(Value::Object(record)) => {
            record.keys().take(8).map(|name| format!("`{name}`")).collect()
        }
        _ => Vec::new(),
    };
    if names.is_empty() { "no fields".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(content: &str, piece: usize) -> Vec<Piece> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, content).unwrap();
        let file = SourceFile { key: "a.txt".to_owned(), path, bytes: content.len() as u64 };
        let mut pieces = Vec::new();
        read_text(&file, piece, &mut |piece| {
            pieces.push(piece);
            Ok(())
        })
        .unwrap();
        pieces
    }

    #[test]
    fn a_long_text_is_cut_before_lines_that_begin_with_something_visible() {
        let texts: Vec<String> =
            pieces("def f():\n    pass\nx = 1\n", 21).into_iter().map(|piece| piece.text).collect();
        assert_eq!(texts, ["def f():\n    pass\n", "x = 1\n"]);
    }

    #[test]
    fn pieces_put_together_are_the_text_whatever_their_size() {
        let text = "é\n\n  ü日本語 \nand one long line without an end 日本語日本語日本語";
        for size in 1..text.len() + 2 {
            let pieces = pieces(text, size);
            let whole: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            assert_eq!(whole, text, "pieces of {size}");
            assert_eq!(pieces.iter().filter(|piece| piece.last).count(), 1);
            assert_eq!(pieces.iter().filter(|piece| piece.name.is_some()).count(), 1);
        }
    }
}
