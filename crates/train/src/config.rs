//! The recipe of a training run: its sections, keys, units and defaults.

use std::path::{Path, PathBuf};

use foretoken_heads::{HeadsConfig, ModelConfig};
use foretoken_loss::{HeadExecution, HeadTargets};
use foretoken_trunk::Architecture;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::Error;
use crate::loss_section::LossSection;
use crate::recipe;

/// A whole recipe, as a TOML file holds it.
///
/// ```
/// use foretoken_train::TrainConfig;
///
/// let config = TrainConfig::from_toml(
///     r#"
///     [model]
///     layers = 4
///     attention_heads = 2
///     dim = 64
///     ffn = 128
///     context = 128
///     [heads]
///     count = 2
///     [train]
///     steps = 40
///     batch = 4
///     sequence = 64
///     "#,
///     &["train.steps=80".to_owned()],
/// )?;
/// assert_eq!(config.train.steps, 80);
/// assert_eq!(config.model.kv_heads(), 2);
/// # Ok::<(), foretoken_train::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// The size of the network.
    pub model: ModelSection,
    /// How many tokens are predicted at once, and by what.
    #[serde(default)]
    pub heads: HeadsSection,
    /// What is learned from.
    #[serde(default)]
    pub data: DataSection,
    /// What the heads' losses add up to.
    #[serde(default)]
    pub loss: LossSection,
    /// How the weights move.
    #[serde(default)]
    pub optimizer: OptimizerSection,
    /// For how long, on how much at a time.
    pub train: TrainSection,
}

/// `[model]`: sizes of the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A pretrained model to start from, a model folder or a GGUF file, in place of all sizes. Its
    /// tokenizer is the recipe's then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// Blocks in all, as the next-token baseline counts them: n heads take n of them from the trunk.
    #[serde(default)]
    pub layers: usize,
    /// Query heads of each attention.
    #[serde(default)]
    pub attention_heads: usize,
    /// Key and value heads; as many as query heads when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of the residual stream.
    #[serde(default)]
    pub dim: usize,
    /// Inner width of the feed-forward layer.
    #[serde(default)]
    pub ffn: usize,
    /// The most positions that the model is made for.
    #[serde(default)]
    pub context: usize,
    /// Width of one attention head; `dim / attention_heads` when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// Base of the rotary angles.
    #[serde(default = "default_rope_theta")]
    pub rope_theta: f64,
    /// Added to the mean square in every norm.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
}

impl ModelSection {
    /// Key and value heads, the default filled in.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.attention_heads)
    }

    /// Width of one attention head, the default filled in.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.dim / self.attention_heads.max(1))
    }
}

/// `[heads]`: the tokens predicted at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadsSection {
    /// The head type, by the name that it is registered under.
    #[serde(rename = "type", default = "default_head_type")]
    pub kind: String,
    /// n, the heads: 1 is a plain next-token model.
    #[serde(default = "default_head_count")]
    pub count: usize,
    /// Whether the heads learn together with the trunk, or alone on a pretrained one.
    #[serde(default)]
    pub train: HeadTraining,
    /// What heads that are trained alone learn to predict.
    #[serde(default)]
    pub targets: TargetKind,
    /// Heads that are trained alone choose their drafts among so many tokens: those that the model
    /// expects most in the training text, or where targets are the text's its most frequent; 0 for
    /// the whole vocabulary.
    #[serde(default)]
    pub draft_vocabulary: usize,
    /// How the heads of a step run.
    #[serde(default)]
    pub execution: Execution,
}

impl Default for HeadsSection {
    fn default() -> Self {
        Self {
            kind: default_head_type(),
            count: default_head_count(),
            train: HeadTraining::default(),
            targets: TargetKind::default(),
            draft_vocabulary: 0,
            execution: Execution::default(),
        }
    }
}

/// What learns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadTraining {
    /// Trunk and heads (the default).
    #[default]
    Together,
    /// The heads beyond the first, on a pretrained model that stays as it is.
    Alone,
}

/// What heads that are trained alone learn to predict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// The whole distribution that the pretrained model expects there (the default): what decoding
    /// chooses from.
    #[default]
    Model,
    /// The text's own tokens.
    Text,
}

impl From<TargetKind> for HeadTargets {
    fn from(targets: TargetKind) -> Self {
        match targets {
            TargetKind::Model => Self::Model,
            TargetKind::Text => Self::Text,
        }
    }
}

/// How the heads of a step run: the same mathematics, and the same gradients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Execution {
    /// One after the other (the default): the least memory.
    #[default]
    Sequential,
    /// All in one batched product: the fewest operators. For heads of the type `block`.
    Grouped,
}

