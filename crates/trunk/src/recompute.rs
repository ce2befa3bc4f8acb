//! Blocks that are computed again in the backward pass instead of being kept from the forward pass.

use crate::{Block, Result, Trunk};
use foretoken_kernels::{Error as KernelError, Rotary, backward_from, custom_gradient, embedding};
use tch::{Tensor, no_grad, with_grad};

impl Trunk {
    /// As [`Trunk::forward`] without a cache, and with the same gradients to the bit, but that of each
    /// block only its input is kept: activation checkpointing (Chen et al. 2016, *Training Deep Nets
    /// with Sublinear Memory Cost*), one block a segment. The backward pass computes each block once
    /// more, which is a third of the arithmetic of a training step.
    ///
    /// # Errors
    /// As [`Trunk::forward`].
    pub fn forward_recomputing(&self, tokens: &Tensor) -> Result<Tensor> {
        let mut x = embedding(&self.embed_tokens, tokens)?;
        for block in &self.blocks {
            x = recomputed(block, &self.rotary, &x)?;
        }
        Ok(x)
    }
}

fn recomputed(block: &Block, rotary: &Rotary, x: &Tensor) -> Result<Tensor> {
    if !x.requires_grad() {
        return block.forward(x, rotary, None);
    }
    let input = x.detach();
    let y = no_grad(|| block.forward(&input, rotary, None))?;
    let (block, rotary) = (block.share(), rotary.share());
    custom_gradient(&[x], &[&y], move |gradients| {
        let Some(gradient) = &gradients[0] else { return Ok(vec![None]) };
        let x = input.detach().set_requires_grad(true);
        let y = with_grad(|| block.forward(&x, &rotary, None))
            .map_err(|error| KernelError::Native(error.to_string()))?;
        // The weights' gradients go where they belong on the way.
        backward_from(&y, gradient)?;
        Ok(vec![Some(x.f_grad()?)])
    })?;
    Ok(y)
}
