//! Embedding and blocks that all heads share.

use crate::{Architecture, Block, Error, Initialiser, Parameter, Result, Role, TrunkPart};
use foretoken_kernels::{Branch, KvCache, Rotary, embedding};
use tch::{Device, Kind, Tensor};

/// The shared part of a multi-token model: tokens in, trunk output out.
///
/// Deliberately absent: the final norm and the unembedding, which belong to the heads.
#[derive(Debug)]
pub struct Trunk {
    /// `[vocab, dim]`
    pub embed_tokens: Tensor,
    /// The shared blocks, in order.
    pub blocks: Vec<Block>,
    /// Rotary tables that can reach as far as the model's context, used by the heads too.
    pub rotary: Rotary,
}

/// A key–value cache for every block of a trunk.
#[derive(Debug)]
pub struct TrunkCache {
    blocks: Vec<KvCache>,
}

impl Trunk {
    /// A trunk of `layers` blocks with first weights from `init`.
    ///
    /// # Errors
    /// When the sizes do not fit together or the memory cannot be had.
    pub fn new(sizes: &Architecture, layers: usize, init: &Initialiser) -> Result<Self> {
        sizes.validate()?;
        let embed_tokens = init.embedding(sizes.vocab as i64, sizes.dim as i64)?;
        let rotary = Rotary::with_frequencies(
            &sizes.rotary_frequencies(),
            sizes.context as i64,
            embed_tokens.kind(),
            embed_tokens.device(),
        )?;
        let blocks = (0..layers).map(|_| Block::new(sizes, init)).collect::<Result<Vec<_>>>()?;
        Ok(Self { embed_tokens, blocks, rotary })
    }

    /// The trunk output `[batch, seq, dim]` for `tokens` `[batch, seq]` (int64).
    ///
    /// With a cache the tokens follow the positions that it holds.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or positions run past the context.
    pub fn forward(&self, tokens: &Tensor, cache: Option<&mut TrunkCache>) -> Result<Tensor> {
        Ok(self.forward_noting(tokens, cache, 0)?.1)
    }

    /// As [`Trunk::forward`], and the state after the first `blocks` blocks on the way (the
    /// embeddings for 0): both `[batch, seq, dim]`.
    ///
    /// # Errors
    /// As [`Trunk::forward`].
    pub fn forward_noting(
        &self,
        tokens: &Tensor,
        mut cache: Option<&mut TrunkCache>,
        blocks: usize,
    ) -> Result<(Tensor, Tensor)> {
        let noted = self.early(tokens, cache.as_deref_mut(), blocks)?;
        let mut x = noted.shallow_clone();
        for (i, block) in self.blocks.iter().enumerate().skip(blocks) {
            let cache = cache.as_mut().map(|cache| &mut cache.blocks[i]);
            x = block.forward(&x, &self.rotary, cache)?;
        }
        Ok((noted, x))
    }

    /// The state after the first `blocks` blocks alone, `[batch, seq, dim]`; the caches of the others
    /// stay as they are.
    ///
    /// # Errors
    /// As [`Trunk::forward`].
    pub fn early(
        &self,
        tokens: &Tensor,
        cache: Option<&mut TrunkCache>,
        blocks: usize,
    ) -> Result<Tensor> {
        let Some(cache) = cache else { return self.early_within(tokens, &self.rotary, blocks) };
        if cache.blocks.len() != self.blocks.len() {
            let (held, blocks) = (cache.blocks.len(), self.blocks.len());
            let problem = format!("a cache of {held} blocks for a trunk of {blocks}");
            return Err(Error::config("cache", problem));
        }
        let mut x = embedding(&self.embed_tokens, tokens)?;
        for (block, cache) in self.blocks.iter().zip(&mut cache.blocks).take(blocks) {
            x = block.forward(&x, &self.rotary, Some(cache))?;
        }
        Ok(x)
    }

    /// As [`Trunk::early`] without a cache, for rows of several documents
    /// ([`Rotary::within_documents`]).
    ///
    /// # Errors
    /// As [`Trunk::early`], and when `rotary` is for other rows.
    pub fn early_within(&self, tokens: &Tensor, rotary: &Rotary, blocks: usize) -> Result<Tensor> {
        let x = embedding(&self.embed_tokens, tokens)?;
        self.blocks.iter().take(blocks).try_fold(x, |x, block| block.forward(&x, rotary, None))
    }

    /// An empty cache for `batch` sequences of up to `capacity` positions.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn cache(&self, batch: i64, capacity: i64) -> Result<TrunkCache> {
        let blocks = self.blocks.iter().map(|block| block.cache(batch, capacity));
        let blocks = blocks.collect::<Result<Vec<_>>>()?;
        Ok(TrunkCache { blocks })
    }

    /// The weights under their stock Llama names.
    pub fn parameters(&self) -> Vec<Parameter> {
        let blocks = (0..self.blocks.len()).map(TrunkPart::Block);
        let parts = std::iter::once(TrunkPart::Embedding).chain(blocks);
        parts.flat_map(|part| self.part_parameters(part)).collect()
    }

    /// The weights of one part under their stock Llama names; none where there is no such part.
    pub fn part_parameters(&self, part: TrunkPart) -> Vec<Parameter> {
        match part {
            TrunkPart::Embedding => {
                let name = "model.embed_tokens.weight";
                vec![Parameter::whole(&self.embed_tokens, Role::Embedding, name)]
            }
            TrunkPart::Block(index) => {
                let parameters =
                    |block: &Block| block.parameters(&format!("model.layers.{index}."));
                self.blocks.get(index).map_or_else(Vec::new, parameters)
            }
        }
    }

    /// Number format of the weights.
    pub fn kind(&self) -> Kind {
        self.embed_tokens.kind()
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.embed_tokens.device()
    }
}

impl TrunkCache {
    /// Positions held by every block.
    pub fn len(&self) -> i64 {
        self.blocks.iter().map(KvCache::len).min().unwrap_or(0)
    }

    /// Whether no position is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: i64) {
        for cache in &mut self.blocks {
            cache.truncate(len);
        }
    }

    /// Says how the rows of the next forward stand to each other ([`KvCache::branch`]).
    pub fn branch(&mut self, branch: &Branch) {
        for cache in &mut self.blocks {
            cache.branch(branch);
        }
    }

    /// Forgets all positions from `len` on, but for that at `other`, which comes to stand there.
    ///
    /// # Errors
    /// When nothing is held at `other`, or it lies before `len`.
    pub fn keep(&mut self, len: i64, other: i64) -> Result<()> {
        for cache in &mut self.blocks {
            cache.keep(len, other)?;
        }
        Ok(())
    }
}
