//! A transformer layer that is told the tokens before the one it predicts.

use crate::{Error, Head, HeadContext, Informed, Result, Tap};
use foretoken_kernels::{KvCache, accumulator, linear, rms_norm};
use foretoken_trunk::{Architecture, Block, Initialiser, Parameter, Role};
use tch::{Tensor, no_grad};

/// A [`BlockHead`](crate::BlockHead) over the trunk output and the tokens since.
///
/// When head i drafts, the tokens that lie between the row's own and its target are known: head 0
/// has chosen the first, the heads before have drafted the others. A head that is told them need
/// not guess them first:
///
/// x = h + rms(h) · (W · norm(m) + V · norm(h)), y = block(x)
///
/// with h the trunk output of the row, norm without weights, and m what the trunk's first
/// [`InformedHead::TOLD_BLOCKS`] blocks make of the token just before the target, behind all others:
/// few blocks are cheap to run for a draft, and see in which context the token stands. V turns h,
/// which expects the next token, towards the tokens behind it: without it the block has to undo the
/// expectation that has come true. In training the tokens are the text's own. Beside a block's
/// weights the head has these two matrices, `[dim, dim]`, which are zero at first on a pretrained
/// model.
#[derive(Debug)]
pub struct InformedHead {
    token_proj: Tensor,
    hidden_proj: Tensor,
    block: Block,
}

impl InformedHead {
    /// The name in configs.
    pub const KIND: &'static str = "informed";

    /// Blocks of the trunk that what it is told has gone through, as far as the trunk has them.
    pub const TOLD_BLOCKS: usize = 2;

    /// A head with first weights from `init`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &Architecture, init: &Initialiser) -> Result<Self> {
        let dim = sizes.dim as i64;
        Ok(Self {
            token_proj: init.matrix(dim, dim)?,
            hidden_proj: init.matrix(dim, dim)?,
            block: Block::new(sizes, init)?,
        })
    }

    /// The block's input for `hidden` and `told`, both `[batch, seq, dim]`.
    fn input(&self, hidden: &Tensor, told: &Tensor) -> Result<Tensor> {
        let (kind, eps) = (hidden.kind(), self.block.norm_eps);
        let wide = accumulator(kind);
        let ones = Tensor::f_ones([told.size3()?.2], (told.kind(), told.device()))?;
        let projected = |rows: &Tensor, by: &Tensor| -> Result<Tensor> {
            Ok(linear(&rms_norm(rows, &ones, eps)?, by)?.f_to_kind(wide)?)
        };
        let added = projected(told, &self.token_proj)?;
        let added = added.f_add(&projected(hidden, &self.hidden_proj)?)?;
        let hidden = hidden.f_to_kind(wide)?;
        let mean = hidden.f_square()?.f_mean_dim(-1, true, wide)?;
        let added = added.f_mul(&mean.f_add_scalar(eps)?.f_sqrt()?)?;
        Ok(hidden.f_add(&added)?.f_to_kind(kind)?)
    }
}

impl Head for InformedHead {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn tap(&self) -> Tap {
        Tap::TrunkOutput
    }

    fn told_blocks(&self) -> Option<usize> {
        Some(Self::TOLD_BLOCKS)
    }

    fn forward(
        &self,
        hidden: &Tensor,
        context: HeadContext<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let told = context.told.ok_or(Error::NotTold { kind: Self::KIND })?;
        Ok(self.block.forward(&self.input(hidden, told)?, context.rotary, cache)?)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        let matrices = [("token_proj", &self.token_proj), ("hidden_proj", &self.hidden_proj)];
        let whole = |(name, tensor)| {
            Parameter::whole(tensor, Role::Matrix, format!("{prefix}{name}.weight"))
        };
        let mut all: Vec<Parameter> = matrices.into_iter().map(whole).collect();
        all.extend(self.block.parameters(prefix));
        all
    }

    fn cache(&self, batch: i64, capacity: i64) -> Result<Option<KvCache>> {
        Ok(Some(self.block.cache(batch, capacity)?))
    }

    /// The stock layer's weights, and nothing yet of what it is told.
    fn adopt(&self, stock: &Block) -> Result<()> {
        self.block.copy_weights(stock)?;
        no_grad(|| {
            let _ = self.token_proj.shallow_clone().f_zero_()?;
            let _ = self.hidden_proj.shallow_clone().f_zero_()?;
            Ok(())
        })
    }

    fn as_informed(&self) -> Option<Informed<'_>> {
        Some(Informed {
            token_proj: &self.token_proj,
            hidden_proj: &self.hidden_proj,
            block: &self.block,
        })
    }
}
