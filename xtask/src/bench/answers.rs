//! What prompts were continued with, by ours and by others, and how fast.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::conversation::Conversation;
use crate::process;

/// What one side made of a prompt.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The new tokens.
    pub(crate) tokens: Vec<u64>,
    /// Without loading.
    pub(crate) seconds: f64,
}

impl Answer {
    fn new(tokens: &Value, seconds: Option<f64>) -> Result<Self> {
        let seconds = seconds.context("an answer without a time")?;
        Ok(Self { tokens: ids(tokens)?, seconds })
    }
}

/// The ids of a JSON array.
fn ids(array: &Value) -> Result<Vec<u64>> {
    let ids = array.as_array().context("an answer without tokens")?;
    ids.iter().map(|id| id.as_u64().with_context(|| format!("{id} is no token's number"))).collect()
}

/// Tokens a second over all answers.
pub(crate) fn tokens_per_second(answers: &[Answer]) -> f64 {
    let tokens: usize = answers.iter().map(|answer| answer.tokens.len()).sum();
    let seconds: f64 = answers.iter().map(|answer| answer.seconds).sum();
    tokens as f64 / seconds
}

/// Whether two sides gave the same tokens.
pub(crate) fn same_tokens(ours: &[Answer], theirs: &[Answer]) -> bool {
    ours.iter().map(|answer| &answer.tokens).eq(theirs.iter().map(|answer| &answer.tokens))
}

/// Plain greedy decoding of every prompt by `generate`, a `foretoken generate` with its model: a
/// fresh process, as a user starts it; the times are its own, without loading. The prompts go to
/// the file `path`.
pub(crate) fn ours<P: AsRef<str>>(
    mut generate: Command,
    path: &Path,
    prompts: &[P],
    tokens: usize,
    threads: usize,
) -> Result<Vec<Answer>> {
    let lines = prompts.iter().map(|prompt| json!({"prompt": prompt.as_ref()}).to_string());
    let lines: Vec<String> = lines.collect();
    fs::write(path, lines.join("\n") + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    generate.arg("--prompts").arg(path).args(["--decoding", "autoregressive", "--json"]);
    generate.args(["--max-new-tokens", &tokens.to_string()]);
    generate.args(["--threads", &threads.to_string()]);
    let mut answers = Vec::with_capacity(prompts.len());
    for line in process::stdout(&mut generate)?.lines() {
        let answer: Value = serde_json::from_str(line)
            .with_context(|| format!("foretoken generate printed {line:?}"))?;
        let seconds = &answer["seconds"];
        let both = seconds["prefill"].as_f64().zip(seconds["decode"].as_f64());
        answers.push(Answer::new(&answer["tokens"], both.map(|(one, two)| one + two))?);
    }
    ensure!(answers.len() == prompts.len(), "foretoken generate left out a prompt");
    Ok(answers)
}

/// The same by a peer that talks.
pub(crate) fn theirs<P: AsRef<str>>(
    conversation: &mut Conversation,
    prompts: &[P],
    tokens: usize,
) -> Result<Vec<Answer>> {
    let ask = |prompt: &P| {
        let request =
            json!({"do": "generate", "prompt": prompt.as_ref(), "max_new_tokens": tokens});
        let answer = conversation.ask(&request.to_string())?;
        Answer::new(&answer["tokens"], answer["seconds"].as_f64())
    };
    prompts.iter().map(ask).collect()
}
