//! Heads exported for vLLM.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::form::{with_problems, words};
use super::logits::MOST_DIFFERENCE;
use super::scratch::Scratch;
use super::sides::{Ours, Theirs, text};
use super::{Check, Plan};
use crate::process;
use crate::reproduce::foretoken;

/// A few steps of training, enough for heads that are no longer all the same.
const RECIPE: &str = "benches/peers/medusa.toml";
/// The tokens that drafts are chosen from: all of them, or so many (fewer than the prompts have).
const DRAFT_VOCABULARIES: [usize; 2] = [0, 256];
/// Text to train on: enough for a window of every part that it is split into.
const LEAST_BYTES: usize = 4096;
/// How far the logits of any two heads lie apart at least: one taken for another has to show.
const LEAST_APART: f64 = 100.0 * MOST_DIFFERENCE;

/// Trains heads, exports them, and has their logits computed from the export and the peer's final
/// hidden states.
pub(super) fn check(ours: &Ours<'_>, theirs: &mut Theirs, plan: &Plan) -> Result<Check> {
    let scratch = ours.scratch("export-medusa")?;
    let mut rows = Vec::new();
    for draft_vocabulary in DRAFT_VOCABULARIES {
        let trial = Trial { ours, plan, scratch: &scratch, draft_vocabulary };
        rows.push(trial.export(theirs)?);
    }
    let problems: Vec<String> = rows.iter().flat_map(Export::problems).collect();
    let largest = rows.iter().map(Export::difference).fold(0.0, f64::max);
    let heads = &rows[0].answer["heads"];
    let summary = format!(
        "export, Medusa: tensors and config as vLLM asks for them, {heads} heads; their logits from \
         transformers' hidden states at most {largest:.2e} from ours (bar: {MOST_DIFFERENCE})"
    );
    Ok(Check {
        passed: problems.is_empty(),
        summary: with_problems(summary, &problems),
        figures: json!({
            "heads": heads, "largest_difference": largest,
            "exports": rows.iter().map(Export::json).collect::<Vec<_>>(),
            "problems": problems,
            "bars": {"most_difference": MOST_DIFFERENCE, "least_apart": LEAST_APART},
        }),
    })
}

/// One set of heads.
struct Trial<'a> {
    ours: &'a Ours<'a>,
    plan: &'a Plan,
    scratch: &'a Scratch,
    /// As in [`DRAFT_VOCABULARIES`].
    draft_vocabulary: usize,
}

impl Trial<'_> {
    /// Trains and exports the heads, and asks what others make of them.
    fn export(&self, theirs: &mut Theirs) -> Result<Export> {
        let name = |what: &str| self.scratch.join(format!("{what}-{}", self.draft_vocabulary));
        let (run, folder) = (name("run"), name("medusa"));
        self.train(&run)?;
        let trained = Ours { model: &run.join("model"), ..*self.ours };
        trained.export("medusa", &folder)?;
        let (_, prompt) = self.plan.some(1).next().context("there is no prompt")?;
        let logits = self.scratch.join("logits.safetensors");
        trained.logits(prompt, &logits)?;
        let answer = theirs.ask(&json!({
            "do": "medusa", "folder": text(&folder)?, "prompt": prompt, "file": text(&logits)?,
        }))?;
        fs::remove_dir_all(&run).with_context(|| format!("cannot remove {}", run.display()))?;
        Ok(Export { draft_vocabulary: self.draft_vocabulary, answer })
    }

    /// Trains heads on the prompts for a few steps.
    fn train(&self, out: &Path) -> Result<()> {
        let corpus = self.scratch.join("text.txt");
        let prompts = self.plan.prompts.join("\n") + "\n";
        fs::write(&corpus, prompts.repeat(LEAST_BYTES.div_ceil(prompts.len())))
            .with_context(|| format!("cannot write {}", corpus.display()))?;
        let draft_vocabulary = self.draft_vocabulary.to_string();
        let mut command = foretoken(self.ours.workspace, self.ours.libtorch);
        command.arg("train").arg("--config").arg(self.ours.workspace.root().join(RECIPE));
        for (key, value) in [
            ("model.init_from", text(self.ours.model)?),
            ("data.path", text(&corpus)?),
            ("heads.draft_vocabulary", draft_vocabulary.as_str()),
        ] {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        process::stdout(command.arg("--out").arg(out).arg("--json")).map(drop)
    }
}

/// What became of one set of heads.
struct Export {
    /// As in [`DRAFT_VOCABULARIES`].
    draft_vocabulary: usize,
    /// What was found of the exported folder.
    answer: Value,
}

impl Export {
    fn difference(&self) -> f64 {
        self.answer["largest_difference"].as_f64().unwrap_or(f64::INFINITY)
    }

    fn problems(&self) -> Vec<String> {
        let drafted = &self.answer["draft_vocabulary"];
        let mut problems =
            words(&self.answer["problems"]).unwrap_or_else(|error| vec![error.to_string()]);
        if self.draft_vocabulary > 0 && *drafted != self.draft_vocabulary {
            problems.push(format!("not {}, as they were trained", self.draft_vocabulary));
        }
        if self.difference() > MOST_DIFFERENCE {
            problems.push("logits differ".to_owned());
        }
        if self.answer["least_apart"].as_f64().is_none_or(|gap| gap < LEAST_APART) {
            problems.push(format!("two heads lie less than {LEAST_APART} apart"));
        }
        problems.iter().map(|problem| format!("heads over {drafted} tokens: {problem}")).collect()
    }

    fn json(&self) -> Value {
        let mut row = json!({});
        for key in ["draft_vocabulary", "tokens", "largest_difference", "least_apart"] {
            row[key] = self.answer[key].clone();
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(draft_vocabulary: usize, difference: f64, apart: f64, problems: &[&str]) -> Export {
        let answer = json!({
            "heads": 2, "draft_vocabulary": 4096, "tokens": 9, "problems": problems,
            "largest_difference": difference, "least_apart": apart,
        });
        Export { draft_vocabulary, answer }
    }

    #[test]
    fn all_that_is_amiss_is_named() {
        assert!(export(4096, 1e-4, 30.0, &[]).problems().is_empty());
        assert!(export(0, 1e-4, 30.0, &[]).problems().is_empty());
        for (export, words) in [
            (export(64, 1e-4, 30.0, &[]), "not 64"),
            (export(4096, 0.1, 30.0, &[]), "logits differ"),
            (export(4096, f64::NAN, 30.0, &[]), "logits differ"),
            (export(4096, 1e-4, 0.01, &[]), "two heads"),
            (export(4096, 1e-4, 30.0, &["token_map is None"]), "token_map"),
        ] {
            let problems = export.problems();
            assert!(problems.len() == 1 && problems[0].contains(words), "{problems:?}");
        }
    }
}
