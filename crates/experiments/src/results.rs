//! The speed experiment's own figures: `results` in its report.

use anyhow::Context;
use foretoken_eval::Comparison;
use serde::{Deserialize, Serialize};

use crate::report::Report;

/// What the speed experiment measures beyond the common table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedResults {
    /// How it was measured.
    pub settings: Settings,
    /// What it was measured on.
    pub machine: Machine,
    /// Wall-clock figures that need more than one column.
    pub timing: Vec<Timing>,
    /// Decoding with compact weights, where it was measured too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compact: Vec<CompactRow>,
    /// Every prompt whose output differed from autoregressive decoding.
    pub differences: Vec<Difference>,
    /// The count over the whole test split, for each model with drafting heads.
    #[serde(default)]
    pub agreement: Vec<Agreement>,
    /// Acceptance on held-out text of the same corpus.
    pub held_out: Vec<HeldOutRow>,
    /// The same on Python from another package, if it was at hand.
    pub out_of_domain: Option<OutOfDomain>,
    /// Training loss of each model.
    pub loss_curves: Vec<LossCurve>,
    /// A text with the head that drafted each token.
    pub sample: Option<Sample>,
    /// What a reader has to know about this run.
    pub notes: Vec<String>,
    /// Where the models were trained, `cpu` or `cuda`, if not where they are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_on: Option<String>,
}

/// How decoding and losses were measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Times that every prompt was decoded in every way; medians are reported.
    pub repeats: usize,
    /// Positions of a held-out window.
    pub held_out_window: usize,
    /// Positions at its start that are read as a prompt, not walked.
    pub held_out_prompt: usize,
    /// Held-out tokens walked.
    pub held_out_tokens: usize,
    /// Windows of the validation loss.
    pub validation_windows: usize,
    /// Positions of each of them.
    pub validation_sequence: usize,
    /// Number format of the weights in decoding.
    pub precision: String,
    /// That of the drafting heads, which decide how many drafts are right and never what is said.
    #[serde(default)]
    pub draft_precision: String,
}

/// The machine of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Threads that libtorch uses.
    pub threads: usize,
    /// The GPU's name, if one was used.
    pub gpu: Option<String>,
}

/// Wall-clock figures of one way of decoding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The model's name.
    pub model: String,
    /// Heads used.
    pub heads_used: usize,
    /// Seconds of one forward pass, relative to an autoregressive one of the same model.
    pub step_cost: f64,
    /// Speed-up when the prompt's pass is counted too.
    pub speedup_with_prompt: f64,
    /// The smallest and the largest speed-up of a repeat.
    pub speedup_range: (f64, f64),
}

/// One way of decoding with weights in as few bytes as have the same bits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompactRow {
    /// The model's name.
    pub model: String,
    /// Heads used; 1 is plain autoregressive decoding.
    pub heads_used: usize,
    /// Whether these are the most, of which as many drafted as paid: what `foretoken generate` does
    /// where it is not told otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adaptive: bool,
    /// Tokens a forward pass on the model's own greedy text.
    pub tokens_per_forward: f64,
    /// New tokens a second, the prompt's pass left out.
    pub tokens_per_second: f64,
    /// Over autoregressive decoding with compact weights.
    pub speedup: f64,
    /// Over autoregressive decoding with weights as they are.
    pub speedup_over_full: f64,
    /// Prompts whose output differs from that of weights as they are, where one token was clearly
    /// better.
    pub mismatches: usize,
    /// Prompts whose output differs where the two best logits were as good as equal.
    pub near_ties: usize,
}

/// A prompt whose speculative output differed from the autoregressive one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The model's name.
    pub model: String,
    /// Heads used.
    pub heads_used: usize,
    /// Which prompt, counted from 0.
    pub prompt: usize,
    /// Where and how.
    #[serde(flatten)]
    pub comparison: Comparison,
}

/// Speculative decoding with all heads beside autoregressive decoding, over all of the test split:
/// cut into prompts and, behind each, as many tokens as are generated there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// The model's name.
    pub model: String,
    /// Heads used.
    pub heads_used: usize,
    /// Prompts.
    pub prompts: usize,
    /// New tokens of all of them.
    pub new_tokens: usize,
    /// Prompts whose output differs where one token was clearly better.
    pub mismatches: usize,
    /// Prompts whose output differs where the two best logits were as good as equal.
    pub near_ties: usize,
    /// Both, each with its place; prompts count from the split's start.
    pub differences: Vec<Difference>,
}

/// Acceptance on held-out text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutRow {
    /// The model's name.
    pub model: String,
    /// Heads used.
    pub heads_used: usize,
    /// Tokens a forward pass.
    pub tokens_per_forward: f64,
    /// Share of passes in which all drafts up to each head's were accepted.
    pub acceptance: Vec<f64>,
}

/// Held-out figures on another corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutOfDomain {
    /// The corpus' name.
    pub corpus: String,
    /// Hash of its filtered content.
    pub sha256: String,
    /// Tokens walked.
    pub tokens: usize,
    /// Mean nats a token of each head, by model.
    pub loss: Vec<(String, Vec<f64>)>,
    /// One row for each model and number of heads used.
    pub rows: Vec<HeldOutRow>,
}

/// Training loss of the first head over a training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossCurve {
    /// The model's name.
    pub model: String,
    /// Tokens seen and mean nats a token up to there since the point before.
    pub points: Vec<(f64, f64)>,
}

/// A generated text, token by token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// The model's name.
    pub model: String,
    /// Heads used.
    pub heads_used: usize,
    /// The prompt.
    pub prompt: String,
    /// Text and the head (from 0) that it came from; head 0 starts a forward pass.
    pub pieces: Vec<(String, usize)>,
    /// New tokens.
    pub tokens: usize,
    /// Forward passes taken.
    pub forward_passes: usize,
}

impl SpeedResults {
    /// The results of a speed report.
    ///
    /// # Errors
    ///
    /// When the report is of another experiment or of another version.
    pub fn of(report: &Report) -> anyhow::Result<Self> {
        serde_json::from_value(report.results.clone())
            .context("the report's `results` are not those of the speed experiment")
    }
}
