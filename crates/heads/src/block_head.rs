//! The paper's head: one transformer layer.

use crate::{Head, HeadContext, Result, Tap};
use foretoken_kernels::KvCache;
use foretoken_trunk::{Architecture, Block, Initialiser, Parameter};
use tch::Tensor;

/// One Llama block over the trunk output ("parallel" heads in the paper's table S4).
#[derive(Debug)]
pub struct BlockHead {
    block: Block,
}

impl BlockHead {
    /// The name in configs.
    pub const KIND: &'static str = "block";

    /// A head with first weights from `init`.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn new(sizes: &Architecture, init: &Initialiser) -> Result<Self> {
        Ok(Self { block: Block::new(sizes, init)? })
    }
}

impl Head for BlockHead {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn tap(&self) -> Tap {
        Tap::TrunkOutput
    }

    fn forward(
        &self,
        hidden: &Tensor,
        context: HeadContext<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        Ok(self.block.forward(hidden, context.rotary, cache)?)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        self.block.parameters(prefix)
    }

    fn cache(&self, batch: i64, capacity: i64) -> Result<Option<KvCache>> {
        Ok(Some(self.block.cache(batch, capacity)?))
    }

    /// The stock layer's weights.
    fn adopt(&self, stock: &Block) -> Result<()> {
        Ok(self.block.copy_weights(stock)?)
    }

    fn as_block(&self) -> Option<&Block> {
        Some(&self.block)
    }
}
