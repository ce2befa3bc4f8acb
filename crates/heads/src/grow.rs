//! New heads on a pretrained model.

use crate::{DraftVocabulary, HeadsConfig, MultiTokenModel, Registry, Result};
use foretoken_trunk::{Architecture, Initialiser};

impl MultiTokenModel {
    /// Puts `heads.count` − 1 new heads on a next-token model; the heads that it has beyond the
    /// first are let go. The model's own part stays as it is: trunk, head 0, norm, unembedding.
    /// Heads start out as [`Head::adopt`](crate::Head::adopt) has it, other weights from `seed`.
    ///
    /// # Errors
    /// When the type is unknown or the memory cannot be had.
    pub fn grow(mut self, heads: &HeadsConfig, registry: &Registry, seed: i64) -> Result<Self> {
        let trunk = self.trunk.blocks.len();
        let layers = registry.all_layers(&heads.kind, heads.count, trunk)?;
        let sizes = Architecture { layers, ..self.config.architecture.clone() };
        let init = Initialiser::new(&sizes, self.trunk.kind(), self.trunk.device(), seed);
        self.replace_heads(heads, registry, &init)?;
        let (stock, beyond) = self.heads.split_at(1);
        if let Some(stock) = stock[0].as_block() {
            beyond.iter().try_for_each(|head| head.adopt(stock))?;
        }
        Ok(self)
    }

    /// Puts heads with weights from `init` in the place of those beyond the first.
    pub(crate) fn replace_heads(
        &mut self,
        heads: &HeadsConfig,
        registry: &Registry,
        init: &Initialiser,
    ) -> Result<()> {
        let trunk = self.trunk.blocks.len();
        let layers = registry.all_layers(&heads.kind, heads.count, trunk)?;
        registry.trunk_layers(&heads.kind, heads.count, layers)?;
        self.config.architecture.layers = layers;
        self.config.heads = heads.clone();
        self.heads.truncate(1);
        self.draft_vocabulary = None;
        for _ in 1..heads.count {
            self.heads.push(registry.build(&heads.kind, &self.config.architecture, init)?);
        }
        Ok(())
    }

    /// Lets drafting heads choose among `tokens` alone; they are sorted. `None`: among all.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or there is none.
    pub fn set_draft_vocabulary(&mut self, tokens: Option<Vec<u32>>) -> Result<()> {
        self.draft_vocabulary = match tokens {
            None => None,
            Some(mut tokens) => {
                tokens.sort_unstable();
                tokens.dedup();
                Some(DraftVocabulary::new(tokens, &self.unembedding)?)
            }
        };
        Ok(())
    }

    /// Says which tokens end a text, for a model whose files do not.
    pub fn set_end_of_text(&mut self, tokens: Vec<u32>) {
        self.config.end_of_text = tokens;
    }

    /// The tokens that drafts are chosen from, where they are not all.
    pub fn draft_vocabulary(&self) -> Option<&DraftVocabulary> {
        self.draft_vocabulary.as_ref()
    }

    /// Keeps the stock part (trunk, head 0, norm, unembedding) out of gradients, or lets it in.
    pub fn freeze_stock(&self, frozen: bool) {
        for parameter in self.stock_parameters() {
            let _ = parameter.tensor.set_requires_grad(!frozen);
        }
    }
}
