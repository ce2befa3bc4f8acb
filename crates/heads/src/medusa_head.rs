//! Medusa's head: one residual layer over the final hidden state.

use crate::{Dense, Head, HeadContext, Result, Tap};
use foretoken_kernels::{KvCache, linear_bias};
use foretoken_trunk::{Architecture, Block, Initialiser, Parameter, Role};
use tch::{Tensor, no_grad};

/// y = x + silu(W x + b) (Cai et al. 2024, section 2.1.1), before the shared unembedding.
///
/// Medusa gives each head an unembedding of its own, which starts out as the model's; here all
/// share the model's, as vLLM's `original_lm_head` has it.
#[derive(Debug)]
pub struct MedusaHead {
    /// `[dim, dim]`
    pub weight: Tensor,
    /// `[dim]`
    pub bias: Tensor,
}

impl MedusaHead {
    /// The name in configs.
    pub const KIND: &'static str = "medusa";

    /// A head with first weights from `init`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &Architecture, init: &Initialiser) -> Result<Self> {
        let dim = sizes.dim as i64;
        Ok(Self { weight: init.residual_matrix(dim, dim)?, bias: init.bias(dim)? })
    }
}

impl Head for MedusaHead {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn tap(&self) -> Tap {
        Tap::FinalHidden
    }

    fn forward(
        &self,
        hidden: &Tensor,
        _context: HeadContext<'_>,
        _cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        Ok(hidden.f_add(&linear_bias(hidden, &self.weight, &self.bias)?.f_silu()?)?)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        vec![
            Parameter::whole(&self.weight, Role::Matrix, format!("{prefix}linear.weight")),
            Parameter::whole(&self.bias, Role::Vector, format!("{prefix}linear.bias")),
        ]
    }

    fn as_dense(&self) -> Option<Dense<'_>> {
        Some(Dense { weight: &self.weight, bias: Some(&self.bias), residual: true })
    }

    /// Zeros: the head starts out as the model's own next-token head.
    fn adopt(&self, _stock: &Block) -> Result<()> {
        no_grad(|| {
            let _ = self.weight.shallow_clone().f_zero_()?;
            let _ = self.bias.shallow_clone().f_zero_()?;
            Ok(())
        })
    }
}
