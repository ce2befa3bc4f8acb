//! The CPU's own engine: blocks in pure Rust, the same bits for a row in every pass.

use std::borrow::Borrow;

use foretoken_heads::{Dense, DraftVocabulary, Head, Informed, ModelParts, MultiTokenModel, Tap};
use foretoken_kernels::cpu::{
    BlockCache, BlockShape, BlockTensors, BlockWeights, Blocks, DenseWeights, PackedLinear, Pass,
    Real, RmsNorm, Room, TokenWeights, Unembedding, WeightFormat, Workspace,
};
use foretoken_trunk::{Architecture, Block};
use tch::{Device, Kind, Tensor};

use crate::cpu_told::Told;
use crate::engine::{Drafts, Engine, MOST_OTHERS, Other};
use crate::{DecoderOptions, DraftPrecision, Result, WeightStorage};

/// Rows of a prompt that go through the model together: a multiple of the kernels' tile of 6, and
/// few enough for their activations to stay in the cache.
const PREFILL_ROWS: usize = 48;

/// Bytes of weights a thread should have to read in a pass: below, waiting for each other costs
/// more than sharing saves.
const BYTES_PER_THREAD: usize = 8 << 20;

/// How many of `most` threads this model gains from.
fn useful_threads(model: &MultiTokenModel, most: usize) -> usize {
    let sizes = &model.config().architecture;
    let heads = sizes.attention_heads + sizes.kv_heads;
    let block = sizes.dim * (2 * heads * sizes.head_width() + 3 * sizes.ffn);
    let blocks = model.trunk().blocks.len() + 1;
    let bytes = size_of::<f32>() * (blocks * block + sizes.vocab * sizes.dim);
    (bytes / BYTES_PER_THREAD).clamp(1, most.max(1))
}

/// The engine for a model that it can run: one in float32 or float64, on the CPU, whose drafting
/// heads are all blocks over the trunk's output, told the tokens before their targets or not, or
/// all matrices over the final hidden state.
pub(crate) fn build(
    model: &MultiTokenModel,
    options: DecoderOptions,
) -> Result<Option<Box<dyn Engine>>> {
    let Some(plan) = Plan::new(model, options) else { return Ok(None) };
    let blocks = model.trunk().blocks.iter().map(Part::Block);
    let parts = blocks.chain(model.heads().iter().map(Part::Head));
    let ends = Ends {
        embedding: model.trunk().embed_tokens.shallow_clone(),
        norm: model.final_norm().shallow_clone(),
        unembedding: model.unembedding().shallow_clone(),
        drafts: model.draft_vocabulary().map(Choices::of),
    };
    Ok(Some(engine(&plan, parts, ends)?))
}

/// As [`build`], from a model whose tensors are let go one by one as they are packed, so that the
/// weights are never there twice. A model that the engine cannot run comes back.
pub(crate) fn build_from(
    model: MultiTokenModel,
    options: DecoderOptions,
) -> Result<std::result::Result<Box<dyn Engine>, MultiTokenModel>> {
    let Some(plan) = Plan::new(&model, options) else { return Ok(Err(model)) };
    let ModelParts { trunk, heads, final_norm, unembedding, draft_vocabulary, .. } =
        model.into_parts();
    let blocks = trunk.blocks.into_iter().map(Part::Block);
    let parts = blocks.chain(heads.into_iter().map(Part::Head));
    let ends = Ends {
        embedding: trunk.embed_tokens,
        norm: final_norm,
        unembedding,
        drafts: draft_vocabulary.as_ref().map(Choices::of),
    };
    drop(draft_vocabulary);
    Ok(Ok(engine(&plan, parts, ends)?))
}

fn engine<B: Borrow<Block>, H: Borrow<Box<dyn Head>>>(
    plan: &Plan,
    parts: impl Iterator<Item = Part<B, H>>,
    ends: Ends,
) -> Result<Box<dyn Engine>> {
    Ok(match ends.norm.kind() {
        Kind::Double => Box::new(CpuEngine::<f64>::new(plan, parts, ends)?),
        _ => Box::new(CpuEngine::<f32>::new(plan, parts, ends)?),
    })
}

