//! The least head: a linear map of the final hidden state.

use crate::{Dense, Head, HeadContext, Result, Tap};
use foretoken_kernels::{KvCache, linear};
use foretoken_trunk::{Architecture, Block, Initialiser, Parameter, Role};
use tch::{Tensor, no_grad};

/// y = W x, before the shared unembedding.
#[derive(Debug)]
pub struct LinearHead {
    /// `[dim, dim]`
    pub weight: Tensor,
}

impl LinearHead {
    /// The name in configs.
    pub const KIND: &'static str = "linear";

    /// A head with first weights from `init`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &Architecture, init: &Initialiser) -> Result<Self> {
        Ok(Self { weight: init.matrix(sizes.dim as i64, sizes.dim as i64)? })
    }
}

impl Head for LinearHead {
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
        Ok(linear(hidden, &self.weight)?)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        vec![Parameter::whole(&self.weight, Role::Matrix, format!("{prefix}linear.weight"))]
    }

    fn as_dense(&self) -> Option<Dense<'_>> {
        Some(Dense { weight: &self.weight, bias: None, residual: false })
    }

    /// The identity: the head starts out as the model's own next-token head.
    fn adopt(&self, _stock: &Block) -> Result<()> {
        no_grad(|| {
            let dim = self.weight.size()[0];
            let identity = Tensor::f_eye(dim, (self.weight.kind(), self.weight.device()))?;
            self.weight.shallow_clone().f_copy_(&identity)?;
            Ok(())
        })
    }
}
