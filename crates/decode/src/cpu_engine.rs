//! The CPU's own engine: blocks in pure Rust, the same bits for a row in every pass.

use foretoken_heads::{MultiTokenModel, Tap};
use foretoken_kernels::cpu::{
    BlockCache, BlockShape, BlockTensors, BlockWeights, Blocks, PackedLinear, Pass, Real, RmsNorm,
    Room, Unembedding, WeightFormat, Workspace,
};
use foretoken_trunk::Block;
use tch::{Device, Kind, Tensor};

use crate::engine::Engine;
use crate::{DecoderOptions, DraftPrecision, Result};

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

/// The engine for a model that it can run: one in float32 or float64, on the CPU, all of whose
/// heads are blocks over the trunk's output.
pub(crate) fn build(
    model: &MultiTokenModel,
    options: DecoderOptions,
) -> Result<Option<Box<dyn Engine>>> {
    let Some(blocks) = blocks(model) else { return Ok(None) };
    let threads = options.threads.unwrap_or_else(|| {
        useful_threads(model, usize::try_from(tch::get_num_threads()).unwrap_or(1))
    });
    let drafts = match options.drafts {
        DraftPrecision::BFloat16 => WeightFormat::BFloat16,
        DraftPrecision::Full => WeightFormat::Full,
    };
    Ok(match (model.device(), model.kind()) {
        (Device::Cpu, Kind::Float) => {
            Some(Box::new(CpuEngine::<f32>::new(model, &blocks, threads, drafts)?))
        }
        (Device::Cpu, Kind::Double) => {
            Some(Box::new(CpuEngine::<f64>::new(model, &blocks, threads, drafts)?))
        }
        _ => None,
    })
}

/// The trunk's blocks and then the heads', where they are all of one shape.
fn blocks(model: &MultiTokenModel) -> Option<Vec<&Block>> {
    let heads = model.heads().iter().map(|head| match head.tap() {
        Tap::TrunkOutput => head.as_block(),
        Tap::FinalHidden => None,
    });
    let blocks: Vec<&Block> =
        model.trunk().blocks.iter().map(Some).chain(heads).collect::<Option<_>>()?;
    let first = shape(blocks.first()?);
    blocks.iter().all(|block| shape(block) == first).then_some(blocks)
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
    fn read(tensor: &Tensor) -> Result<Vec<Self>>;
}

macro_rules! weight {
    ($t:ty, $kind:expr) => {
        impl Weight for $t {
            fn read(tensor: &Tensor) -> Result<Vec<Self>> {
                let flat = tensor.detach().f_reshape([-1])?.f_to_kind($kind)?;
                Ok(Vec::try_from(flat)?)
            }
        }
    };
}

weight!(f32, Kind::Float);
weight!(f64, Kind::Double);

struct CpuEngine<T> {
    /// `[vocab, dim]`.
    embedding: Vec<T>,
    dim: usize,
    /// The trunk's blocks and then the heads'.
    weights: Vec<BlockWeights<T>>,
    caches: Vec<BlockCache<T>>,
    trunk: usize,
    unembedding: Unembedding<T>,
    /// The same for drafts, where it is in another format.
    drafting_unembedding: Option<Unembedding<T>>,
    workspace: Workspace<T>,
    /// Rows of the last pass that are still there.
    rows: usize,
}

impl<T: Weight> CpuEngine<T> {
    fn new(
        model: &MultiTokenModel,
        blocks: &[&Block],
        threads: usize,
        drafts: WeightFormat,
    ) -> Result<Self> {
        let sizes = &model.config().architecture;
        let heads = model.heads().len();
        let trunk = blocks.len() - heads;
        let weights = blocks.iter().enumerate().map(|(i, block)| {
            pack::<T>(block, if i <= trunk { WeightFormat::Full } else { drafts })
        });
        let weights = weights.collect::<Result<Vec<_>>>()?;
        let shape = shape(blocks[0]);
        let room = Room {
            rows: PREFILL_ROWS.max(heads),
            outputs: heads,
            positions: sizes.context,
            threads,
        };
        let norm = T::read(model.final_norm())?;
        let product = T::read(model.unembedding())?;
        let unembedding = |format| Unembedding {
            norm: RmsNorm::new(&norm, sizes.norm_eps),
            product: PackedLinear::pack(&product, sizes.vocab, shape.dim, format),
        };
        let other = heads > 1 && drafts != WeightFormat::Full;
        Ok(Self {
            embedding: T::read(&model.trunk().embed_tokens)?,
            dim: shape.dim,
            caches: weights.iter().map(|block| block.cache(sizes.context)).collect(),
            weights,
            trunk,
            unembedding: unembedding(WeightFormat::Full),
            drafting_unembedding: other.then(|| unembedding(drafts)),
            workspace: Workspace::new(&shape, sizes.vocab, sizes.rope_theta, room),
            rows: 0,
        })
    }

    /// Passes `tokens` through the trunk and head 0, the last `outputs` of them the whole way.
    fn pass(&mut self, tokens: &[u32], outputs: usize) -> &[u32] {
        for (r, &token) in tokens.iter().enumerate() {
            let embedded = &self.embedding[token as usize * self.dim..][..self.dim];
            self.workspace.input(r).copy_from_slice(embedded);
        }
        self.rows = tokens.len();
        let (trunk, heads) = self.weights.split_at(self.trunk);
        let (trunk_caches, head_caches) = self.caches.split_at_mut(self.trunk);
        self.workspace.run(Pass {
            rows: tokens.len(),
            trunk: Blocks { weights: trunk, caches: trunk_caches },
            heads: Blocks { weights: &heads[..1], caches: &mut head_caches[..1] },
            outputs,
            unembedding: &self.unembedding,
        })
    }

    /// Passes the trunk's output on to heads 1 to `heads`, its last `outputs` rows the whole way.
    fn heads(&mut self, heads: usize, outputs: usize) -> &[u32] {
        let drafting = self.trunk + 1..self.trunk + 1 + heads;
        self.workspace.run(Pass {
            rows: self.rows,
            trunk: Blocks { weights: &[], caches: &mut [] },
            heads: Blocks {
                weights: &self.weights[drafting.clone()],
                caches: &mut self.caches[drafting],
            },
            outputs,
            unembedding: self.drafting_unembedding.as_ref().unwrap_or(&self.unembedding),
        })
    }
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
    let tensors = BlockTensors {
        input_layernorm: &a,
        qkv_proj: &b,
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
    }

    fn prefill(&mut self, tokens: &[u32], drafting: usize) -> Result<u32> {
        let chunk = self.workspace.most_rows();
        let last = tokens.len().saturating_sub(1) / chunk * chunk;
        for tokens in tokens[..last].chunks(chunk) {
            self.pass(tokens, 0);
            if drafting > 0 {
                self.heads(drafting, 0);
            }
        }
        Ok(self.pass(&tokens[last..], 1).first().copied().unwrap_or(0))
    }

    fn verify(&mut self, tokens: &[u32]) -> Result<&[u32]> {
        Ok(self.pass(tokens, tokens.len()))
    }

    fn keep(&mut self, rows: usize) {
        let kept = self.caches[0].len() - (self.rows - rows);
        for cache in &mut self.caches[..=self.trunk] {
            cache.truncate(kept);
        }
        self.rows = rows;
    }

    fn draft(&mut self, heads: usize) -> Result<&[u32]> {
        Ok(self.heads(heads, 1))
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
    use foretoken_trunk::Architecture;

    fn model(architecture: Architecture, kind: Kind) -> MultiTokenModel {
        let heads = HeadsConfig { kind: "block".into(), count: 1 };
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
