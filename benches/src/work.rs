//! What a training step has to do at least, counted from the sizes: operations and bytes.

use std::collections::BTreeMap;

use foretoken_heads::MultiTokenModel;
use foretoken_train::{OptimizerKind, StepFlops, TrainConfig};

/// Bytes of a float32 value.
const WORD: f64 = 4.0;
/// `AdamW` for one parameter: the gradient is read for the norm that clips it; then weight,
/// gradient and two moments are read, weight and moments written.
const ADAMW_WORDS: f64 = 1.0 + 7.0;
/// Muon for one parameter: as above, with one moment.
const MUON_WORDS: f64 = 1.0 + 5.0;
/// Applications of Newton–Schulz's polynomial.
const NEWTON_SCHULZ: f64 = 5.0;

/// A linear layer: `outputs × inputs` weights, so many of this shape in the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Rows of the weight.
    pub outputs: i64,
    /// Columns of the weight.
    pub inputs: i64,
    /// How often a step goes through one of this shape, forward and backward.
    pub count: f64,
}

impl Linear {
    /// Operations of a step on `tokens` tokens: the product itself, the gradient by its input and
    /// the gradient by its weight, each with a multiplication and an addition a weight and token.
    pub fn flops(&self, tokens: f64) -> f64 {
        3.0 * 2.0 * tokens * self.outputs as f64 * self.inputs as f64 * self.count
    }
}

/// Matrices of one shape that Muon orthogonalises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stack {
    /// How many.
    pub matrices: i64,
    /// Rows of each.
    pub rows: i64,
    /// Columns of each.
    pub columns: i64,
}

impl Stack {
    /// Operations of Newton–Schulz: with the Gram matrix G of the shorter side, G, G² and the
    /// polynomial times X in each iteration.
    pub fn flops(&self) -> f64 {
        let short = self.rows.min(self.columns) as f64;
        let long = self.rows.max(self.columns) as f64;
        let once = 2.0 * short * short * (2.0 * long + short);
        NEWTON_SCHULZ * once * self.matrices as f64
    }
}

/// The work of one training step of a Llama with n block heads.
#[derive(Clone, Debug)]
pub struct StepWork {
    /// Tokens of the step.
    pub tokens: f64,
    /// All linear layers, the unembedding once for each head.
    pub linears: Vec<Linear>,
    /// Muon's matrices; none with `AdamW`.
    pub stacks: Vec<Stack>,
    /// Operations of linear layers and attention, forward and backward ([`StepFlops`]).
    pub model_flops: f64,
    /// Weights, gradients and optimiser state that the update reads and writes.
    pub update_bytes: f64,
}

impl StepWork {
    /// The work of a step of `config` on `model`.
    pub fn new(model: &MultiTokenModel, config: &TrainConfig) -> Self {
        let sizes = &model.config().architecture;
        let attention = sizes.attention();
        let (dim, ffn, blocks) = (sizes.dim as i64, sizes.ffn as i64, sizes.layers as i64);
        let queries = attention.heads * attention.head_dim;
        let keys = attention.kv_heads * attention.head_dim;
        let linear =
            |outputs, inputs, count: usize| Linear { outputs, inputs, count: count as f64 };
        let linears = vec![
            linear(queries + 2 * keys, dim, sizes.layers),
            linear(dim, queries, sizes.layers),
            linear(2 * ffn, dim, sizes.layers),
            linear(dim, ffn, sizes.layers),
            linear(sizes.vocab as i64, dim, model.heads().len()),
        ];
        let (stacks, moved_by_muon) = match config.optimizer.kind {
            OptimizerKind::Adamw => (Vec::new(), 0.0),
            OptimizerKind::Muon => {
                let matrices = (2 * keys + 2 * queries + 3 * ffn) * dim * blocks;
                (stacks(queries, keys, dim, ffn, blocks), matrices as f64)
            }
        };
        let moved_by_adamw = model.parameter_count() as f64 - moved_by_muon;
        let (batch, sequence) = (config.train.batch, config.train.sequence);
        Self {
            tokens: config.tokens_per_step() as f64,
            linears,
            stacks,
            model_flops: StepFlops::together(model, batch, sequence).total(),
            update_bytes: WORD * (ADAMW_WORDS * moved_by_adamw + MUON_WORDS * moved_by_muon),
        }
    }

    /// Operations in the linear layers.
    pub fn linear_flops(&self) -> f64 {
        self.linears.iter().map(|linear| linear.flops(self.tokens)).sum()
    }

    /// Operations of model and optimiser.
    pub fn flops(&self) -> f64 {
        self.model_flops + self.stacks.iter().map(Stack::flops).sum::<f64>()
    }
}

/// The matrices of all blocks, those of one shape together.
fn stacks(queries: i64, keys: i64, dim: i64, ffn: i64, blocks: i64) -> Vec<Stack> {
    let shapes = [
        (queries, dim),
        (keys, dim),
        (keys, dim),
        (dim, queries),
        (ffn, dim),
        (ffn, dim),
        (dim, ffn),
    ];
    let mut counts = BTreeMap::new();
    for shape in shapes {
        *counts.entry(shape).or_insert(0) += blocks;
    }
    counts
        .into_iter()
        .map(|((rows, columns), matrices)| Stack { matrices, rows, columns })
        .collect()
}
