//! A model's weights, packed for the CPU's own engine.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::ops::Deref;

use foretoken_heads::{
    Dense, DraftVocabulary, Head, Informed, ModelPieces, MultiTokenModel, Piece, Tap, UnreadModel,
};
use foretoken_kernels::cpu::{
    BlockShape, BlockTensors, BlockWeights, DenseWeights, PackedLinear, Real, RmsNorm,
    TokenWeights, Unembedding, WeightFormat,
};
use foretoken_trunk::{Architecture, Block};
use tch::{Device, Kind, Tensor};

use crate::cpu_told::Told;
use crate::{DecoderOptions, DraftPrecision, Result, WeightStorage};

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
pub(crate) struct Plan {
    pub(crate) sizes: Architecture,
    pub(crate) shape: BlockShape,
    /// Blocks of the trunk.
    pub(crate) trunk: usize,
    pub(crate) heads: usize,
    /// Blocks of the trunk that what the drafting heads are told goes through; `None` where they are
    /// told nothing.
    told: Option<usize>,
    pub(crate) threads: usize,
    /// Of what decides on the text.
    exact: WeightFormat,
    drafts: WeightFormat,
}

impl Plan {
    /// `None` for a model that the engine cannot run. It runs those in float32 or float64, on the CPU,
    /// whose drafting heads are all blocks over the trunk's output, told the tokens before their
    /// targets or not, or all matrices over the final hidden state.
    pub(crate) fn new(model: &MultiTokenModel, options: DecoderOptions) -> Option<Self> {
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
pub(crate) trait Weight: Real {
    const KIND: Kind;
}

impl Weight for f32 {
    const KIND: Kind = Kind::Float;
}

impl Weight for f64 {
    const KIND: Kind = Kind::Double;
}

/// A tensor's numbers, in order.
struct Numbers<T> {
    flat: Tensor,
    of: PhantomData<T>,
}

impl<T: Weight> Numbers<T> {
    fn of(tensor: &Tensor) -> Result<Self> {
        let flat = tensor.detach().f_to_kind(T::KIND)?.f_reshape([-1])?.f_contiguous()?;
        Ok(Self { flat, of: PhantomData })
    }
}

impl<T> Deref for Numbers<T> {
    type Target = [T];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[T] {
        if self.flat.numel() == 0 {
            return &[];
        }
        // SAFETY: a contiguous tensor of this kind on the CPU (of which the engine is) is `numel`
        // numbers at its address; it is held here, and nobody writes to it.
        unsafe {
            std::slice::from_raw_parts(self.flat.data_ptr().cast_const().cast(), self.flat.numel())
        }
    }
}

/// The rows that tokens go in as.
pub(crate) enum Embedding<T> {
    /// `[vocab, dim]`.
    Own(Vec<T>),
    /// Those of the unembedding.
    Tied,
}

/// A packed model.
pub(crate) struct Packed<T> {
    pub(crate) embedding: Embedding<T>,
    pub(crate) unembedding: Unembedding<T>,
    /// The same for drafts, where it is another.
    pub(crate) drafting_unembedding: Option<Unembedding<T>>,
    /// The tokens that its outputs stand for, where they are not all.
    pub(crate) drafts: Vec<u32>,
    /// The trunk's blocks and then the heads', as far as these are blocks.
    pub(crate) weights: Vec<BlockWeights<T>>,
    /// The drafting heads, where they are no blocks.
    pub(crate) dense: Vec<DenseWeights<T>>,
    /// Where the drafting heads are told tokens.
    pub(crate) told: Option<Told<T>>,
}

impl<T: Weight> Packed<T> {
    /// Packs a model that stays.
    pub(crate) fn of(plan: &Plan, model: &MultiTokenModel) -> Result<Self> {
        let blocks = model.trunk().blocks.iter().map(Part::Block);
        let parts = blocks.chain(model.heads().iter().map(Part::Head));
        let ends = Ends {
            embedding: model.trunk().embed_tokens.shallow_clone(),
            norm: model.final_norm().shallow_clone(),
            unembedding: model.unembedding().shallow_clone(),
            drafts: model.draft_vocabulary().map(Choices::of),
        };
        Self::new(plan, ends, parts.map(Ok))
    }

    /// Packs a model as it is read.
    pub(crate) fn read(plan: &Plan, model: UnreadModel) -> Result<Self> {
        let ModelPieces { embedding, final_norm, unembedding, draft_vocabulary, rest, .. } =
            model.pieces()?;
        let parts = rest.map(|piece| {
            Ok(match piece? {
                Piece::Block(block) => Part::Block(block),
                Piece::Head(head) => Part::Head(head),
            })
        });
        let drafts = draft_vocabulary.as_ref().map(Choices::of);
        drop(draft_vocabulary);
        let ends = Ends { embedding, norm: final_norm, unembedding, drafts };
        Self::new(plan, ends, parts)
    }

    /// Packs the ends first and lets their tensors go: the unembedding is the largest matrix, and
    /// in memory twice while it is packed.
    fn new<B: Borrow<Block>, H: Borrow<Box<dyn Head>>>(
        plan: &Plan,
        ends: Ends,
        parts: impl Iterator<Item = Result<Part<B, H>>>,
    ) -> Result<Self> {
        let Ends { embedding: rows, norm, unembedding, drafts } = ends;
        let norm = Numbers::of(&norm)?;
        let pack_unembedding = |tensor: &Tensor, format| -> Result<Unembedding<T>> {
            let outputs = tensor.size2()?.0 as usize;
            let weights = Numbers::of(tensor)?;
            Ok(Unembedding {
                norm: RmsNorm::new(&norm, plan.sizes.norm_eps),
                product: PackedLinear::pack(&weights, outputs, plan.shape.dim, format),
            })
        };
        let exact = pack_unembedding(&unembedding, plan.exact)?;
        let drafting = match &drafts {
            _ if plan.heads == 1 => None,
            Some(drafts) => Some(&drafts.unembedding),
            None => (plan.drafts_differ() && exact.product.is_full()).then_some(&unembedding),
        };
        let drafting = drafting.map(|tensor| pack_unembedding(tensor, plan.drafts)).transpose()?;
        drop(unembedding);
        let embedding = match plan.sizes.tied {
            true => Embedding::Tied,
            false => Embedding::Own(Numbers::of(&rows)?.to_vec()),
        };
        drop(rows);
        let mut packed = Self {
            embedding,
            unembedding: exact,
            drafting_unembedding: drafting,
            drafts: drafts.map_or_else(Vec::new, |drafts| drafts.tokens),
            weights: Vec::with_capacity(plan.trunk + plan.heads),
            dense: Vec::new(),
            told: plan.told.map(|blocks| Told::new(blocks, plan.shape.dim)),
        };
        for part in parts {
            packed.add(plan, &part?)?;
        }
        Ok(packed)
    }

    /// Packs the next part.
    fn add<B: Borrow<Block>, H: Borrow<Box<dyn Head>>>(
        &mut self,
        plan: &Plan,
        part: &Part<B, H>,
    ) -> Result<()> {
        match part.computes() {
            Some(Computes::Block(block)) => {
                let index = self.weights.len();
                let exact = pack::<T>(block, plan.format(index))?;
                if let Some(told) = self.told.as_mut().filter(|told| index < told.blocks)
                    && plan.drafts_differ()
                    // The first block speaks for all.
                    && (if index == 0 { exact.is_full() } else { !told.trunk.is_empty() })
                {
                    told.trunk.push(pack::<T>(block, plan.drafts)?);
                }
                self.weights.push(exact);
            }
            Some(Computes::Informed(head)) => {
                self.weights.push(pack::<T>(head.block, plan.drafts)?);
                if let Some(told) = &mut self.told {
                    told.heads.push(pack_token(head, plan)?);
                }
            }
            Some(Computes::Dense(head)) => self.dense.push(pack_dense(head, plan)?),
            None => {}
        }
        Ok(())
    }
}

fn pack_token<T: Weight>(head: Informed<'_>, plan: &Plan) -> Result<TokenWeights<T>> {
    let (dim, eps) = (plan.shape.dim, head.block.norm_eps);
    let [tokens, hidden] = [head.token_proj, head.hidden_proj].map(Numbers::of);
    Ok(TokenWeights::pack(&tokens?, &hidden?, dim, eps, plan.drafts))
}

fn pack_dense<T: Weight>(head: Dense<'_>, plan: &Plan) -> Result<DenseWeights<T>> {
    let (weight, bias) = (Numbers::of(head.weight)?, head.bias.map(Numbers::of).transpose()?);
    let dim = plan.shape.dim;
    Ok(DenseWeights::pack(&weight, bias.as_deref(), dim, head.residual, plan.drafts))
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
    let [a, b, c, d, e, f] = tensors.map(Numbers::of);
    let (a, b, c, d, e, f) = (a?, b?, c?, d?, e?, f?);
    let bias = block.qkv_bias.as_ref().map(Numbers::of).transpose()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use foretoken_heads::{HeadsConfig, ModelConfig};

    fn model(architecture: Architecture, kind: Kind) -> MultiTokenModel {
        let heads = HeadsConfig::new("block", 1);
        let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
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
        assert!(Plan::new(&model, DecoderOptions::default()).is_none());
    }
}
