//! What every head is.

use crate::Result;
use foretoken_kernels::{KvCache, Rotary};
use foretoken_trunk::{Block, Parameter};
use tch::Tensor;

/// Where on the way through the model a head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// The trunk output, before the stock model's last layer: the paper's heads. The shared final
    /// norm follows the head.
    TrunkOutput,
    /// The stock model's hidden state after its final norm: Medusa's heads. No norm follows.
    FinalHidden,
}

/// A head of one matrix: y = W x + b, or y = x + silu(W x + b).
#[derive(Clone, Copy, Debug)]
pub struct Dense<'h> {
    /// W, `[dim, dim]`.
    pub weight: &'h Tensor,
    /// b, `[dim]`, or 0.
    pub bias: Option<&'h Tensor>,
    /// Whether x + silu(…) is around it.
    pub residual: bool,
}

/// A head of one block that is told what comes before its target: see
/// [`InformedHead`](crate::InformedHead).
#[derive(Clone, Copy, Debug)]
pub struct Informed<'h> {
    /// W, `[dim, dim]`.
    pub token_proj: &'h Tensor,
    /// V, `[dim, dim]`.
    pub hidden_proj: &'h Tensor,
    /// The block.
    pub block: &'h Block,
}

/// What the model lends its heads.
#[derive(Clone, Copy, Debug)]
pub struct HeadContext<'a> {
    /// The trunk's rotary tables, or those of rows of several documents.
    pub rotary: &'a Rotary,
    /// What heads are told that ask for it ([`Head::told_blocks`]), `[batch, seq, dim]`: the state of
    /// the token just before the one to predict, for each row.
    pub told: Option<&'a Tensor>,
}

/// One head: from the state at its tap to the state that the unembedding reads, position by
/// position, `[batch, seq, dim]` → `[batch, seq, dim]`.
///
/// An implementation may use any libtorch operators; gradients follow from them, and from
/// [`foretoken_kernels::custom_gradient`] where it writes its own. Row t of the output may depend
/// on rows up to t of the input alone.
pub trait Head: std::fmt::Debug + Send {
    /// The name under which config, checkpoint and reports know this type.
    fn kind(&self) -> &'static str;

    /// Where the head reads.
    fn tap(&self) -> Tap;

    /// For a head that is told the tokens up to the one it predicts ([`HeadContext::told`]): how many
    /// of the trunk's blocks the last of them has gone through then, 0 for its embedding. The tokens
    /// are the text's in training; when drafts are made, they are head 0's choice and the drafts of
    /// the heads before. All drafting heads of a model are told after the same number of blocks.
    fn told_blocks(&self) -> Option<usize> {
        None
    }

    /// The head's output for `hidden` `[batch, seq, dim]`.
    ///
    /// With a cache (for a head that asks for one by [`Head::cache`]) the rows follow the
    /// positions that it holds.
    ///
    /// # Errors
    /// When shapes differ or positions run past the cache or the context.
    fn forward(
        &self,
        hidden: &Tensor,
        context: HeadContext<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor>;

    /// The head's weights, their names after `prefix`.
    fn parameters(&self, prefix: &str) -> Vec<Parameter>;

    /// A cache for `batch` sequences of up to `capacity` positions; `None` for a head that looks
    /// at one position only.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn cache(&self, batch: i64, capacity: i64) -> Result<Option<KvCache>> {
        let _ = (batch, capacity);
        Ok(None)
    }

    /// Gives a head that is grown on a pretrained model first weights better than random ones, by
    /// which it starts out predicting much as the model's own last layer, `stock`, does.
    ///
    /// # Errors
    /// When the weights have other shapes.
    fn adopt(&self, stock: &Block) -> Result<()> {
        let _ = stock;
        Ok(())
    }

    /// The matrix that this head consists of, if it is exactly one over the final hidden state:
    /// what fused decoding looks for.
    fn as_dense(&self) -> Option<Dense<'_>> {
        None
    }

    /// The parts of this head, if it is exactly a block that is told: what fused decoding looks for.
    fn as_informed(&self) -> Option<Informed<'_>> {
        None
    }

    /// The block that this head consists of, if it is exactly one: what fused decoding looks for.
    fn as_block(&self) -> Option<&Block> {
        None
    }
}