/// What a part of a model computes.
enum Computes<'m> {
    Block(&'m Block),
    Informed(Informed<'m>),
    Dense(Dense<'m>),
}

impl<'m> Computes<'m> {
    /// `None` for a head of another form.
    fn of(head: &'m dyn Head) -> Option<Self> {
        match head.tap() {
            Tap::TrunkOutput => {
                head.as_block().map(Self::Block).or(head.as_informed().map(Self::Informed))
            }
            Tap::FinalHidden => head.as_dense().map(Self::Dense),
        }
    }
}

/// A block of the trunk or a head, lent or given away.
enum Part<B, H> {
    Block(B),
    Head(H),
}

impl<B: Borrow<Block>, H: Borrow<Box<dyn Head>>> Part<B, H> {
    fn computes(&self) -> Option<Computes<'_>> {
        match self {
            Self::Block(block) => Some(Computes::Block(block.borrow())),
            Self::Head(head) => Computes::of(head.borrow().as_ref()),
        }
    }
}

/// What comes before and after the blocks.
struct Ends {
    embedding: Tensor,
    norm: Tensor,
    unembedding: Tensor,
    drafts: Option<Choices>,
}

/// What drafts are chosen from.
struct Choices {
    tokens: Vec<u32>,
    unembedding: Tensor,
}

impl Choices {
    fn of(vocabulary: &DraftVocabulary) -> Self {
        let unembedding = vocabulary.unembedding().shallow_clone();
        Self { tokens: vocabulary.tokens().to_vec(), unembedding }
    }
}

/// What an engine is built by.
struct Plan {
    sizes: Architecture,
    shape: BlockShape,
    /// Blocks of the trunk.
    trunk: usize,
    heads: usize,
    /// Blocks of the trunk that what the drafting heads are told goes through; `None` where they are
    /// told nothing.
    told: Option<usize>,
    threads: usize,
    /// Of what decides on the text.
    exact: WeightFormat,
    drafts: WeightFormat,
}

impl Plan {
    /// `None` for a model that the engine cannot run.
    fn new(model: &MultiTokenModel, options: DecoderOptions) -> Option<Self> {
        let runs =
            model.device() == Device::Cpu && matches!(model.kind(), Kind::Float | Kind::Double);
        let shape = common_shape(model).filter(|_| runs)?;
        Some(Self {
            sizes: model.config().architecture.clone(),
            shape,
            trunk: model.trunk().blocks.len(),
            heads: model.heads().len(),
            told: model.told_blocks(),
            threads: options.threads.unwrap_or_else(|| {
                useful_threads(model, usize::try_from(tch::get_num_threads()).unwrap_or(1))
            }),
            exact: exact_format(options.weights),
            drafts: match options.drafts {
                DraftPrecision::BFloat16 => WeightFormat::BFloat16,
                DraftPrecision::Full => exact_format(options.weights),
            },
        })
    }

    /// Whether drafts may be computed with other weights than what verifies them.
    fn drafts_differ(&self) -> bool {
        self.drafts == WeightFormat::BFloat16
    }

    /// The format of a block's weights; head 0, which verifies, stays exact.
    fn format(&self, block: usize) -> WeightFormat {
        if block <= self.trunk { self.exact } else { self.drafts }
    }
}

fn exact_format(weights: WeightStorage) -> WeightFormat {
    match weights {
        WeightStorage::Compact => WeightFormat::Compact,
        WeightStorage::Full => WeightFormat::Full,
    }
}

/// The shape of all blocks, where it is one; `None` also for a model that the engine has no form
/// for: one whose drafting heads are not all of one form.
fn common_shape(model: &MultiTokenModel) -> Option<BlockShape> {
    let heads = model.heads().iter().map(|head| Computes::of(head.as_ref()));
    let heads = heads.collect::<Option<Vec<_>>>()?;
    let (first, drafting) = heads.split_first()?;
    let Computes::Block(first) = first else { return None };
    let form = std::mem::discriminant::<Computes<'_>>;
    if drafting.iter().any(|head| form(head) != form(&drafting[0])) {
        return None;
    }
    let first = shape(first);
    let of_heads = drafting.iter().filter_map(|head| match head {
        Computes::Block(block) | Computes::Informed(Informed { block, .. }) => Some(*block),
        Computes::Dense(_) => None,
    });
    model.trunk().blocks.iter().chain(of_heads).all(|block| shape(block) == first).then_some(first)
}

fn shape(block: &Block) -> BlockShape {
    let attention = block.attention;
    let down = block.down_proj.size();
    BlockShape {
        dim: down[0] as usize,
        attention_heads: attention.heads as usize,
        kv_heads: attention.kv_heads as usize,
        head_dim: attention.head_dim as usize,
        ffn: down[1] as usize,
        norm_eps: block.norm_eps,
    }
}

/// A number type that weights can be read as.
trait Weight: Real {
    /// Lends a tensor's numbers, in order.
    fn with<R>(tensor: &Tensor, read: impl FnOnce(&[Self]) -> R) -> Result<R>;

    fn read(tensor: &Tensor) -> Result<Vec<Self>> {
        Self::with(tensor, <[Self]>::to_vec)
    }
}

macro_rules! weight {
    ($t:ty, $kind:expr) => {
        impl Weight for $t {
            #[allow(unsafe_code)]
            fn with<R>(tensor: &Tensor, read: impl FnOnce(&[Self]) -> R) -> Result<R> {
                let flat = tensor.detach().f_to_kind($kind)?.f_reshape([-1])?.f_contiguous()?;
                if flat.numel() == 0 {
                    return Ok(read(&[]));
                }
                // SAFETY: a contiguous tensor of this kind on the CPU (of which the engine is) is
                // `numel` numbers at its address; it is held here, and nobody writes to it.
                let numbers = unsafe {
                    std::slice::from_raw_parts(flat.data_ptr().cast_const().cast(), flat.numel())
                };
                Ok(read(numbers))
            }
        }
    };
}

weight!(f32, Kind::Float);
weight!(f64, Kind::Double);

/// The rows that tokens go in as.
enum Embedding<T> {
    /// `[vocab, dim]`.
    Own(Vec<T>),
    /// Those of the unembedding.
    Tied,
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
    /// Packs the ends first and lets their tensors go: the unembedding is the largest matrix, and
    /// in memory twice while it is packed.
    fn new<B: Borrow<Block>, H: Borrow<Box<dyn Head>>>(
        plan: &Plan,
        parts: impl Iterator<Item = Part<B, H>>,
        ends: Ends,
    ) -> Result<Self> {
        let Plan { sizes, shape, heads, .. } = plan;
        let norm = T::read(&ends.norm)?;
        let unembedding = |tensor: &Tensor, format| -> Result<Unembedding<T>> {
            let outputs = tensor.size2()?.0 as usize;
            Ok(Unembedding {
                norm: RmsNorm::new(&norm, sizes.norm_eps),
                product: T::with(tensor, |weights| {
                    PackedLinear::pack(weights, outputs, shape.dim, format)
                })?,
            })
        };
        let exact = unembedding(&ends.unembedding, plan.exact)?;
        let drafting = match &ends.drafts {
            _ if *heads == 1 => None,
            Some(drafts) => Some(&drafts.unembedding),
            None => plan.drafts_differ().then_some(&ends.unembedding),
        };
        let drafting = drafting.map(|tensor| unembedding(tensor, plan.drafts)).transpose()?;
        // One of all tokens that lost nothing is the exact one.
        let drafting = drafting.filter(|it| ends.drafts.is_some() || it.product.is_rounded());
        let embedding = match sizes.tied {
            true => Embedding::Tied,
            false => Embedding::Own(T::read(&ends.embedding)?),
        };
        let Ends { drafts, embedding: read, norm: _, unembedding: packed } = ends;
        drop((read, packed));
        let drafts = drafts.map_or_else(Vec::new, |drafts| drafts.tokens);

        let mut weights = Vec::with_capacity(plan.trunk + heads);
        let mut dense = Vec::new();
        let mut told = plan.told.map(|blocks| Told::new(blocks, shape.dim));
        for part in parts {
            match part.computes() {
                Some(Computes::Block(block)) => {
                    let index = weights.len();
                    if let Some(told) = &mut told
                        && index < told.blocks
                        && plan.drafts_differ()
                    {
                        told.trunk.push(pack::<T>(block, plan.drafts)?);
                    }
                    weights.push(pack::<T>(block, plan.format(index))?);
                }
                Some(Computes::Informed(head)) => {
                    weights.push(pack::<T>(head.block, plan.drafts)?);
                    if let Some(told) = &mut told {
                        told.heads.push(pack_token(head, plan)?);
                    }
                }
                Some(Computes::Dense(head)) => dense.push(pack_dense(head, plan)?),
                None => {}
            }
        }
        if let Some(told) = &mut told
            && !told.trunk.iter().any(BlockWeights::is_rounded)
        {
            told.trunk.clear();
        }
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
        Ok(Self {
            embedding,
            dim: shape.dim,
            caches: weights
                .iter()
                .enumerate()
                .map(|(index, block)| {
                    let verifies = if index <= plan.trunk { others } else { 0 };
                    block.cache(sizes.context).with_others(verifies)
                })
                .collect(),
            weights,
            trunk: plan.trunk,
            dense,
            told,
            best: Vec::with_capacity(*heads),
            unembedding: exact,
            drafting_unembedding: drafting,
            drafts,
            drafted: Drafts::default(),
            places: Vec::with_capacity(MOST_OTHERS),
            certainty: 0.0,
            workspace,
            rows: 0,
            outputs: 0,
        })
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

    /// Notes head `index`'s draft, place `best` of what it chooses from, and at most `others` tokens
    /// that it likes next, by its logits in row `row` of the workspace.
    fn note(&mut self, index: usize, row: usize, best: u32, others: usize) -> u32 {
        let named = |place: u32| self.drafts.get(place as usize).copied().unwrap_or(place);
        let token = named(best);
        self.drafted.tokens.push(token);
        if others > 0 {
            let drafting = self.drafting_unembedding.as_ref().unwrap_or(&self.unembedding);
            let logits = &self.workspace.logits(row)[..drafting.product.outputs()];
            let (own, next) = runners_up(logits, best as usize, others);
            let before = self.certainty;
            self.drafted.others.extend(next.map(|(place, likelihood)| Other {
                head: index,
                token: named(place as u32),
                likelihood: before + likelihood,
            }));
            self.certainty += own;
        }
        token
    }

    /// Drafts one token after the other, each told to the heads behind.
    fn draft_told(&mut self, heads: usize, others: usize) {
        let known = self.caches[self.trunk].len();
        let mut token = self.best.last().copied().unwrap_or(0);
        for index in 1..=heads {
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
            token = self.note(index, 0, best, others);
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
    for (place, logit) in logits.iter().enumerate() {
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

fn pack_token<T: Weight>(head: Informed<'_>, plan: &Plan) -> Result<TokenWeights<T>> {
    let (dim, eps) = (plan.shape.dim, head.block.norm_eps);
    let hidden = T::read(head.hidden_proj)?;
    T::with(head.token_proj, |tokens| TokenWeights::pack(tokens, &hidden, dim, eps, plan.drafts))
}

fn pack_dense<T: Weight>(head: Dense<'_>, plan: &Plan) -> Result<DenseWeights<T>> {
    let bias = head.bias.map(T::read).transpose()?;
    T::with(head.weight, |weight| {
        DenseWeights::pack(weight, bias.as_deref(), plan.shape.dim, head.residual, plan.drafts)
    })
}

fn pack<T: Weight>(block: &Block, format: WeightFormat) -> Result<BlockWeights<T>> {
    let tensors = [
        &block.input_layernorm,
        &block.qkv_proj,
        &block.o_proj,
        &block.post_attention_layernorm,
        &block.gate_up_proj,
        &block.down_proj,
    ];
    let [a, b, c, d, e, f] = tensors.map(T::read);
    let (a, b, c, d, e, f) = (a?, b?, c?, d?, e?, f?);
    let bias = block.qkv_bias.as_ref().map(T::read).transpose()?;
    let tensors = BlockTensors {
        input_layernorm: &a,
        qkv_proj: &b,
        qkv_bias: bias.as_deref(),
        o_proj: &c,
        post_attention_layernorm: &d,
        gate_up_proj: &e,
        down_proj: &f,
    };
    Ok(BlockWeights::pack(&shape(block), &tensors, format))
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

    fn draft(&mut self, heads: usize, others: usize) -> Result<&Drafts> {
        let others = others.min(MOST_OTHERS);
        self.drafted.clear();
        self.certainty = 0.0;
        if self.told.is_some() {
            self.draft_told(heads, others);
        } else {
            let best = self.heads(heads, 1).to_vec();
            for (row, best) in best.into_iter().enumerate() {
                self.note(row + 1, row, best, others);
            }
        }
        self.drafted.leave(others);
        Ok(&self.drafted)
    }

    fn logits(&mut self, row: usize, into: &mut Vec<f64>) -> Result<()> {
        into.clear();
        into.extend(self.workspace.logits(row).iter().map(|logit| logit.to_f64()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foretoken_heads::{HeadsConfig, ModelConfig};

    fn model(architecture: Architecture, kind: Kind) -> MultiTokenModel {
        let heads = HeadsConfig::new("block", 1);
        let config = ModelConfig { architecture, heads, end_of_text: None };
        MultiTokenModel::new(&config, kind, Device::Cpu, 0).unwrap()
    }

    #[test]
    fn small_models_stay_on_one_thread_and_large_ones_share() {
        let small = model(Architecture::default(), Kind::Float);
        assert_eq!(useful_threads(&small, 8), 1);
        let sizes =
            Architecture { dim: 512, layers: 2, ffn: 4096, vocab: 8192, ..Architecture::default() };
        let large = model(sizes, Kind::Float);
        assert_eq!(useful_threads(&large, 2), 2);
        assert_eq!(useful_threads(&large, 0), 1);
    }

    #[test]
    fn a_model_in_bfloat16_is_left_to_the_tensors() {
        let model = model(Architecture::default(), Kind::BFloat16);
        assert!(build(&model, DecoderOptions::default()).unwrap().is_none());
    }
}
