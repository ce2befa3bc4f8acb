//! Any model on any device, in libtorch's operators.

use foretoken_heads::{
    DraftVocabulary, Error as HeadsError, HeadContext, MultiTokenModel, StackedHeads, Tap,
};
use foretoken_kernels::{Branch, KvCache, accumulator, linear};
use foretoken_trunk::TrunkCache;
use tch::{Kind, Tensor, no_grad};

use crate::Result;
use crate::engine::{Drafts, Engine, MOST_OTHERS, MOST_UNREAD, Other, Wanted};
use crate::tensor_told::{Told, with_other};

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
    /// The drafting heads of the last text, where they can be stacked, and their cache.
    stacked: Option<(StackedHeads, KvCache)>,
    /// Trunk output of the rows of the last pass that are still there, `[1, rows, dim]`.
    hidden: Tensor,
    /// What the unembedding read for head 0 at these rows, `[1, rows, dim]`.
    stock: Tensor,
    /// Rows of the last pass before those that stand in place of them.
    chain: i64,
    /// Where the drafting heads are told tokens.
    told: Option<Told>,
    /// Head 0's logits of the last pass, `[rows, vocab]`.
    logits: Tensor,
    best: Vec<u32>,
    drafts: Drafts,
    /// The logarithm of how likely the heads think that the drafts so far are all right.
    certainty: f64,
}

impl<'m> TensorEngine<'m> {
    pub(crate) fn new(model: Held<'m>) -> Result<Self> {
        // Rows in place of drafts lie behind these until they are taken back.
        let capacity = (model.config().architecture.context + MOST_OTHERS) as i64;
        Ok(Self {
            trunk: model.trunk().cache(1, capacity)?,
            heads: vec![model.head(0)?.cache(1, capacity)?],
            stacked: None,
            hidden: Tensor::new(),
            stock: Tensor::new(),
            chain: 0,
            told: model.told_blocks().map(Told::new),
            logits: Tensor::new(),
            best: Vec::new(),
            drafts: Drafts::default(),
            certainty: 0.0,
            model,
        })
    }

    /// Tokens as a tensor `[1, tokens]`.
    fn ids(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        Ok(Tensor::f_from_slice(&ids)?.f_view([1, -1])?.f_to_device(self.model.device())?)
    }

    /// Passes tokens, and `others` in place of some of them, through the trunk and head 0, up to the
    /// final norm.
    fn pass(&mut self, tokens: &[u32], others: &[Other]) -> Result<()> {
        let all: Vec<u32> =
            tokens.iter().copied().chain(others.iter().map(|other| other.token)).collect();
        let ids = self.ids(&all)?;
        let blocks = self.told.as_ref().map_or(0, |told| told.blocks);
        let before = self.trunk.len();
        self.chain = tokens.len() as i64;
        if !others.is_empty() {
            let places: Vec<i64> = others.iter().map(|other| other.head as i64).collect();
            let branch = Branch::new(before, self.chain, &places, self.model.device())?;
            self.trunk.branch(&branch);
            if let Some(cache) = &mut self.heads[0] {
                cache.branch(&branch);
            }
        }
        let (early, hidden) =
            self.model.trunk().forward_noting(&ids, Some(&mut self.trunk), blocks)?;
        if let Some(told) = &mut self.told {
            told.append(before, self.model.heads().len() as i64, &hidden, &early)?;
        }
        self.hidden = hidden;
        let stock = self.head(0)?;
        self.stock = self.model.normed(&stock)?;
        Ok(())
    }

    /// A head's output for the rows that are there.
    fn head(&mut self, index: usize) -> Result<Tensor> {
        let head = self.model.head(index)?;
        let context = HeadContext { rotary: &self.model.trunk().rotary, told: None };
        let input = match head.tap() {
            Tap::TrunkOutput => &self.hidden,
            Tap::FinalHidden => &self.stock,
        };
        Ok(head.forward(input, context, self.heads[index].as_mut())?)
    }