impl From<Execution> for HeadExecution {
    fn from(execution: Execution) -> Self {
        match execution {
            Execution::Sequential => Self::Sequential,
            Execution::Grouped => Self::Grouped,
        }
    }
}

/// What becomes of the borders between documents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Documents {
    /// Rows are windows of the stream of all documents, and attention goes over their borders (the
    /// default).
    #[default]
    Joined,
    /// The same windows, but each token sees and predicts its own document alone.
    Apart,
    /// Rows are whole documents side by side, each seen by itself alone, and padded.
    Packed,
}

/// `[[data.mixture]]`: a corpus among several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixturePart {
    /// A corpus by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<String>,
    /// A text file, a folder of text or a `.jsonl` file, instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Its rows among all, over the sum of the weights.
    pub weight: f64,
}

/// `[data]`: the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// A corpus by name; `python-code` is the one that set-up brings.
    #[serde(default = "default_corpus")]
    pub corpus: String,
    /// A text file, a folder of text or a `.jsonl` file, used instead of `corpus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Several corpora with their weights, instead of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<MixturePart>,
    /// `bytes`, or the path of a `tokenizer.json`.
    #[serde(default = "default_tokenizer")]
    pub tokenizer: String,
    /// What becomes of the borders between documents.
    #[serde(default)]
    pub documents: Documents,
    /// Goes round in so many batches instead of the whole text; 0 for the whole text. What a model
    /// that stays as it is makes of them is then computed once and kept on disk.
    #[serde(default)]
    pub batches: u64,
    /// Share of these batches, 0 to 1, whose text the pretrained model writes itself after
    /// `prompt_tokens` tokens of the corpus: what its heads will have to predict.
    #[serde(default)]
    pub generated: f64,
    /// Tokens of the corpus at the beginning of a row that the model goes on with.
    #[serde(default = "default_prompt_tokens")]
    pub prompt_tokens: usize,
    /// A text at which such prompts begin, `def ` for one: at the first place in a row where it stands
    /// and leaves room for the prompt. Rows without it, and all where it is empty, begin as they are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt_at: String,
    /// What the model's logits are divided by when it writes, for other than its likeliest tokens
    /// too; 0 for these alone, which repeat themselves sooner.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            corpus: default_corpus(),
            path: None,
            mixture: Vec::new(),
            tokenizer: default_tokenizer(),
            documents: Documents::default(),
            batches: 0,
            generated: 0.0,
            prompt_tokens: default_prompt_tokens(),
            prompt_at: String::new(),
            temperature: default_temperature(),
        }
    }
}

/// Which optimiser moves the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// `AdamW` for every parameter.
    Adamw,
    /// Muon for the matrices inside blocks, `AdamW` for embeddings and norms (the default).
    Muon,
}

/// The number format of Muon's Newton–Schulz products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MuonPrecision {
    /// That of the weights on a CPU, `bfloat16` on a GPU (the default).
    Auto,
    /// `bfloat16` wherever the hardware has products of it: half Muon's time on such a CPU, but
    /// other processors come to other bits.
    Fast,
    /// That of the weights.
    Float32,
    /// 16 bits; the weights and the momentum keep theirs.
    Bfloat16,
}

/// How the learning rate moves after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// It stays.
    Constant,
    /// It falls in a straight line to `final_fraction`.
    Linear,
    /// It falls along half a cosine to `final_fraction` (the default).
    Cosine,
    /// Warm-up, stable, decay: it stays, then falls in a straight line over the last
    /// `decay_fraction` of the steps.
    Wsd,
}

