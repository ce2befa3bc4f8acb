//! A transformer layer that is told the token which head 0 has chosen.

use crate::{Error, Head, HeadContext, Informed, Result, Tap};
use foretoken_kernels::{KvCache, accumulator, linear, rms_norm};
use foretoken_trunk::{Architecture, Block, Initialiser, Parameter, Role};
use tch::{Tensor, no_grad};

/// A [`BlockHead`](crate::BlockHead) over the trunk output and the next token.
///
/// When drafts are made, head 0 has chosen the token after the last one already. A head that looks
/// further ahead and is told this token need not guess it first:
///
/// x = h + rms(h) · W · norm(e), y = block(x)
///
/// with h the trunk output, e the embedding of the token after the row's own, and norm without
/// weights. In training e is the text's own token. Beside a block's weights it has one matrix,
/// W `[dim, dim]`, which is zero at first on a pretrained model.
#[derive(Debug)]
pub struct InformedHead {
    token_proj: Tensor,
    block: Block,
}

impl InformedHead {
    /// The name in configs.
    pub const KIND: &'static str = "informed";

    /// A head with first weights from `init`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &Architecture, init: &Initialiser) -> Result<Self> {
        let dim = sizes.dim as i64;
        Ok(Self { token_proj: init.matrix(dim, dim)?, block: Block::new(sizes, init)? })
    }

    /// The block's input for `hidden` and the embeddings `next`, both `[batch, seq, dim]`.
    fn input(&self, hidden: &Tensor, next: &Tensor) -> Result<Tensor> {
        let (kind, eps) = (hidden.kind(), self.block.norm_eps);
        let wide = accumulator(kind);
        let ones = Tensor::f_ones([next.size3()?.2], (next.kind(), next.device()))?;
        let told = linear(&rms_norm(next, &ones, eps)?, &self.token_proj)?.f_to_kind(wide)?;
        let hidden = hidden.f_to_kind(wide)?;
        let mean = hidden.f_square()?.f_mean_dim(-1, true, wide)?;
        let told = told.f_mul(&mean.f_add_scalar(eps)?.f_sqrt()?)?;
        Ok(hidden.f_add(&told)?.f_to_kind(kind)?)
    }
}

impl Head for InformedHead {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn tap(&self) -> Tap {
        Tap::TrunkOutput
    }

    fn reads_next(&self) -> bool {
        true
    }

    fn forward(
        &self,
        hidden: &Tensor,
        context: HeadContext<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let next = context.next.ok_or(Error::NoNextTokens { kind: Self::KIND })?;
        Ok(self.block.forward(&self.input(hidden, next)?, context.rotary, cache)?)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        let name = format!("{prefix}token_proj.weight");
        let mut all = vec![Parameter::whole(&self.token_proj, Role::Matrix, name)];
        all.extend(self.block.parameters(prefix));
        all
    }

    fn cache(&self, batch: i64, capacity: i64) -> Result<Option<KvCache>> {
        Ok(Some(self.block.cache(batch, capacity)?))
    }

    /// The stock layer's weights, and nothing yet of the token.
    fn adopt(&self, stock: &Block) -> Result<()> {
        self.block.copy_weights(stock)?;
        no_grad(|| {
            let _ = self.token_proj.shallow_clone().f_zero_()?;
            Ok(())
        })
    }

    fn as_informed(&self) -> Option<Informed<'_>> {
        Some(Informed { token_proj: &self.token_proj, block: &self.block })
    }
}