    /// What the unembedding reads for the last row of heads 1 to `heads`: `[heads, dim]`.
    fn drafts(&mut self, heads: usize) -> Result<Tensor> {
        if let Some((stacked, cache)) = &mut self.stacked {
            let outputs = stacked.last_rows(&self.hidden, &self.model.trunk().rotary, cache)?;
            return Ok(self.model.normed(&outputs.f_narrow(0, 0, heads as i64)?)?);
        }
        let mut rows = Vec::with_capacity(heads);
        for index in 1..=heads {
            let row = self.head(index)?.f_select(1, -1)?;
            rows.push(match self.model.head(index)?.tap() {
                Tap::TrunkOutput => self.model.normed(&row)?,
                Tap::FinalHidden => row,
            });
        }
        Ok(Tensor::f_cat(&rows, 0)?)
    }

    /// Lets head `index`, which is told tokens, read all rows whose are known and it has not read
    /// yet; its output for the last of them, `[1, dim]`, as the unembedding reads it.
    fn tell(&mut self, index: usize) -> Result<Option<Tensor>> {
        let Some(told) = &self.told else { return Ok(None) };
        let Some(cache) = &mut self.heads[index] else { return Ok(None) };
        let Some((hidden, told)) = told.rows(cache.len(), index as i64)? else { return Ok(None) };
        let context = HeadContext { rotary: &self.model.trunk().rotary, told: Some(&told) };
        let output = self.model.head(index)?.forward(&hidden, context, Some(cache))?;
        Ok(Some(self.model.normed(&output.f_select(1, -1)?)?))
    }

    /// Drafts one token after the other, each told to the heads behind, up to the first that is not
    /// likely enough.
    fn draft_told(&mut self, wanted: Wanted) -> Result<()> {
        let known = self.trunk.len();
        let mut token = self.best.last().copied().unwrap_or(0);
        for index in 1..=wanted.heads {
            let ids = self.ids(&[token])?;
            if let Some(told) = &mut self.told {
                let trunk = self.model.trunk();
                told.tell(&trunk.early(&ids, Some(&mut self.trunk), told.blocks)?)?;
            }
            let Some(row) = self.tell(index)? else { break };
            token = self.choose_drafts(&row)?.first().copied().unwrap_or(0);
            self.note(index, &[token], wanted)?;
            if wanted.leaves_out(self.certainty) {
                break;
            }
        }
        // What was told of drafts is for this step alone; so are the rows that read it.
        self.trunk.truncate(known);
        for (cache, index) in self.heads.iter_mut().zip(0..).skip(1) {
            if let Some(cache) = cache {
                cache.truncate(known - index);
            }
        }
        if let Some(told) = &mut self.told {
            told.truncate(known);
        }
        for index in 1..=wanted.heads {
            let read = self.heads[index].as_ref().map_or(known, KvCache::len);
            if known - index as i64 - read > MOST_UNREAD as i64 {
                _ = self.tell(index)?;
            }
        }
        Ok(())
    }

    /// Notes the drafts `tokens` of heads from `first` on, and what each likes next, by the drafts'
    /// logits `[heads, vocab]`.
    fn note(&mut self, first: usize, tokens: &[u32], wanted: Wanted) -> Result<()> {
        self.drafts.tokens.extend_from_slice(tokens);
        let others = wanted.others;
        if !wanted.asks_likelihoods() {
            return Ok(());
        }
        let (_, vocab) = self.logits.size2()?;
        let likely = self.logits.f_log_softmax(-1, accumulator(self.logits.kind()))?;
        let (likely, places) = likely.f_topk(vocab.min(others as i64 + 1), -1, true, true)?;
        let likely = Vec::<Vec<f64>>::try_from(likely.f_to_kind(Kind::Double)?)?;
        let places = Vec::<Vec<i64>>::try_from(places)?;
        let vocabulary = self.model.draft_vocabulary().map(DraftVocabulary::tokens);
        let named = |place: i64| vocabulary.map_or(place as u32, |tokens| tokens[place as usize]);
        for (row, (likely, places)) in likely.iter().zip(places).enumerate() {
            let before = self.certainty;
            let next = places.into_iter().zip(likely).filter_map(|(place, likelihood)| {
                let (head, token) = (first + row, named(place));
                let likelihood = before + likelihood;
                (token != tokens[row]).then_some(Other { head, token, likelihood })
            });
            self.drafts.others.extend(next.take(others));
            // The draft is the likeliest.
            self.certainty += likely.first().copied().unwrap_or(0.0);
            self.drafts.certainties.push(self.certainty);
        }
        Ok(())
    }

