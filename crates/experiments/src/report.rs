//! What every experiment writes: `report.json`.
//!
//! The keys are a contract with whoever reads reports; an experiment's own figures go into
//! [`Report::results`].

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Noted in reports of GPUs.
pub(crate) const HOST_MEMORY: &str = "The peak memory of a training is the host's, not the GPU's.";

/// A finished run of an experiment. Every figure comes from the run that wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The experiment's name.
    pub experiment: String,
    /// The preset's name.
    pub preset: String,
    /// Whether the heads were trained before, and are kept: [`ReproduceOptions::pretrained_heads`].
    ///
    /// [`ReproduceOptions::pretrained_heads`]: crate::ReproduceOptions::pretrained_heads
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pretrained_heads: bool,
    /// Whether it is of [`Recipe::without_bfloat16`]'s amounts.
    ///
    /// [`Recipe::without_bfloat16`]: crate::Recipe::without_bfloat16
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub without_bfloat16: bool,
    /// The seed of weights, batches and prompts.
    pub seed: u64,
    /// `cpu` or `cuda`.
    pub device: String,
    /// Of what made it.
    pub versions: Versions,
    /// Seconds of all pieces of the run together, interruptions left out.
    pub wall_seconds: f64,
    /// What the models were trained and tested on.
    pub corpus: Corpus,
    /// The models, the baseline first.
    pub models: Vec<ModelRow>,
    /// One row for each model and number of heads used.
    pub decoding: Vec<DecodingRow>,
    /// The experiment's own figures.
    pub results: Value,
    /// The paper's figures for the same table.
    pub paper: Value,
}

/// Versions of the software that made a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// This workspace's.
    pub foretoken: String,
    /// The libtorch that it binds.
    pub libtorch: String,
}

impl Versions {
    /// The versions of this build.
    pub fn current() -> Self {
        Self { foretoken: env!("CARGO_PKG_VERSION").to_owned(), libtorch: "2.11.0".to_owned() }
    }
}

/// The corpus of a report, as its manifest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    /// The corpus' name.
    pub name: String,
    /// Hash of the filtered content.
    pub sha256: String,
    /// Tokens that models are trained on.
    pub train_tokens: u64,
    /// Tokens that losses are measured on.
    pub validation_tokens: u64,
    /// Tokens that prompts and held-out text come from.
    pub test_tokens: u64,
}

/// A trained model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRow {
    /// Its name in this report and its folder under `models/`.
    pub name: String,
    /// How many tokens it predicts, n.
    pub heads: usize,
    /// The type of its heads.
    pub head_type: String,
    /// Layers in all, heads included.
    pub layers: usize,
    /// Width.
    pub dim: usize,
    /// Parameters in all.
    pub parameters: u64,
    /// Size of its vocabulary.
    pub vocab: usize,
    /// Optimiser steps taken.
    pub steps: u64,
    /// Tokens it was trained on, repetitions counted.
    pub tokens_seen: u64,
    /// Seconds of training.
    pub train_seconds: f64,
    /// Tokens a second in training.
    pub tokens_per_second: f64,
    /// Peak resident memory of its training, on the host.
    pub peak_memory_bytes: u64,
    /// Mean nats a token of each head on validation text.
    pub validation_loss: Vec<f64>,
}

/// Decoding by one model with one number of heads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecodingRow {
    /// The model's name.
    pub model: String,
    /// Heads used, k; 1 is plain autoregressive decoding.
    pub heads_used: usize,
    /// Sequences decoded together.
    pub batch: usize,
    /// Prompts decoded.
    pub prompts: usize,
    /// New tokens of each.
    pub new_tokens: usize,
    /// Tokens a forward pass on the model's own greedy text.
    pub tokens_per_forward: f64,
    /// Tokens a forward pass on held-out text.
    pub held_out_tokens_per_forward: f64,
    /// Share of distinct 8-grams in the model's own greedy text.
    pub distinct_8grams: f64,
    /// Share of passes that brought a token at each head's place, own greedy text: its draft, or an
    /// alternative to it where these are verified.
    pub acceptance: Vec<f64>,
    /// New tokens a second, the prompt's pass left out.
    pub tokens_per_second: f64,
    /// Over the same model's autoregressive decoding, wall-clock.
    pub speedup: f64,
    /// Over the next-token baseline's autoregressive decoding, wall-clock.
    pub speedup_over_baseline: f64,
    /// Whether no prompt's output was a mismatch.
    pub identical_outputs: bool,
    /// Prompts whose output differs where one token was clearly better.
    pub mismatches: usize,
    /// Prompts whose output differs where the two best logits were as good as equal.
    pub near_ties: usize,
}

