//! The CPU's own engine: blocks in pure Rust, the same bits for a row in every pass.

use foretoken_heads::{MultiTokenModel, UnreadModel};
use foretoken_kernels::cpu::{
    BlockCache, BlockWeights, Blocks, DenseWeights, Pass, Real, Room, Unembedding, Workspace,
};
use tch::Kind;

use crate::cpu_pack::{Embedding, Packed, Plan, Weight};
use crate::cpu_told::Told;
use crate::engine::{Drafts, Engine, MOST_OTHERS, MOST_UNREAD, Other, Wanted};
use crate::{DecoderOptions, Result};

/// Rows of a prompt that go through the model together: a multiple of the 16 that the kernels take
/// through a panel at a time, and few enough for their activations to stay in the cache.
const PREFILL_ROWS: usize = 48;

/// The engine for a model that it can run.
pub(crate) fn build(
    model: &MultiTokenModel,
    options: DecoderOptions,
) -> Result<Option<Box<dyn Engine>>> {
    let Some(plan) = Plan::new(model, options) else { return Ok(None) };
    Ok(Some(match model.kind() {
        Kind::Double => Box::new(CpuEngine::new(&plan, Packed::<f64>::of(&plan, model)?)),
        _ => Box::new(CpuEngine::new(&plan, Packed::<f32>::of(&plan, model)?)),
    }))
}

/// As [`build`], from a model whose tensors are let go one by one as they are read and packed. One
/// that the engine cannot run comes back.
pub(crate) fn build_from(
    model: UnreadModel,
    options: DecoderOptions,
) -> Result<std::result::Result<Box<dyn Engine>, UnreadModel>> {
    let Some(plan) = Plan::new(model.outline(), options) else { return Ok(Err(model)) };
    Ok(Ok(match model.outline().kind() {
        Kind::Double => Box::new(CpuEngine::new(&plan, Packed::<f64>::read(&plan, model)?)),
        _ => Box::new(CpuEngine::new(&plan, Packed::<f32>::read(&plan, model)?)),
    }))
}

struct CpuEngine<T> {
    embedding: Embedding<T>,
    dim: usize,
    /// The trunk's blocks and then the heads', as far as these are blocks.
    weights: Vec<BlockWeights<T>>,
    /// The drafting heads, where they are no blocks.
    dense: Vec<DenseWeights<T>>,
    /// Where the drafting heads are told tokens.
    told: Option<Told<T>>,
    caches: Vec<BlockCache<T>>,
    trunk: usize,
    unembedding: Unembedding<T>,
    /// The same for drafts, where it is in another format.
    drafting_unembedding: Option<Unembedding<T>>,
    /// The tokens that its outputs stand for, where they are not all.
    drafts: Vec<u32>,
    drafted: Drafts,
    /// The places of the others of the last pass.
    places: Vec<usize>,
    /// The logarithm of how likely the heads think that the drafts so far are all right.
    certainty: f64,
    workspace: Workspace<T>,
    /// Head 0's choice after each row of the last pass that went the whole way.
    best: Vec<u32>,
    /// Rows of the last pass that are still there.
    rows: usize,
    /// Rows of the last pass that went the whole way and are still there.
    outputs: usize,
}

impl<T: Weight> CpuEngine<T> {
    fn new(plan: &Plan, packed: Packed<T>) -> Self {
        let Plan { sizes, shape, heads, .. } = plan;
        let Packed { embedding, unembedding, drafting_unembedding, drafts, weights, dense, told } =
            packed;
        let others = if *heads > 1 { MOST_OTHERS } else { 0 };
        let room = Room {
            // Heads that are told tokens read the last rows of the pass before again.
            rows: PREFILL_ROWS.max(heads + others) + told.as_ref().map_or(0, |_| *heads),
            outputs: heads + others,
            positions: sizes.context,
            threads: plan.threads,
        };
        let workspace = Workspace::new(shape, sizes.vocab, &sizes.rotary_frequencies(), room);
        let workspace = match told {
            None => workspace,
            Some(_) => workspace.with_told(),
        };
        let caches = weights.iter().enumerate().map(|(index, block)| {
            let verifies = if index <= plan.trunk { others } else { 0 };
            block.cache(sizes.context).with_others(verifies)
        });
        Self {
            embedding,
            dim: shape.dim,
            caches: caches.collect(),
            weights,
            dense,
            told,
            trunk: plan.trunk,
            unembedding,
            drafting_unembedding,
            drafts,
            best: Vec::with_capacity(*heads),
            drafted: Drafts::default(),
            places: Vec::with_capacity(MOST_OTHERS),
            certainty: 0.0,
            workspace,
            rows: 0,
            outputs: 0,
        }
    }

