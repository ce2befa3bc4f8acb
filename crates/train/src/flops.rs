//! How many floating-point operations a training step needs.

use foretoken_heads::{Head, MultiTokenModel};
use foretoken_kernels::AttentionShape;
use foretoken_loss::HeadTargets;
use foretoken_trunk::{Parameter, Role};

/// Floating-point operations of one training step: those of the matrix products that its
/// mathematics needs, a multiplication and an addition counted as two.
///
/// For a sequence of s positions, heads 0 … n − 1 over a vocabulary of V and a width of d:
///
/// - a block or another head whose matrices have m numbers: 2·m·s forward;
/// - its attention, with h query heads of width w, where position t looks at t positions:
///   2·2·h·w·s·(s + 1)/2 forward, scores and mixture;
/// - the logits of a head: 2·d·V·s forward;
/// - backward twice the forward's: the gradient by the input and the one by the weights.
///
/// That is three times the forward pass of trunk, heads and logits where all learn together.
/// Where heads learn alone, the rest has no backward pass: see [`StepFlops::alone`].
///
/// Left out is what is no matrix product (embedding, norms, activations, softmax), what the
/// optimiser does, and what an implementation does twice (recomputed activations and logits): it
/// is "model FLOPs" as in Chowdhery et al. 2022 (*`PaLM`*, appendix B), with causal attention
/// counted as the half that it is.
///
/// ```
/// use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
/// use foretoken_train::StepFlops;
/// use foretoken_trunk::Architecture;
/// use tch::{Device, Kind};
///
/// let config = ModelConfig {
///     architecture: Architecture { dim: 16, layers: 3, ffn: 24, ..Architecture::default() },
///     heads: HeadsConfig::new("block", 2),
///     end_of_text: Vec::new(),
/// };
/// let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
/// let one = StepFlops::together(&model, 1, 8).total();
/// assert_eq!(StepFlops::together(&model, 4, 8).total(), 4.0 * one);
/// # Ok::<(), foretoken_heads::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepFlops {
    /// Of what learns, forward and backward, with the logits.
    pub learning: f64,
    /// Of the forward pass of what doesn't learn; none where its states are kept on disk.
    pub frozen: f64,
}

impl StepFlops {
    /// Of a step in which trunk and heads learn together from `batch` sequences of `sequence`
    /// tokens.
    pub fn together(model: &MultiTokenModel, batch: usize, sequence: usize) -> Self {
        let positions = sequence as f64;
        let heads: f64 = model.heads().iter().map(|head| head_pass(head.as_ref(), positions)).sum();
        let logits = model.heads().len() as f64 * logits(model, vocabulary(model), positions);
        let forward = trunk_pass(model, positions) + heads + logits;
        Self { learning: 3.0 * forward * batch as f64, frozen: 0.0 }
    }

    /// Of a step in which the heads beyond the first learn alone.
    ///
    /// Trunk and head 0 go forward over the s + n − 1 positions that are looked at. A head of one
    /// matrix has no gradient by its input, which nothing would use, and the logits have none by
    /// the unembedding; V is the draft vocabulary's size where there is one. Where the model's own
    /// distributions are the targets, their logits are computed too.
    pub fn alone(
        model: &MultiTokenModel,
        batch: usize,
        sequence: usize,
        targets: HeadTargets,
    ) -> Self {
        let positions = sequence as f64;
        let looked_at = (sequence + model.heads().len().saturating_sub(1)) as f64;
        let stock = model.heads().first().map_or(0.0, |head| head_pass(head.as_ref(), looked_at));
        let choices = model.draft_vocabulary().map_or(vocabulary(model), |v| v.tokens().len());
        let times = match targets {
            HeadTargets::Text => 2.0,
            HeadTargets::Model => 3.0,
        };
        let logits = times * logits(model, choices, positions);
        let learned = model.heads().iter().skip(1).map(|head| {
            let passes = if head.as_dense().is_some() { 2.0 } else { 3.0 };
            passes * head_pass(head.as_ref(), positions) + logits
        });
        Self {
            learning: learned.sum::<f64>() * batch as f64,
            frozen: (trunk_pass(model, looked_at) + stock) * batch as f64,
        }
    }

    /// Both together.
    pub fn total(self) -> f64 {
        self.learning + self.frozen
    }
}

/// A forward pass of one sequence through the trunk.
fn trunk_pass(model: &MultiTokenModel, positions: f64) -> f64 {
    let blocks = model.trunk().blocks.iter();
    let pass = |shape, parameters: &[Parameter]| {
        products(parameters, positions) + attention(shape, positions)
    };
    blocks.map(|block| pass(block.attention, &block.parameters(""))).sum()
}

/// A forward pass of one sequence through a head. Of a type from outside, its matrices count.
fn head_pass(head: &dyn Head, positions: f64) -> f64 {
    let mixing = head.as_block().map_or(0.0, |block| attention(block.attention, positions));
    products(&head.parameters(""), positions) + mixing
}