impl Report {
    /// Reads a `report.json`.
    ///
    /// # Errors
    ///
    /// When the file is missing or is not a report.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the report {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a report of this version", path.display()))
    }

    /// The report as the text of a `report.json`.
    ///
    /// # Errors
    ///
    /// When a figure cannot be written as JSON.
    pub fn to_json(&self) -> anyhow::Result<String> {
        let mut text = serde_json::to_string_pretty(self).context("cannot write the report")?;
        text.push('\n');
        Ok(text)
    }

    /// What its published files are called: `pretrained-long`.
    pub fn name(&self) -> String {
        let amounts = if self.without_bfloat16 { "-without-bfloat16" } else { "" };
        format!("{}-{}{amounts}", self.experiment, variant(&self.preset, self.pretrained_heads))
    }

    /// The command that makes it again.
    pub fn command(&self) -> String {
        command(&self.experiment, &self.preset, self.pretrained_heads, &self.device)
    }

    /// The model of this name.
    pub fn model(&self, name: &str) -> Option<&ModelRow> {
        self.models.iter().find(|model| model.name == name)
    }

    /// A model's decoding rows, in the order of heads used.
    pub fn decoding_of<'a>(&'a self, model: &'a str) -> impl Iterator<Item = &'a DecodingRow> {
        self.decoding.iter().filter(move |row| row.model == model)
    }
}

/// A preset, told from the same one with kept heads: what a run's folder is called.
pub(crate) fn variant(preset: &str, pretrained_heads: bool) -> String {
    format!("{preset}{}", if pretrained_heads { "-kept-heads" } else { "" })
}

/// The command that runs an experiment on a device, `cpu` or `cuda`.
pub(crate) fn command(
    experiment: &str,
    preset: &str,
    pretrained_heads: bool,
    device: &str,
) -> String {
    let kept = if pretrained_heads { " --pretrained-heads" } else { "" };
    let device = if device == "cpu" { String::new() } else { format!(" --device {device}") };
    format!("cargo xtask reproduce {experiment} --preset {preset}{kept}{device}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::render::example;

    fn keys(value: &Value) -> Vec<&str> {
        let object = value.as_object().expect("an object");
        object.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_report_survives_being_written_and_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        let report = example::report();
        std::fs::write(&path, report.to_json().unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
    }

    #[test]
    fn a_report_of_kept_heads_says_so_in_its_name_and_its_command() {
        let report = Report { pretrained_heads: true, ..example::report() };
        assert_eq!(report.name(), "speed-quick-kept-heads");
        assert_eq!(
            report.command(),
            "cargo xtask reproduce speed --preset quick --pretrained-heads"
        );
        let on_gpu = Report { device: "cuda".to_owned(), ..example::report() };
        assert_eq!(on_gpu.command(), "cargo xtask reproduce speed --preset quick --device cuda");
        let text = report.to_json().unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
        assert!(!example::report().to_json().unwrap().contains("pretrained_heads"));
    }

    #[test]
    fn the_keys_are_those_of_the_contract() {
        let report: Value = serde_json::from_str(&example::report().to_json().unwrap()).unwrap();
        assert_eq!(
            keys(&report),
            [
                "experiment",
                "preset",
                "seed",
                "device",
                "versions",
                "wall_seconds",
                "corpus",
                "models",
                "decoding",
                "results",
                "paper"
            ]
        );
        assert_eq!(keys(&report["versions"]), ["foretoken", "libtorch"]);
        assert_eq!(
            keys(&report["corpus"]),
            ["name", "sha256", "train_tokens", "validation_tokens", "test_tokens"]
        );
        assert_eq!(
            keys(&report["models"][0]),
            [
                "name",
                "heads",
                "head_type",
                "layers",
                "dim",
                "parameters",
                "vocab",
                "steps",
                "tokens_seen",
                "train_seconds",
                "tokens_per_second",
                "peak_memory_bytes",
                "validation_loss"
            ]
        );
        assert_eq!(
            keys(&report["decoding"][0]),
            [
                "model",
                "heads_used",
                "batch",
                "prompts",
                "new_tokens",
                "tokens_per_forward",
                "held_out_tokens_per_forward",
                "distinct_8grams",
                "acceptance",
                "tokens_per_second",
                "speedup",
                "speedup_over_baseline",
                "identical_outputs",
                "mismatches",
                "near_ties"
            ]
        );
    }

    #[test]
    fn differences_are_listed_with_their_place_and_gap() {
        let report: Value = serde_json::from_str(&example::report().to_json().unwrap()).unwrap();
        let difference = &report["results"]["differences"][0];
        assert_eq!(difference["kind"], json!("near_tie"));
        assert_eq!(difference["position"], json!(77));
        assert!(difference["gap"].as_f64().unwrap() < 1e-4);
    }

    #[test]
    fn something_else_is_refused_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        std::fs::write(&path, "{}").unwrap();
        let error = Report::read(&path).unwrap_err().to_string();
        assert!(error.contains("report.json"), "{error}");
    }
}
