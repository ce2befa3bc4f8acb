//! Several heads of one shape as one batched product.

use crate::{Error, MultiTokenModel, Result, Tap};
use foretoken_kernels::{
    AttentionShape, KvCache, Rotary, cached_attention, causal_attention, rms_norm, swiglu,
};
use foretoken_trunk::Block;
use tch::Tensor;

/// n heads, all of them blocks of one shape over the trunk output, run as a batch of n.
///
/// On a GPU a pass of a small model costs as much as its operators are many, not large: n heads one
/// after the other cost n blocks, stacked they cost one. The price is memory: all heads'
/// activations are there at a time. Weights are copied to the stack, and gradients flow back
/// through it.
#[derive(Debug)]
pub struct StackedHeads {
    /// `[heads, 1, dim]`.
    input_norm: Tensor,
    /// `[heads, dim, (heads + 2 · kv_heads) · head_dim]`.
    qkv: Tensor,
    /// `[heads, 1, (heads + 2 · kv_heads) · head_dim]`, in families that have one.
    qkv_bias: Option<Tensor>,
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
}

impl MultiTokenModel {
    /// The heads `indices` as one.
    ///
    /// # Errors
    /// When there is none, no such head, one is something else than a block over the trunk's output,
    /// or they are not of one shape ([`Error::NotAlike`]).
    pub fn stacked_heads(&self, indices: &[usize]) -> Result<StackedHeads> {
        let mut blocks = Vec::with_capacity(indices.len());
        for &index in indices {
            let head = self.head(index)?;
            let block = head.as_block().filter(|_| head.tap() == Tap::TrunkOutput);
            blocks.push(block.ok_or(Error::NotAlike { head: index, kind: head.kind() })?);
        }
        let alike = |a: &Block, b: &Block| {
            a.qkv_bias.is_some() == b.qkv_bias.is_some()
                && a.attention == b.attention
                && a.down_proj.size() == b.down_proj.size()
                && a.norm_eps.to_bits() == b.norm_eps.to_bits()
        };
        for (&index, block) in indices.iter().zip(&blocks) {
            if !alike(block, blocks[0]) {
                return Err(Error::NotAlike { head: index, kind: self.head(index)?.kind() });
            }
        }
        match blocks.first() {
            Some(first) => StackedHeads::new(&blocks, first),
            None => Err(Error::NoSuchHead { index: 0, count: 0 }),
        }
    }
}

impl StackedHeads {
    /// `blocks` are all like `first`.
    fn new(blocks: &[&Block], first: &Block) -> Result<Self> {
        let stack = |of: fn(&Block) -> &Tensor| -> Result<Tensor> {
            let all: Vec<&Tensor> = blocks.iter().map(|block| of(block)).collect();
            Ok(Tensor::f_stack(&all, 0)?)
        };
        let norms = |of| -> Result<Tensor> { Ok(stack(of)?.f_unsqueeze(1)?) };
        let matrices = |of| -> Result<Tensor> { Ok(stack(of)?.f_transpose(1, 2)?) };
        let biases: Option<Vec<&Tensor>> =
            blocks.iter().map(|block| block.qkv_bias.as_ref()).collect();
        Ok(Self {
            input_norm: norms(|block| &block.input_layernorm)?,
            qkv: matrices(|block| &block.qkv_proj)?,
            qkv_bias: match biases {
                Some(biases) => Some(Tensor::f_stack(&biases, 0)?.f_unsqueeze(1)?),
                None => None,
            },
            output: matrices(|block| &block.o_proj)?,
            post_norm: norms(|block| &block.post_attention_layernorm)?,
            gate_up: matrices(|block| &block.gate_up_proj)?,
            down: matrices(|block| &block.down_proj)?,
            ones: first.input_layernorm.detach().f_ones_like()?,
            attention: first.attention,
            norm_eps: first.norm_eps,
        })
    }

    /// How many heads there are.
    pub fn len(&self) -> usize {
        self.input_norm.size().first().map_or(0, |&heads| heads as usize)
    }

    /// Whether there is none; there always is one.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A cache for [`StackedHeads::last_rows`], for one text of up to `capacity` positions.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn cache(&self, capacity: i64) -> Result<KvCache> {
        let (heads, shape) = (self.len() as i64, self.attention);
        let (kind, device) = (self.qkv.kind(), self.qkv.device());
        Ok(KvCache::new(heads, shape.kv_heads, capacity, shape.head_dim, kind, device)?)
    }

    /// The heads' outputs for `hidden` `[batch, seq, dim]`, positions from 0:
    /// `[heads, batch, seq, dim]`. As [`Block::forward`] of each.
    ///
    /// # Errors
    /// When shapes differ or the sequence is longer than the rotary tables.
    pub fn forward(&self, hidden: &Tensor, rotary: &Rotary) -> Result<Tensor> {
        let (batch, seq, dim) = hidden.size3()?;
        let heads = self.len() as i64;
        let rows = hidden.f_reshape([1, batch * seq, dim])?;
        let qkv = self.projected(&rows)?.f_reshape([heads * batch, seq, -1])?;
        let mixed = causal_attention(qkv, self.attention, rotary)?;
        let x = self.rest(&rows, &mixed.f_reshape([heads, batch * seq, -1])?)?;
        Ok(x.f_reshape([heads, batch, seq, dim])?)
    }

    /// Appends `hidden` `[1, rows, dim]` to the positions in `cache`, and returns the heads' outputs
    /// for its last row: `[heads, dim]`.
    ///
    /// # Errors
    /// When shapes differ or positions run past the cache or the rotary tables.
    pub fn last_rows(
        &self,
        hidden: &Tensor,
        rotary: &Rotary,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let qkv = self.projected(hidden)?;
        let mixed = cached_attention(&qkv, self.attention, rotary, cache)?;
        let last = |x: &Tensor| x.f_narrow(1, -1, 1);
        Ok(self.rest(&last(hidden)?, &last(&mixed)?)?.f_squeeze_dim(1)?)
    }

    /// `[1, rows, dim]` → `[heads, rows, …]`: each head's norm and joint projection.
    fn projected(&self, rows: &Tensor) -> Result<Tensor> {
        let normed = rms_norm(rows, &self.ones, self.norm_eps)?.f_mul(&self.input_norm)?;
        Ok(match &self.qkv_bias {
            Some(bias) => bias.f_baddbmm(&normed, &self.qkv, 1.0, 1.0)?,
            None => normed.f_bmm(&self.qkv)?,
        })
    }

    /// What follows the attention: from the input `[1, rows, dim]` and each head's mixed values
    /// `[heads, rows, …]` to the outputs `[heads, rows, dim]`.
    fn rest(&self, rows: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        let residual = rows.f_expand([self.len() as i64, -1, -1], false)?;
        let x = residual.f_baddbmm(mixed, &self.output, 1.0, 1.0)?;
        let normed = rms_norm(&x, &self.ones, self.norm_eps)?.f_mul(&self.post_norm)?;
        let gated = swiglu(&normed.f_bmm(&self.gate_up)?)?;
        Ok(x.f_baddbmm(&gated, &self.down, 1.0, 1.0)?)
    }
}
