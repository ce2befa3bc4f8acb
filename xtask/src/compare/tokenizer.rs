//! The same ids for lines of many kinds.

use std::fs::{self, File};
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::sides::{Ours, Theirs, text};
use super::{Check, Plan};
use crate::process;

/// Differing lines that are shown in full.
const SHOWN: usize = 5;

/// Holds our ids against the peer's.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let answer = theirs.ask(&json!({
        "do": "lines",
        "count": plan.lines,
        "seed": plan.seed,
        "corpus": text(&ours.workspace.python_code())?,
    }))?;
    let list =
        |name: &str| answer[name].as_array().with_context(|| format!("an answer without {name}"));
    let (lines, wanted) = (list("lines")?, list("ids")?);
    let found = tokenize(ours, lines)?;
    ensure!(
        found.len() == lines.len() && wanted.len() == lines.len(),
        "{} lines, of which {} came back from us and {} from transformers",
        lines.len(),
        found.len(),
        wanted.len()
    );
    let differing: Vec<usize> =
        (0..lines.len()).filter(|&line| found[line] != wanted[line]).collect();
    let first = format!("tokenizer: {} of {} lines differ (bar: 0)", differing.len(), lines.len());
    let mut summary = vec![first];
    let mut examples = Vec::new();
    for &line in differing.iter().take(SHOWN) {
        let (text, mine, other) = (&lines[line], &found[line], &wanted[line]);
        summary.push(format!("  {text}\n    ours         {mine}\n    transformers {other}"));
        examples.push(json!({"text": text, "ours": mine, "transformers": other}));
    }
    Ok(Check {
        passed: differing.is_empty(),
        summary: summary.join("\n"),
        figures: json!({
            "lines": lines.len(), "seed": plan.seed,
            "differing": differing.len(), "examples": examples,
        }),
    })
}

/// Our ids of every line, each as the JSON array that was printed.
fn tokenize(ours: &Ours<'_>, lines: &[Value]) -> Result<Vec<Value>> {
    let path = ours.file("lines.jsonl")?;
    let written: Vec<String> = lines.iter().map(ToString::to_string).collect();
    fs::write(&path, written.join("\n") + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = ours.tool("tokenize");
    let name = process::line(&command);
    let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let output = command
        .stdin(file)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{name}`"))?;
    if !output.status.success() {
        bail!("`{name}` failed ({})", output.status);
    }
    let printed = String::from_utf8(output.stdout)
        .with_context(|| format!("`{name}` wrote something that is not UTF-8"))?;
    printed
        .lines()
        .map(|line| {
            serde_json::from_str(line).with_context(|| format!("`{name}` printed {line:?}"))
        })
        .collect()
}
