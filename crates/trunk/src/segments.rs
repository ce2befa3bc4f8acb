//! A forward pass whose backward pass goes block by block.

use crate::{Block, Result, Trunk};
use foretoken_kernels::{Rotary, backward_from, embedding};
use tch::{Tensor, no_grad, with_grad};

/// A part of a trunk that a backward pass has done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrunkPart {
    /// The block of this index.
    Block(usize),
    /// The token embedding.
    Embedding,
}

/// A forward pass of a trunk, cut between its blocks ([`Trunk::segments`]).
#[derive(Debug)]
pub struct Segments<'t> {
    trunk: &'t Trunk,
    rotary: Rotary,
    embedded: Tensor,
    blocks: Vec<Segment>,
    output: Tensor,
}

#[derive(Debug)]
struct Segment {
    /// What the block reads, a leaf of the graph.
    input: Tensor,
    /// What it makes of it; none where that is to be computed again.
    output: Option<Tensor>,
    /// Whether anything learns here or before.
    learns: bool,
}

impl Trunk {
    /// As [`Trunk::forward`] without a cache, for a backward pass of the same gradients, to the bit,
    /// that goes block by block and says which are done: gradients of the last blocks can be on
    /// their way to other processes while those of the first are computed.
    ///
    /// `rotary` is the trunk's own, or that of rows of several documents
    /// ([`Rotary::within_documents`]).
    ///
    /// With `recompute` only the input of each block is kept: activation checkpointing (Chen et al.
    /// 2016, *Training Deep Nets with Sublinear Memory Cost*), one block a segment. The backward
    /// pass computes each block once more, a third of the arithmetic of a training step.
    ///
    /// # Errors
    /// As [`Trunk::forward`].
    pub fn segments(
        &self,
        tokens: &Tensor,
        rotary: &Rotary,
        recompute: bool,
    ) -> Result<Segments<'_>> {
        let embedded = embedding(&self.embed_tokens, tokens)?;
        let mut x = embedded.shallow_clone();
        let mut learns = embedded.requires_grad();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            let input = x.detach().set_requires_grad(learns);
            let forward = || block.forward(&input, rotary, None);
            x = if recompute { no_grad(forward)? } else { forward()? };
            learns = learns || block_learns(block);
            let output = (!recompute).then(|| x.shallow_clone());
            blocks.push(Segment { input, output, learns });
        }
        let rotary = rotary.share();
        Ok(Segments { trunk: self, rotary, embedded, blocks, output: x.detach() })
    }
}

impl Segments<'_> {
    /// The trunk output, `[batch, seq, dim]`, without a graph.
    pub fn output(&self) -> &Tensor {
        &self.output
    }

    /// Adds the gradients of the trunk's parameters to theirs, from `gradient`, that of the output.
    /// From the last block to the embedding, `done` hears of each part whose gradients are complete.
    ///
    /// # Errors
    /// When the gradient's shape is not the output's, or memory is short.
    pub fn backward(mut self, gradient: &Tensor, mut done: impl FnMut(TrunkPart)) -> Result<()> {
        let mut gradient = gradient.shallow_clone();
        while let Some(Segment { input, output, learns }) = self.blocks.pop() {
            if !learns {
                return Ok(());
            }
            let index = self.blocks.len();
            let block = &self.trunk.blocks[index];
            let output = match output {
                Some(kept) => kept,
                None => with_grad(|| block.forward(&input, &self.rotary, None))?,
            };
            backward_from(&output, &gradient)?;
            done(TrunkPart::Block(index));
            gradient = input.f_grad()?;
        }
        if self.embedded.requires_grad() {
            backward_from(&self.embedded, &gradient)?;
            done(TrunkPart::Embedding);
        }
        Ok(())
    }
}

fn block_learns(block: &Block) -> bool {
    block.parameters("").iter().any(|parameter| parameter.tensor.requires_grad())
}