/// `[optimizer]`: rates, decay and schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerSection {
    /// `muon` or `adamw`.
    #[serde(rename = "type", default = "default_optimizer")]
    pub kind: OptimizerKind,
    /// Peak rate of `AdamW`.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// Peak rate of Muon, for the matrices.
    #[serde(default = "default_muon_learning_rate")]
    pub muon_learning_rate: f64,
    /// Momentum of Muon (Nesterov's form).
    #[serde(default = "default_muon_momentum")]
    pub muon_momentum: f64,
    /// Number format of Muon's products: `auto`, `fast`, `float32` or `bfloat16`.
    #[serde(default = "default_muon_precision")]
    pub muon_precision: MuonPrecision,
    /// `AdamW`'s decay of the mean gradient.
    #[serde(default = "default_beta1")]
    pub beta1: f64,
    /// `AdamW`'s decay of the mean squared gradient.
    #[serde(default = "default_beta2")]
    pub beta2: f64,
    /// `AdamW`'s floor of the denominator.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Decoupled decay, of every parameter but the norms, times the current rate.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// The largest global norm of the gradient; 0 turns clipping off.
    #[serde(default = "default_clip")]
    pub clip: f64,
    /// The schedule's shape.
    #[serde(default = "default_schedule")]
    pub schedule: ScheduleKind,
    /// Steps over which the rate rises from 0 in a straight line.
    #[serde(default)]
    pub warmup: u64,
    /// The last step's rate, as a share of the peak.
    #[serde(default = "default_final_fraction")]
    pub final_fraction: f64,
    /// Share of the steps over which `wsd` falls.
    #[serde(default = "default_decay_fraction")]
    pub decay_fraction: f64,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self {
            kind: default_optimizer(),
            learning_rate: default_learning_rate(),
            muon_learning_rate: default_muon_learning_rate(),
            muon_momentum: default_muon_momentum(),
            muon_precision: default_muon_precision(),
            beta1: default_beta1(),
            beta2: default_beta2(),
            epsilon: default_epsilon(),
            weight_decay: default_weight_decay(),
            clip: default_clip(),
            schedule: default_schedule(),
            warmup: 0,
            final_fraction: default_final_fraction(),
            decay_fraction: default_decay_fraction(),
        }
    }
}

/// The number format of weights and of the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits (the default).
    Float32,
    /// Products in 16 bits with the range of 32, on rounded copies of the weights; weights,
    /// optimiser state, norms and losses stay in 32. Faster on GPUs and on processors with AVX-512
    /// BF16 or AMX, slower on others.
    Bfloat16,
    /// `bfloat16` wherever the hardware has products of it, else `float32`: the faster one, but
    /// other processors come to other bits.
    Fast,
    /// 64 bits, for checks.
    Float64,
}

impl Precision {
    /// The number format of the weights that learn.
    pub fn weights(self) -> Kind {
        match self {
            Self::Float64 => Kind::Double,
            Self::Float32 | Self::Bfloat16 | Self::Fast => Kind::Float,
        }
    }

    /// The number format of the products on a device; where it is not that of the weights, the model
    /// computes with rounded copies.
    pub fn products(self, device: Device) -> Kind {
        match self {
            Self::Bfloat16 => Kind::BFloat16,
            Self::Fast if has_bfloat16_products(device) => Kind::BFloat16,
            Self::Float32 | Self::Fast | Self::Float64 => self.weights(),
        }
    }
}

/// Whether a device multiplies bfloat16 numbers faster than float32 ones.
pub(crate) fn has_bfloat16_products(device: Device) -> bool {
    #[cfg(target_arch = "x86_64")]
    let here = std::arch::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let here = false;
    device.is_cuda() || here
}

/// `[train]`: length, batch and bookkeeping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Optimiser steps.
    pub steps: u64,
    /// Sequences in a step, over all processes.
    pub batch: usize,
    /// Tokens in a sequence.
    pub sequence: usize,
    /// Of the first weights and of the order of the batches.
    #[serde(default)]
    pub seed: u64,
    /// Steps between checkpoints; 0 saves only at the end and on an interruption.
    #[serde(default = "default_checkpoint_every")]
    pub checkpoint_every: u64,
    /// `float32`, `bfloat16`, `fast` (the faster of the two on this machine) or `float64`.
    #[serde(default = "default_precision")]
    pub precision: Precision,
    /// Whether an NVIDIA GPU may multiply float32 matrices in TF32, several times faster with
    /// operands of 10 bits behind the point. Of no effect elsewhere.
    #[serde(default)]
    pub tf32: bool,
    /// Parts that a step's batch is worked off in, one after the other: their gradients add up to
    /// those of the whole batch, and memory is that of a part.
    #[serde(default = "default_accumulate")]
    pub accumulate: usize,
    /// Whether the trunk's blocks are computed again in the backward pass instead of being kept from
    /// the forward pass: a third more time for far less memory.
    #[serde(default)]
    pub recompute: bool,
    /// Whether each of several processes keeps the optimiser's state of a share of the weights alone
    /// and moves these (`ZeRO-1`), instead of all doing the same for all. May change on a resume.
    #[serde(default = "default_shard_optimizer")]
    pub shard_optimizer: bool,
    /// Checkpoints that are kept, the newest ones; the best is kept beside them.
    #[serde(default = "default_keep")]
    pub keep: usize,
    /// Batches of the validation split that a checkpoint is judged by; with 0 none is the best.
    #[serde(default = "default_validate")]
    pub validate: u64,
}