fn products(parameters: &[Parameter], positions: f64) -> f64 {
    let matrices = parameters.iter().filter(|parameter| parameter.role == Role::Matrix);
    2.0 * matrices.map(|matrix| matrix.tensor.numel() as f64).sum::<f64>() * positions
}

fn attention(shape: AttentionShape, positions: f64) -> f64 {
    let width = (shape.heads * shape.head_dim) as f64;
    2.0 * 2.0 * width * positions * (positions + 1.0) / 2.0
}

/// One head's logits over `choices` tokens.
fn logits(model: &MultiTokenModel, choices: usize, positions: f64) -> f64 {
    2.0 * model.config().architecture.dim as f64 * choices as f64 * positions
}

fn vocabulary(model: &MultiTokenModel) -> usize {
    model.config().architecture.vocab
}

#[cfg(test)]
mod tests {
    use super::*;
    use foretoken_heads::{HeadsConfig, ModelConfig};
    use foretoken_trunk::Architecture;
    use tch::{Device, Kind};

    /// Width 8 in 2 query heads and 1 key–value head, feed-forward width 12, 10 tokens.
    fn model(kind: &str, layers: usize, count: usize) -> MultiTokenModel {
        let architecture = Architecture {
            vocab: 10,
            dim: 8,
            layers,
            attention_heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ffn: 12,
            context: 16,
            ..Architecture::default()
        };
        let heads = HeadsConfig::new(kind, count);
        let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
        MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 1).unwrap()
    }

    // By hand: queries 8·8, keys and values 2·(4·8), output 8·8, gate, up and down 3·(8·12).
    const BLOCK: f64 = 64.0 + 64.0 + 64.0 + 288.0;

    /// One block over so many positions, their attention added up one by one.
    fn block(positions: u32) -> f64 {
        let looks: u32 = (1..=positions).sum();
        2.0 * BLOCK * f64::from(positions) + 4.0 * 8.0 * f64::from(looks)
    }

    #[test]
    fn training_together_is_three_forward_passes_of_blocks_and_logits() {
        // Three layers: one in the trunk, two heads.
        let flops = StepFlops::together(&model("block", 3, 2), 5, 6);
        let forward = 3.0 * block(6) + 2.0 * (2.0 * 8.0 * 10.0 * 6.0);
        assert_eq!(flops, StepFlops { learning: 5.0 * 3.0 * forward, frozen: 0.0 });
        assert_eq!(flops.total(), flops.learning);
    }

    #[test]
    fn equal_parameters_differ_only_in_the_logits_of_more_heads() {
        let [one, three] = [1, 3].map(|n| StepFlops::together(&model("block", 5, n), 1, 6).total());
        assert_eq!(three - one, 2.0 * 3.0 * (2.0 * 8.0 * 10.0 * 6.0));
    }

    #[test]
    fn a_medusa_head_counts_its_matrix_and_nothing_else() {
        let [one, two] = [1, 2].map(|n| StepFlops::together(&model("medusa", 3, n), 1, 6).total());
        assert_eq!(two - one, 3.0 * (2.0 * 64.0 * 6.0 + 2.0 * 8.0 * 10.0 * 6.0));
    }

    #[test]
    fn heads_alone_leave_the_rest_forward_only_and_the_unembedding_without_gradient() {
        let blocks = model("block", 4, 3);
        let text = StepFlops::alone(&blocks, 2, 6, HeadTargets::Text);
        let logits = 2.0 * 8.0 * 10.0 * 6.0;
        // One trunk layer and head 0, over six positions and two more.
        assert_eq!(text.frozen, 2.0 * 2.0 * block(8));
        assert_eq!(text.learning, 2.0 * 2.0 * (3.0 * block(6) + 2.0 * logits));
        let taught = StepFlops::alone(&blocks, 2, 6, HeadTargets::Model);
        assert_eq!(taught.learning - text.learning, 2.0 * 2.0 * logits);
    }

    #[test]
    fn a_head_of_one_matrix_alone_has_no_gradient_by_its_input_and_fewer_drafts_cost_less() {
        let mut heads = model("linear", 3, 2);
        let all = StepFlops::alone(&heads, 1, 6, HeadTargets::Text);
        assert_eq!(all.learning, 2.0 * (2.0 * 64.0 * 6.0) + 2.0 * (2.0 * 8.0 * 10.0 * 6.0));
        heads.set_draft_vocabulary(Some(vec![1, 4, 7])).unwrap();
        let few = StepFlops::alone(&heads, 1, 6, HeadTargets::Text);
        assert_eq!(few.learning, 2.0 * (2.0 * 64.0 * 6.0) + 2.0 * (2.0 * 8.0 * 3.0 * 6.0));
    }
}