    /// Passes `tokens` through the trunk and head 0, the last `outputs` of them the whole way, and
    /// `others` beside them, where all go it.
    fn pass(&mut self, tokens: &[u32], others: &[Other], outputs: usize) -> &[u32] {
        let all = tokens.iter().copied().chain(others.iter().map(|other| other.token));
        for (r, token) in all.enumerate() {
            let row = self.workspace.input(r);
            embed(&self.embedding, &self.unembedding, self.dim, token, row);
        }
        self.places.clear();
        self.places.extend(others.iter().map(|other| other.head));
        let rows = tokens.len();
        let beside = rows..rows + others.len();
        self.rows = rows;
        self.outputs = outputs;
        let (trunk, heads) = self.weights.split_at(self.trunk);
        let (trunk_caches, head_caches) = self.caches.split_at_mut(self.trunk);
        let early = self.told.as_ref().map_or(0, |told| told.blocks);
        let (early_caches, trunk_caches) = trunk_caches.split_at_mut(early);
        if let Some(told) = &mut self.told {
            told.forget(early_caches.first().unwrap_or(&head_caches[0]).len(), heads.len());
            told.forget_others();
            self.workspace.run(Pass {
                rows,
                others: &self.places,
                trunk: Blocks { weights: &trunk[..early], caches: early_caches },
                heads: Blocks { weights: &[], caches: &mut [] },
                outputs: 0,
                unembedding: &self.unembedding,
            });
            (0..rows).for_each(|r| told.push_told(self.workspace.hidden(r)));
            beside.clone().for_each(|r| told.others_told(self.workspace.hidden(r)));
        }
        let best = self.workspace.run(Pass {
            rows,
            others: &self.places,
            trunk: Blocks { weights: &trunk[early..], caches: trunk_caches },
            heads: Blocks { weights: &heads[..1], caches: &mut head_caches[..1] },
            outputs,
            unembedding: &self.unembedding,
        });
        self.best.clear();
        self.best.extend(best);
        if let Some(told) = &mut self.told {
            (0..rows).for_each(|r| told.push_hidden(self.workspace.hidden(r)));
            beside.for_each(|r| told.others_hidden(self.workspace.hidden(r)));
        }
        &self.best
    }

    /// Lets head `index`, which is told tokens, read all rows whose are known and it has not read
    /// yet, the last of them the whole way where a draft is wanted.
    fn tell(&mut self, index: usize, draft: bool) -> Option<u32> {
        let told = self.told.as_ref()?;
        let at = self.trunk + index;
        let read = self.caches[at].len();
        let rows = told.rows(read, index);
        if rows == 0 {
            return None;
        }
        for r in 0..rows {
            self.workspace.input(r).copy_from_slice(told.hidden(read + r));
            self.workspace.told(r).copy_from_slice(told.told(read + r + index));
        }
        let pass = Pass {
            rows,
            others: &[],
            trunk: Blocks { weights: &[], caches: &mut [] },
            heads: Blocks {
                weights: std::slice::from_ref(&self.weights[at]),
                caches: std::slice::from_mut(&mut self.caches[at]),
            },
            outputs: usize::from(draft),
            unembedding: self.drafting_unembedding.as_ref().unwrap_or(&self.unembedding),
        };
        self.workspace.run_told(pass, &told.heads[index - 1]).first().copied()
    }