    /// Stacks as many drafting heads as a text needs, unless they are stacked already; gives them
    /// caches of their own where they cannot be.
    fn prepare(&mut self, heads: usize) -> Result<()> {
        if heads > 0 && self.stacked.as_ref().map_or(0, |(stacked, _)| stacked.len()) != heads {
            let context = self.model.config().architecture.context as i64;
            let indices: Vec<usize> = (1..=heads).collect();
            self.stacked = match self.model.stacked_heads(&indices) {
                Ok(stacked) => {
                    let cache = stacked.cache(context)?;
                    Some((stacked, cache))
                }
                Err(HeadsError::NotAlike { .. }) => None,
                Err(error) => return Err(error.into()),
            };
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
        self.told = self.model.told_blocks().map(Told::new);
        self.stacked.iter_mut().for_each(|(_, cache)| cache.truncate(0));
    }

    fn prefill(&mut self, tokens: &[u32], drafting: usize) -> Result<u32> {
        no_grad(|| {
            self.prepare(drafting)?;
            let last = tokens.len().saturating_sub(1) / PREFILL_ROWS * PREFILL_ROWS;
            for start in (0..last).step_by(PREFILL_ROWS) {
                self.pass(&tokens[start..start + PREFILL_ROWS], &[])?;
                if self.told.is_some() {
                    for index in 1..=drafting {
                        _ = self.tell(index)?;
                    }
                } else if drafting > 0 {
                    _ = self.drafts(drafting)?;
                }
            }
            self.pass(&tokens[last..], &[])?;
            let row = self.stock.f_select(1, -1)?;
            Ok(self.choose(&row)?.first().copied().unwrap_or(0))
        })
    }

    fn verify(&mut self, tokens: &[u32], others: &[Other]) -> Result<&[u32]> {
        no_grad(|| {
            self.pass(tokens, others)?;
            let rows = self.stock.f_squeeze_dim(0)?;
            self.choose(&rows)
        })
    }

    fn keep(&mut self, rows: usize, other: Option<usize>) -> Result<()> {
        let other = other.map(|other| self.chain + other as i64);
        let best_behind = other.and_then(|row| self.best.get(row as usize).copied());
        let rows = rows as i64;
        let before = self.trunk.len() - self.hidden.size()[1];
        let kept = before + rows;
        self.best.truncate(rows as usize);
        self.best.extend(best_behind);
        let Some(row) = other else {
            self.trunk.truncate(kept);
            if let Some(cache) = &mut self.heads[0] {
                cache.truncate(kept);
            }
            self.hidden = self.hidden.f_narrow(1, 0, rows)?;
            self.stock = self.stock.f_narrow(1, 0, rows)?;
            if let Some(told) = &mut self.told {
                told.truncate(kept);
            }
            return Ok(());
        };
        self.trunk.keep(kept, before + row)?;
        if let Some(cache) = &mut self.heads[0] {
            cache.keep(kept, before + row)?;
        }
        self.hidden = with_other(&self.hidden, rows, row)?;
        self.stock = with_other(&self.stock, rows, row)?;
        if let Some(told) = &mut self.told {
            told.keep(kept, before + row)?;
        }
        Ok(())
    }

    fn in_turn(&self) -> bool {
        self.told.is_some()
    }

    fn draft(&mut self, wanted: Wanted) -> Result<&Drafts> {
        let wanted = Wanted { others: wanted.others.min(MOST_OTHERS), ..wanted };
        self.drafts.clear();
        self.certainty = 0.0;
        no_grad(|| {
            if self.told.is_some() {
                return self.draft_told(wanted);
            }
            let rows = self.drafts(wanted.heads)?;
            let tokens = self.choose_drafts(&rows)?.to_vec();
            self.note(1, &tokens, wanted)
        })?;
        self.drafts.leave(wanted);
        Ok(&self.drafts)
    }

    fn logits(&mut self, row: usize, into: &mut Vec<f64>) -> Result<()> {
        let logits = self.logits.f_select(0, row as i64)?.f_to_kind(Kind::Double)?;
        into.clear();
        into.extend(Vec::<f64>::try_from(logits)?);
        Ok(())
    }
}