impl TrainConfig {
    /// Reads a recipe from a TOML file, then changes it by `sets`, each `section.key=value`.
    ///
    /// # Errors
    /// When the file can't be read, isn't TOML, names a key that doesn't exist, or describes a
    /// run that can't be.
    pub fn from_file(path: &Path, sets: &[String]) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        recipe::parse(&text, &path.display().to_string(), sets)
    }

    /// As [`from_file`](Self::from_file), from text that is already in memory.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_toml(text: &str, sets: &[String]) -> Result<Self, Error> {
        recipe::parse(text, "the recipe", sets)
    }

    /// The model that this recipe trains, for a tokenizer of `vocab` tokens; which of them ends a
    /// text is left open.
    ///
    /// # Errors
    /// When `loss.offsets` does not suit the heads.
    pub fn model_config(&self, vocab: usize) -> Result<ModelConfig, Error> {
        let model = &self.model;
        Ok(ModelConfig {
            architecture: Architecture {
                vocab,
                dim: model.dim,
                layers: model.layers,
                attention_heads: model.attention_heads,
                kv_heads: model.kv_heads(),
                head_dim: model.head_dim(),
                ffn: model.ffn,
                context: model.context,
                rope_theta: model.rope_theta,
                norm_eps: model.norm_eps,
                ..Architecture::default()
            },
            heads: self.heads_config()?,
            end_of_text: Vec::new(),
        })
    }

    /// Type and number of the heads, and what they predict.
    ///
    /// # Errors
    /// When `loss.offsets` does not suit the heads.
    pub fn heads_config(&self) -> Result<HeadsConfig, Error> {
        let heads = HeadsConfig::new(self.heads.kind.as_str(), self.heads.count);
        Ok(match &self.loss.offsets {
            Some(offsets) => heads.with_offsets(offsets.clone())?,
            None => heads,
        })
    }

    /// Tokens in a row of a batch: the sequence and, behind it, what its targets reach to.
    pub fn columns(&self) -> usize {
        self.train.sequence + self.loss.objective(self.heads.count).reach()
    }

    /// Sequences of a batch that each of `processes` works on.
    ///
    /// # Errors
    /// When a batch cannot be divided equally among them.
    pub fn rows_of_each(&self, processes: usize) -> Result<usize, Error> {
        let (batch, parts) = (self.train.batch, self.train.accumulate);
        let divides = processes > 0 && batch.is_multiple_of(processes * parts);
        recipe::require(divides, "train.batch", || match parts {
            1 => format!("{batch} sequences cannot be divided equally among {processes} processes"),
            _ => format!(
                "{batch} sequences cannot be divided equally among {processes} processes of \
                 train.accumulate = {parts} parts each"
            ),
        })?;
        Ok(batch / processes)
    }

    /// Tokens that one step learns from: those that head 0 predicts.
    pub fn tokens_per_step(&self) -> u64 {
        (self.train.batch * self.train.sequence) as u64
    }
}

pub(crate) fn default_rope_theta() -> f64 {
    10_000.0
}
pub(crate) fn default_norm_eps() -> f64 {
    1e-5
}
fn default_head_type() -> String {
    "block".to_owned()
}
fn default_head_count() -> usize {
    1
}
fn default_corpus() -> String {
    "python-code".to_owned()
}
fn default_prompt_tokens() -> usize {
    64
}
fn default_temperature() -> f64 {
    0.8
}
fn default_tokenizer() -> String {
    "bytes".to_owned()
}
fn default_optimizer() -> OptimizerKind {
    OptimizerKind::Muon
}
fn default_learning_rate() -> f64 {
    3e-3
}
fn default_muon_learning_rate() -> f64 {
    0.02
}
fn default_muon_momentum() -> f64 {
    0.95
}
fn default_muon_precision() -> MuonPrecision {
    MuonPrecision::Auto
}
fn default_beta1() -> f64 {
    0.9
}
fn default_beta2() -> f64 {
    0.95
}
fn default_epsilon() -> f64 {
    1e-8
}
fn default_weight_decay() -> f64 {
    0.1
}
fn default_clip() -> f64 {
    1.0
}
fn default_schedule() -> ScheduleKind {
    ScheduleKind::Cosine
}
fn default_final_fraction() -> f64 {
    0.03
}
fn default_decay_fraction() -> f64 {
    0.2
}
fn default_checkpoint_every() -> u64 {
    500
}
fn default_accumulate() -> usize {
    1
}
fn default_shard_optimizer() -> bool {
    true
}
fn default_keep() -> usize {
    3
}
fn default_validate() -> u64 {
    4
}
fn default_precision() -> Precision {
    Precision::Float32
}