    /// Notes head `index`'s draft, place `best` of what it chooses from, and what it likes next, by its
    /// logits in row `row` of the workspace.
    fn note(&mut self, index: usize, row: usize, best: u32, wanted: Wanted) -> u32 {
        let named = |place: u32| self.drafts.get(place as usize).copied().unwrap_or(place);
        let token = named(best);
        self.drafted.tokens.push(token);
        if wanted.asks_likelihoods() {
            let drafting = self.drafting_unembedding.as_ref().unwrap_or(&self.unembedding);
            let logits = &self.workspace.logits(row)[..drafting.product.outputs()];
            let (own, next) = runners_up(logits, best as usize, wanted.others);
            let before = self.certainty;
            self.drafted.others.extend(next.map(|(place, likelihood)| Other {
                head: index,
                token: named(place as u32),
                likelihood: before + likelihood,
            }));
            self.certainty += own;
            self.drafted.certainties.push(self.certainty);
        }
        token
    }

    /// Drafts one token after the other, each told to the heads behind, up to the first that is not
    /// likely enough.
    fn draft_told(&mut self, wanted: Wanted) {
        let known = self.caches[self.trunk].len();
        let mut token = self.best.last().copied().unwrap_or(0);
        for index in 1..=wanted.heads {
            let Some(told) = &mut self.told else { break };
            let row = self.workspace.input(0);
            embed(&self.embedding, &self.unembedding, self.dim, token, row);
            let weights = match told.trunk.is_empty() {
                true => &self.weights[..told.blocks],
                false => &told.trunk[..],
            };
            self.workspace.run(Pass {
                rows: 1,
                others: &[],
                trunk: Blocks { weights, caches: &mut self.caches[..told.blocks] },
                heads: Blocks { weights: &[], caches: &mut [] },
                outputs: 0,
                unembedding: &self.unembedding,
            });
            told.push_told(self.workspace.hidden(0));
            let Some(best) = self.tell(index, true) else { break };
            token = self.note(index, 0, best, wanted);
            if wanted.leaves_out(self.certainty) {
                break;
            }
        }
        // What was told of drafts is for this step alone; so are the rows that read it.
        if let Some(told) = &mut self.told {
            told.truncate(known);
            let (trunk, drafting) = self.caches.split_at_mut(self.trunk + 1);
            trunk[..told.blocks].iter_mut().for_each(|cache| cache.truncate(known));
            for (cache, index) in drafting.iter_mut().zip(1..) {
                cache.truncate(known.saturating_sub(index));
            }
        }
        for index in 1..=wanted.heads {
            let read = self.caches[self.trunk + index].len();
            if self.told.as_ref().is_some_and(|told| told.rows(read, index) > MOST_UNREAD) {
                self.tell(index, false);
            }
        }
    }

    /// Passes the trunk's output on to heads 1 to `heads`, its last `outputs` rows the whole way.
    fn heads(&mut self, heads: usize, outputs: usize) -> &[u32] {
        let unembedding = self.drafting_unembedding.as_ref().unwrap_or(&self.unembedding);
        if !self.dense.is_empty() {
            if outputs == 0 {
                return &[];
            }
            return self.workspace.run_dense(self.outputs - 1, &self.dense[..heads], unembedding);
        }
        let drafting = self.trunk + 1..self.trunk + 1 + heads;
        let pass = Pass {
            rows: self.rows,
            others: &[],
            trunk: Blocks { weights: &[], caches: &mut [] },
            heads: Blocks {
                weights: &self.weights[drafting.clone()],
                caches: &mut self.caches[drafting],
            },
            outputs,
            unembedding,
        };
        self.workspace.run(pass)
    }
}

