//! Prompts, one or a file of them.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// A text to continue and what to call it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Prompt {
    /// Any JSON value; the line's number from 0 where there is none.
    #[serde(default)]
    pub(crate) id: Value,
    pub(crate) prompt: String,
}

/// The prompts of a `.jsonl` file.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Prompt>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let prompts = parse(&text).with_context(|| path.display().to_string())?;
    ensure!(!prompts.is_empty(), "{} has no prompts", path.display());
    Ok(prompts)
}

fn parse(text: &str) -> anyhow::Result<Vec<Prompt>> {
    let mut prompts = Vec::new();
    for (line, text) in text.lines().enumerate() {
        if text.trim().is_empty() {
            continue;
        }
        match serde_json::from_str::<Prompt>(text) {
            Ok(mut prompt) => {
                if prompt.id.is_null() {
                    prompt.id = Value::from(prompts.len());
                }
                prompts.push(prompt);
            }
            Err(error) => {
                let error = error.to_string();
                // A line of one's own: the library counts within it.
                let problem = error.rsplit_once(" at line ").map_or(error.as_str(), |(it, _)| it);
                bail!("line {} is not {{\"id\": ..., \"prompt\": \"...\"}}: {problem}", line + 1)
            }
        }
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kept_as_they_are_or_counted() {
        let prompts =
            parse("{\"id\":\"a\",\"prompt\":\"x\"}\n\n{\"prompt\":\"y\",\"more\":1}\n").unwrap();
        assert_eq!(prompts[0].id, Value::from("a"));
        assert_eq!(prompts[1].id, Value::from(1));
        assert_eq!(prompts[1].prompt, "y");
    }

    #[test]
    fn a_line_that_is_no_prompt_is_named() {
        let error = parse("{\"prompt\":\"x\"}\n{\"text\":\"y\"}\n").unwrap_err().to_string();
        assert!(error.starts_with("line 2"), "{error}");
    }
}
