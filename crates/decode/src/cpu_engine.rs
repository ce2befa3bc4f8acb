//! The CPU's own engine: blocks in pure Rust, the same bits for a row in every pass.

use foretoken_heads::{MultiTokenModel, Tap};
use foretoken_kernels::cpu::{
    BlockCache, BlockShape, BlockTensors, BlockWeights, Blocks, PackedLinear, Pass, Real, RmsNorm,
    Room, Unembedding, Workspace,
};
use foretoken_trunk::Block;
use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::engine::Engine;

/// Rows of a prompt that go through the model together: a multiple of the kernels' tile of 6, and
/// few enough for their activations to stay in the cache.
const PREFILL_ROWS: usize = 48;

/// Bytes of weights a thread should have to read in a pass: below, waiting for each other costs
/// more than sharing saves.
const BYTES_PER_THREAD: usize = 8 << 20;

/// How many of `most` threads this model gains from.
pub(crate) fn useful_threads(model: &MultiTokenModel, most: usize) -> usize {
    let sizes = &model.config().architecture;
    let heads = sizes.attention_heads + sizes.kv_heads;
    let block = sizes.dim * (2 * heads * sizes.head_width() + 3 * sizes.ffn);
    let blocks = model.trunk().blocks.len() + 1;
    let bytes = size_of::<f32>() * (blocks * block + sizes.vocab * sizes.dim);
    (bytes / BYTES_PER_THREAD).clamp(1, most.max(1))
}

/// The engine for a model that it can run: one in float32 or float64, on the CPU, all of whose
/// heads are blocks over the trunk's output.
pub(crate) fn build(model: &MultiTokenModel, threads: usize) -> Result<Option<Box<dyn Engine>>> {
    let Some(blocks) = blocks(model) else { return Ok(None) };
    Ok(match (model.device(), model.kind()) {
        (Device::Cpu, Kind::Float) => {
            Some(Box::new(CpuEngine::<f32>::new(model, &blocks, threads)?))
        }
        (Device::Cpu, Kind::Double) => {
            Some(Box::new(CpuEngine::<f64>::new(model, &blocks, threads)?))
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
    workspace: Workspace<T>,
    /// Rows of the last pass that are still there.
    rows: usize,
}

impl<T: Weight> CpuEngine<T> {
    fn new(model: &MultiTokenModel, blocks: &[&Block], threads: usize) -> Result<Self> {
        let sizes = &model.config().architecture;
        let weights = blocks.iter().map(|block| pack(block)).collect::<Result<Vec<_>>>()?;
        let shape = shape(blocks[0]);
        let heads = model.heads().len();
        let room = Room {
            rows: PREFILL_ROWS.max(heads),
            outputs: heads,
            positions: sizes.context,
            threads,
        };
        Ok(Self {
            embedding: T::read(&model.trunk().embed_tokens)?,
            dim: shape.dim,
            caches: weights.iter().map(|block| block.cache(sizes.context)).collect(),
            trunk: weights.len() - heads,
            unembedding: Unembedding {
                norm: RmsNorm::new(&T::read(model.final_norm())?, sizes.norm_eps),
                product: PackedLinear::pack(&T::read(model.unembedding())?, sizes.vocab, shape.dim),
            },
            workspace: Workspace::new(&shape, sizes.vocab, sizes.rope_theta, room),
            weights,
            rows: 0,
        })
    }

    /// Passes `tokens` through the trunk and `heads` heads, the last `outputs` of them the whole
    /// way.
    fn pass(&mut self, tokens: &[u32], heads: usize, outputs: usize) -> &[u32] {
        for (r, &token) in tokens.iter().enumerate() {
            let embedded = &self.embedding[token as usize * self.dim..][..self.dim];
            self.workspace.input(r).copy_from_slice(embedded);
        }
        self.rows = tokens.len();
        let (trunk, head_weights) = self.weights.split_at(self.trunk);
        let (trunk_caches, head_caches) = self.caches.split_at_mut(self.trunk);
        self.workspace.run(Pass {
            rows: tokens.len(),
            trunk: Blocks { weights: trunk, caches: trunk_caches },
            heads: Blocks { weights: &head_weights[..heads], caches: &mut head_caches[..heads] },
            outputs,
            unembedding: &self.unembedding,
        })
    }
}

fn pack<T: Weight>(block: &Block) -> Result<BlockWeights<T>> {
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
    Ok(BlockWeights::pack(
        &shape(block),
        &BlockTensors {
            input_layernorm: &a,
            qkv_proj: &b,
            o_proj: &c,
            post_attention_layernorm: &d,
            gate_up_proj: &e,
            down_proj: &f,
        },
    ))
}

impl<T: Weight> Engine for CpuEngine<T> {
    fn reset(&mut self) {
        self.caches.iter_mut().for_each(|cache| cache.truncate(0));
    }

    fn prefill(&mut self, tokens: &[u32], heads: usize) -> Result<&[u32]> {
        let chunk = self.workspace.most_rows();
        let last = tokens.len().saturating_sub(1) / chunk * chunk;
        for tokens in tokens[..last].chunks(chunk) {
            self.pass(tokens, heads, 0);
        }
        Ok(self.pass(&tokens[last..], heads, 1))
    }

    fn verify(&mut self, tokens: &[u32]) -> Result<&[u32]> {
        Ok(self.pass(tokens, 1, tokens.len()))
    }

    fn keep(&mut self, rows: usize) {
        let kept = self.caches[0].len() - (self.rows - rows);
        for cache in &mut self.caches[..=self.trunk] {
            cache.truncate(kept);
        }
        self.rows = rows;
    }

    fn draft(&mut self, heads: usize) -> Result<&[u32]> {
        let drafting = self.trunk + 1..self.trunk + 1 + heads;
        Ok(self.workspace.run(Pass {
            rows: self.rows,
            trunk: Blocks { weights: &[], caches: &mut [] },
            heads: Blocks {
                weights: &self.weights[drafting.clone()],
                caches: &mut self.caches[drafting],
            },
            outputs: 1,
            unembedding: &self.unembedding,
        }))
    }

    fn logits(&mut self, row: usize, into: &mut Vec<f64>) -> Result<()> {
        into.clear();
        into.extend(self.workspace.logits(row).iter().map(|logit| logit.to_f64()));
        Ok(())
    }
}