/// The logarithm of the probability of `best`, and the places and logarithms of those of at most
/// `count` others, the likeliest first, by the softmax of `logits`.
fn runners_up<T: Real>(
    logits: &[T],
    best: usize,
    count: usize,
) -> (f64, impl Iterator<Item = (usize, f64)>) {
    let top = logits.get(best).map_or(0.0, |logit| logit.to_f64());
    // What is less likely than one in 10¹³ does not matter, and most tokens are.
    let near = logits.iter().map(|logit| logit.to_f64() - top).filter(|&below| below > -30.0);
    let total: f64 = near.map(f64::exp).sum();
    let scale = total.ln();
    let mut next: Vec<(usize, f64)> = Vec::with_capacity(count + 1);
    let wanted = if count > 0 { logits } else { &[] };
    for (place, logit) in wanted.iter().enumerate() {
        let logit = logit.to_f64();
        let full = next.len() == count;
        if place == best || (full && next.last().is_none_or(|&(_, least)| logit <= least)) {
            continue;
        }
        if full {
            next.pop();
        }
        let at = next.partition_point(|&(_, larger)| larger >= logit);
        next.insert(at, (place, logit));
    }
    (-scale, next.into_iter().map(move |(place, logit)| (place, logit - top - scale)))
}

/// Writes the embedding of `token` to `row`.
fn embed<T: Weight>(
    embedding: &Embedding<T>,
    unembedding: &Unembedding<T>,
    dim: usize,
    token: u32,
    row: &mut [T],
) {
    match embedding {
        Embedding::Own(rows) => row.copy_from_slice(&rows[token as usize * dim..][..dim]),
        Embedding::Tied => unembedding.product.copy_weights(token as usize, row),
    }
}

impl<T: Weight> Engine for CpuEngine<T> {
    fn reset(&mut self) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(0));
        if let Some(told) = &mut self.told {
            told.truncate(0);
        }
    }

    fn prefill(&mut self, tokens: &[u32], drafting: usize) -> Result<u32> {
        let chunk = PREFILL_ROWS;
        let last = tokens.len().saturating_sub(1) / chunk * chunk;
        for start in (0..last).step_by(chunk) {
            self.pass(&tokens[start..start + chunk], &[], 0);
            if self.told.is_some() {
                for index in 1..=drafting {
                    self.tell(index, false);
                }
            } else if drafting > 0 {
                self.heads(drafting, 0);
            }
        }
        Ok(self.pass(&tokens[last..], &[], 1).first().copied().unwrap_or(0))
    }

    fn verify(&mut self, tokens: &[u32], others: &[Other]) -> Result<&[u32]> {
        Ok(self.pass(tokens, others, tokens.len()))
    }

    fn keep(&mut self, rows: usize, other: Option<usize>) -> Result<()> {
        let other = other.map(|other| (other, self.rows + other));
        let best_behind = other.and_then(|(_, row)| self.best.get(row).copied());
        let taken_back = self.rows - rows;
        let kept = self.caches[0].len() - taken_back;
        self.outputs = self.outputs.saturating_sub(taken_back);
        for cache in &mut self.caches[..=self.trunk] {
            cache.truncate(kept);
        }
        self.rows = rows;
        self.best.truncate(rows);
        if let Some(told) = &mut self.told {
            told.truncate(kept);
        }
        let Some((other, row)) = other else { return Ok(()) };
        for cache in &mut self.caches[..=self.trunk] {
            cache.take_other(other);
        }
        if let Some(told) = &mut self.told {
            told.take_other(other);
        }
        self.workspace.move_row(row, rows);
        self.best.extend(best_behind);
        self.rows += 1;
        self.outputs += 1;
        Ok(())
    }

    fn in_turn(&self) -> bool {
        self.told.is_some()
    }

    fn draft(&mut self, wanted: Wanted) -> Result<&Drafts> {
        let wanted = Wanted { others: wanted.others.min(MOST_OTHERS), ..wanted };
        self.drafted.clear();
        self.certainty = 0.0;
        if self.told.is_some() {
            self.draft_told(wanted);
        } else {
            let best = self.heads(wanted.heads, 1).to_vec();
            for (row, best) in best.into_iter().enumerate() {
                self.note(row + 1, row, best, wanted);
            }
        }
        self.drafted.leave(wanted);
        Ok(&self.drafted)
    }

    fn logits(&mut self, row: usize, into: &mut Vec<f64>) -> Result<()> {
        into.clear();
        into.extend(self.workspace.logits(row).iter().map(|logit| logit.to_f64()));
        Ok(())
    }
}
