//! The drafting heads as one block over stacked weights.

use foretoken_heads::{MultiTokenModel, Tap};
use foretoken_kernels::{AttentionShape, KvCache, cached_attention, rms_norm, swiglu};
use foretoken_trunk::Block;
use tch::Tensor;

use crate::Result;

/// Heads 1 to h of a model, all of them blocks of one shape, run as a batch of h.
///
/// On a GPU a pass of a small model costs as much as its operators are many, not large: h heads
/// one after the other would cost h blocks, stacked they cost one.
pub(crate) struct StackedHeads {
    /// `[heads, 1, dim]`.
    input_norm: Tensor,
    /// `[heads, dim, (heads + 2 · kv_heads) · head_dim]`.
    qkv: Tensor,
    /// `[heads, heads · head_dim, dim]`.
    output: Tensor,
    /// `[heads, 1, dim]`.
    post_norm: Tensor,
    /// `[heads, dim, 2 · ffn]`.
    gate_up: Tensor,
    /// `[heads, ffn, dim]`.
    down: Tensor,
    /// `[dim]`.
    ones: Tensor,
    attention: AttentionShape,
    norm_eps: f64,
    cache: KvCache,
}

impl StackedHeads {
    /// Stacks heads 1 to `heads` of a model; `None` where one of them is something else than a
    /// block over the trunk's output, or of another shape.
    pub(crate) fn new(model: &MultiTokenModel, heads: usize) -> Result<Option<Self>> {
        let blocks = model.heads()[1..=heads].iter().map(|head| match head.tap() {
            Tap::TrunkOutput => head.as_block(),
            Tap::FinalHidden => None,
        });
        let Some(blocks) = blocks.collect::<Option<Vec<&Block>>>() else { return Ok(None) };
        let Some(first) = blocks.first() else { return Ok(None) };
        // A bias would be one more stack for the sake of Qwen2's heads: those run one by one.
        let alike = |block: &&Block| {
            block.qkv_bias.is_none()
                && block.attention == first.attention
                && block.down_proj.size() == first.down_proj.size()
                && block.norm_eps.to_bits() == first.norm_eps.to_bits()
        };
        if !blocks.iter().all(alike) {
            return Ok(None);
        }
        let norms = |of: fn(&Block) -> &Tensor| -> Result<Tensor> {
            let all: Vec<Tensor> = blocks.iter().map(|block| of(block).detach()).collect();
            Ok(Tensor::f_stack(&all, 0)?.f_unsqueeze(1)?)
        };
        let matrices = |of: fn(&Block) -> &Tensor| -> Result<Tensor> {
            let all: Vec<Tensor> = blocks.iter().map(|block| of(block).detach()).collect();
            Ok(Tensor::f_stack(&all, 0)?.f_transpose(1, 2)?)
        };
        let attention = first.attention;
        Ok(Some(Self {
            input_norm: norms(|block| &block.input_layernorm)?,
            qkv: matrices(|block| &block.qkv_proj)?,
            output: matrices(|block| &block.o_proj)?,
            post_norm: norms(|block| &block.post_attention_layernorm)?,
            gate_up: matrices(|block| &block.gate_up_proj)?,
            down: matrices(|block| &block.down_proj)?,
            ones: first.input_layernorm.detach().f_ones_like()?,
            attention,
            norm_eps: first.norm_eps,
            cache: KvCache::new(
                heads as i64,
                attention.kv_heads,
                model.config().architecture.context as i64,
                attention.head_dim,
                model.kind(),
                model.device(),
            )?,
        }))
    }

    /// How many heads there are.
    pub(crate) fn len(&self) -> usize {
        self.input_norm.size()[0] as usize
    }

    /// Forgets the text.
    pub(crate) fn reset(&mut self) {
        self.cache.truncate(0);
    }

    /// Appends `hidden` `[1, rows, dim]` and returns the heads' outputs for its last row:
    /// `[heads, dim]`.
    ///
    /// As in [`Block::forward`], but that only the last row goes on after the attention.
    pub(crate) fn forward(&mut self, hidden: &Tensor, model: &MultiTokenModel) -> Result<Tensor> {
        let rotary = &model.trunk().rotary;
        let normed = rms_norm(hidden, &self.ones, self.norm_eps)?.f_mul(&self.input_norm)?;
        let qkv = normed.f_bmm(&self.qkv)?;
        let mixed = cached_attention(&qkv, self.attention, rotary, &mut self.cache)?;
        let mixed = last_row(&mixed)?;
        let residual = last_row(hidden)?.f_expand([self.len() as i64, -1, -1], false)?;
        let x = residual.f_baddbmm(&mixed, &self.output, 1.0, 1.0)?;
        let normed = rms_norm(&x, &self.ones, self.norm_eps)?.f_mul(&self.post_norm)?;
        let gated = swiglu(&normed.f_bmm(&self.gate_up)?)?;
        Ok(x.f_baddbmm(&gated, &self.down, 1.0, 1.0)?.f_squeeze_dim(1)?)
    }
}

/// `[…, rows, dim]` → `[…, 1, dim]`.
fn last_row(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_narrow(1, -1, 1)?)
}
