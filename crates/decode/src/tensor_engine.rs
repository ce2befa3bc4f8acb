//! Any model on any device, in libtorch's operators.

use foretoken_heads::{HeadContext, MultiTokenModel, Tap};
use foretoken_kernels::{KvCache, linear};
use foretoken_trunk::TrunkCache;
use tch::{Kind, Tensor, no_grad};

use crate::Result;
use crate::engine::Engine;
use crate::stacked_heads::StackedHeads;

/// Rows of a prompt that go through the model together: bounds the memory of attention scores.
const PREFILL_ROWS: usize = 512;

/// A model, lent or given away.
pub(crate) enum Held<'m> {
    Lent(&'m MultiTokenModel),
    Given(Box<MultiTokenModel>),
}

impl std::ops::Deref for Held<'_> {
    type Target = MultiTokenModel;

    fn deref(&self) -> &MultiTokenModel {
        match self {
            Self::Lent(model) => model,
            Self::Given(model) => model,
        }
    }
}

pub(crate) struct TensorEngine<'m> {
    model: Held<'m>,
    trunk: TrunkCache,
    /// Of head 0, and of the others where they are not stacked.
    heads: Vec<Option<KvCache>>,
    /// The drafting heads of the last text, where they can be stacked.
    stacked: Option<StackedHeads>,
    /// Trunk output of the rows of the last pass that are still there, `[1, rows, dim]`.
    hidden: Tensor,
    /// What the unembedding read for head 0 at these rows, `[1, rows, dim]`.
    stock: Tensor,
    /// The tokens after these rows, as head 0 or the text has them, `[1, rows]`.
    next: Tensor,
    /// Head 0's logits of the last pass, `[rows, vocab]`.
    logits: Tensor,
    best: Vec<u32>,
}

impl<'m> TensorEngine<'m> {
    pub(crate) fn new(model: Held<'m>) -> Result<Self> {
        let context = model.config().architecture.context as i64;
        Ok(Self {
            trunk: model.trunk().cache(1, context)?,
            heads: vec![model.head(0)?.cache(1, context)?],
            stacked: None,
            hidden: Tensor::new(),
            stock: Tensor::new(),
            next: Tensor::new(),
            logits: Tensor::new(),
            best: Vec::new(),
            model,
        })
    }

    /// Tokens as a tensor `[1, tokens]`.
    fn ids(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        Ok(Tensor::f_from_slice(&ids)?.f_view([1, -1])?.f_to_device(self.model.device())?)
    }

    /// Passes tokens through the trunk and head 0, up to the final norm.
    fn pass(&mut self, tokens: &[u32]) -> Result<()> {
        let ids = self.ids(tokens)?;
        self.hidden = self.model.trunk().forward(&ids, Some(&mut self.trunk))?;
        let stock = self.head(0, None)?;
        self.stock = self.model.normed(&stock)?;
        Ok(())
    }

    /// A head's output for the rows that are there; `next`: the embeddings of the tokens after them.
    fn head(&mut self, index: usize, next: Option<&Tensor>) -> Result<Tensor> {
        let head = self.model.head(index)?;
        let context = HeadContext { rotary: &self.model.trunk().rotary, next };
        let input = match head.tap() {
            Tap::TrunkOutput => &self.hidden,
            Tap::FinalHidden => &self.stock,
        };
        Ok(head.forward(input, context, self.heads[index].as_mut())?)
    }

    /// What the unembedding reads for the last row of heads 1 to `heads`: `[heads, dim]`.
    fn drafts(&mut self, heads: usize) -> Result<Tensor> {
        if let Some(stacked) = &mut self.stacked {
            let outputs = stacked.forward(&self.hidden, &self.model)?;
            return Ok(self.model.normed(&outputs.f_narrow(0, 0, heads as i64)?)?);
        }
        let next = match self.model.heads().iter().any(|head| head.reads_next()) {
            true => Some(self.model.embedded(&self.next)?),
            false => None,
        };
        let mut rows = Vec::with_capacity(heads);
        for index in 1..=heads {
            let row = self.head(index, next.as_ref())?.f_select(1, -1)?;
            rows.push(match self.model.head(index)?.tap() {
                Tap::TrunkOutput => self.model.normed(&row)?,
                Tap::FinalHidden => row,
            });
        }
        Ok(Tensor::f_cat(&rows, 0)?)
    }

