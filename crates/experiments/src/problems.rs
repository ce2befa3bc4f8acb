//! `HumanEval`'s problems as prompts.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, ensure};
use flate2::read::GzDecoder;
use foretoken_data::Tokenizer;
use serde::Deserialize;

/// Bytes that the unpacked file may have: a few hundred thousand in truth.
const MOST_BYTES: u64 = 1 << 26;

/// A line of the file, as far as it is used.
#[derive(Deserialize)]
struct Problem {
    prompt: String,
}

/// The prompts of `count` problems that spread over a `.jsonl.gz` file, or all of them where there
/// are no more; of a long one its last `most_tokens` tokens.
pub(crate) fn prompts(
    path: &Path,
    count: usize,
    most_tokens: usize,
    tokenizer: &Tokenizer,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let describe = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(describe)?;
    let text = BufReader::new(GzDecoder::new(file).take(MOST_BYTES));
    let mut problems = Vec::new();
    for line in text.lines() {
        let line = line.with_context(describe)?;
        if !line.trim().is_empty() {
            let problem: Problem = serde_json::from_str(&line)
                .with_context(|| format!("{}: line {}", path.display(), problems.len() + 1))?;
            problems.push(problem.prompt);
        }
    }
    ensure!(!problems.is_empty(), "{} has no problems", path.display());
    let count = count.min(problems.len());
    (0..count)
        .map(|i| {
            let mut tokens =
                tokenizer.encode_with_specials(&problems[i * problems.len() / count])?;
            tokens.drain(..tokens.len().saturating_sub(most_tokens));
            Ok(tokens)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn prompts_spread_over_the_file_and_long_ones_keep_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl.gz");
        let mut file = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
        for i in 0..10 {
            writeln!(file, "{{\"task_id\": \"{i}\", \"prompt\": \"def f{i}():\"}}").unwrap();
        }
        file.finish().unwrap();
        let read = |count, most| prompts(&path, count, most, &Tokenizer::bytes()).unwrap();
        assert_eq!(read(2, 99), [b"def f0():", b"def f5():"].map(|t| t.map(u32::from).to_vec()));
        assert_eq!(read(50, 4).len(), 10);
        assert_eq!(read(1, 4), [b"0():".map(u32::from).to_vec()]);
    }

    #[test]
    fn a_file_that_is_something_else_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl.gz");
        std::fs::write(&path, "no gzip").unwrap();
        let error = prompts(&path, 1, 1, &Tokenizer::bytes()).unwrap_err();
        assert!(error.to_string().contains("p.jsonl.gz"));
    }
}