    /// Stacks as many drafting heads as a text needs, unless they are stacked already; gives them
    /// caches of their own where they cannot be.
    fn prepare(&mut self, heads: usize) -> Result<()> {
        if self.stacked.as_ref().map_or(0, StackedHeads::len) != heads {
            self.stacked = StackedHeads::new(&self.model, heads)?;
        }
        if self.stacked.is_none() {
            let context = self.model.config().architecture.context as i64;
            for index in self.heads.len()..=heads {
                self.heads.push(self.model.head(index)?.cache(1, context)?);
            }
        }
        Ok(())
    }

    /// The best tokens for rows `[rows, dim]` that the unembedding reads; their logits are kept.
    fn choose(&mut self, rows: &Tensor) -> Result<&[u32]> {
        self.logits = linear(rows, self.model.unembedding())?;
        self.best()
    }

    /// As [`TensorEngine::choose`], from what drafts are chosen from.
    fn choose_drafts(&mut self, rows: &Tensor) -> Result<&[u32]> {
        let Some(vocabulary) = self.model.draft_vocabulary() else { return self.choose(rows) };
        self.logits = linear(rows, vocabulary.unembedding())?;
        self.best()?;
        if let Some(vocabulary) = self.model.draft_vocabulary() {
            for token in &mut self.best {
                *token = vocabulary.tokens()[*token as usize];
            }
        }
        Ok(&self.best)
    }

    fn best(&mut self) -> Result<&[u32]> {
        let best = self.logits.f_argmax(-1, false)?;
        self.best.clear();
        self.best.extend(Vec::<i64>::try_from(best)?.into_iter().map(|token| token as u32));
        Ok(&self.best)
    }
}

impl Engine for TensorEngine<'_> {
    fn reset(&mut self) {
        self.trunk.truncate(0);
        self.heads.iter_mut().flatten().for_each(|cache| cache.truncate(0));
        self.stacked.iter_mut().for_each(StackedHeads::reset);
    }

    fn prefill(&mut self, tokens: &[u32], drafting: usize) -> Result<u32> {
        no_grad(|| {
            self.prepare(drafting)?;
            let last = tokens.len().saturating_sub(1) / PREFILL_ROWS * PREFILL_ROWS;
            for start in (0..last).step_by(PREFILL_ROWS) {
                self.pass(&tokens[start..start + PREFILL_ROWS])?;
                if drafting > 0 {
                    self.next = self.ids(&tokens[start + 1..=start + PREFILL_ROWS])?;
                    _ = self.drafts(drafting)?;
                }
            }
            self.pass(&tokens[last..])?;
            let row = self.stock.f_select(1, -1)?;
            let first = self.choose(&row)?.first().copied().unwrap_or(0);
            let mut next = tokens[last + 1..].to_vec();
            next.push(first);
            self.next = self.ids(&next)?;
            Ok(first)
        })
    }

    fn verify(&mut self, tokens: &[u32]) -> Result<&[u32]> {
        no_grad(|| {
            self.pass(tokens)?;
            let rows = self.stock.f_squeeze_dim(0)?;
            self.choose(&rows)?;
            self.next = self.ids(&self.best)?;
            Ok(self.best.as_slice())
        })
    }

    fn keep(&mut self, rows: usize) {
        let rows = rows as i64;
        let taken_back = self.hidden.size()[1] - rows;
        self.trunk.truncate(self.trunk.len() - taken_back);
        if let Some(cache) = &mut self.heads[0] {
            cache.truncate(cache.len() - taken_back);
        }
        self.hidden = self.hidden.narrow(1, 0, rows);
        self.stock = self.stock.narrow(1, 0, rows);
        self.next = self.next.narrow(1, 0, rows);
    }

    fn draft(&mut self, heads: usize) -> Result<&[u32]> {
        no_grad(|| {
            let rows = self.drafts(heads)?;
            self.choose_drafts(&rows)
        })
    }

    fn logits(&mut self, row: usize, into: &mut Vec<f64>) -> Result<()> {
        let logits = self.logits.f_select(0, row as i64)?.f_to_kind(Kind::Double)?;
        into.clear();
        into.extend(Vec::<f64>::try_from(logits)?);
        Ok(())
    }
}
