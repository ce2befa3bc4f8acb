//! One Llama block for a few new rows, from its input to its output without an allocation.

use super::aligned::{Repeated, Rows, View};
use super::attention::Attention;
use super::cache::{BlockCache, CacheView, Places};
use super::dispatch::Isa;
use super::linear::{PackedLinear, WeightFormat};
use super::norm::RmsNorm;
use super::real::Real;
use super::rotary::{RotaryTable, Turn};
use super::team::Worker;
use super::tile::MOST_ROWS;

/// The sizes of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockShape {
    /// Values of a row.
    pub dim: usize,
    /// Query heads.
    pub attention_heads: usize,
    /// Key and value heads; each serves `attention_heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Dimensions of a head; even.
    pub head_dim: usize,
    /// Width of the gated layer.
    pub ffn: usize,
    /// What the norms add to the mean of the squares.
    pub norm_eps: f64,
}

/// The tensors of a block, each row by row.
#[derive(Clone, Copy, Debug)]
pub struct BlockTensors<'t, T> {
    /// `[dim]`.
    pub input_layernorm: &'t [T],
    /// `[(attention_heads + 2 · kv_heads) · head_dim, dim]`: queries, keys, values.
    pub qkv_proj: &'t [T],
    /// `[(attention_heads + 2 · kv_heads) · head_dim]`, for models that add one.
    pub qkv_bias: Option<&'t [T]>,
    /// `[dim, attention_heads · head_dim]`.
    pub o_proj: &'t [T],
    /// `[dim]`.
    pub post_attention_layernorm: &'t [T],
    /// `[2 · ffn, dim]`: gates, then ups.
    pub gate_up_proj: &'t [T],
    /// `[dim, ffn]`.
    pub down_proj: &'t [T],
}

/// A block, packed for the products of [`super::Pass`].
pub struct BlockWeights<T> {
    pub(super) shape: BlockShape,
    input_norm: RmsNorm<T>,
    query: PackedLinear<T>,
    key_value: PackedLinear<T>,
    /// Biases of queries and of keys and values.
    biases: Option<(Repeated<T>, Repeated<T>)>,
    output: PackedLinear<T>,
    post_norm: RmsNorm<T>,
    gate_up: PackedLinear<T>,
    down: PackedLinear<T>,
    isa: Isa,
}

impl<T: Real> BlockWeights<T> {
    /// Packs a block.
    ///
    /// # Panics
    /// Where a tensor's length or the shape itself does not fit.
    pub fn pack(shape: &BlockShape, tensors: &BlockTensors<'_, T>, format: WeightFormat) -> Self {
        Self::pack_for(Isa::detect(), shape, tensors, format)
    }

    pub(super) fn pack_for(
        isa: Isa,
        shape: &BlockShape,
        tensors: &BlockTensors<'_, T>,
        format: WeightFormat,
    ) -> Self {
        let BlockShape { dim, attention_heads, kv_heads, head_dim, ffn, norm_eps } = *shape;
        assert!(
            kv_heads > 0 && attention_heads % kv_heads == 0,
            "{kv_heads} key and value heads cannot serve {attention_heads} query heads"
        );
        assert_eq!(tensors.input_layernorm.len(), dim, "input_layernorm has another size");
        assert_eq!(
            tensors.post_attention_layernorm.len(),
            dim,
            "post_attention_layernorm has another size"
        );
        let (q, kv) = (attention_heads * head_dim, 2 * kv_heads * head_dim);
        assert_eq!(tensors.qkv_proj.len(), (q + kv) * dim, "qkv_proj has another size");
        let (query, key_value) = tensors.qkv_proj.split_at(q * dim);
        let biases = tensors.qkv_bias.map(|bias| {
            assert_eq!(bias.len(), q + kv, "qkv_bias has another size");
            (Repeated::new(&bias[..q]), Repeated::new(&bias[q..]))
        });
        Self {
            shape: *shape,
            input_norm: RmsNorm::new_for(isa, tensors.input_layernorm, norm_eps),
            query: PackedLinear::pack_for(isa, query, q, dim, format),
            key_value: PackedLinear::pack_for(isa, key_value, kv, dim, format),
            biases,
            output: PackedLinear::pack_for(isa, tensors.o_proj, dim, q, format),
            post_norm: RmsNorm::new_for(isa, tensors.post_attention_layernorm, norm_eps),
            gate_up: PackedLinear::pack_gated(isa, tensors.gate_up_proj, ffn, dim, format),
            down: PackedLinear::pack_for(isa, tensors.down_proj, dim, ffn, format),
            isa,
        }
    }

    /// The sizes of the block.
    pub fn shape(&self) -> &BlockShape {
        &self.shape
    }

    /// An empty cache for this block.
    pub fn cache(&self, capacity: usize) -> BlockCache<T> {
        BlockCache::new(self.shape.kv_heads, self.shape.head_dim, capacity)
    }

    /// Whether any of the matrices is in the type that is computed in, although it has smaller forms.
    pub fn is_full(&self) -> bool {
        let matrices = [&self.query, &self.key_value, &self.output, &self.gate_up, &self.down];
        matrices.iter().any(|matrix| matrix.is_full())
    }

    /// Bytes of the packed matrices.
    pub fn bytes(&self) -> usize {
        [&self.query, &self.key_value, &self.output, &self.gate_up, &self.down]
            .map(PackedLinear::bytes)
            .iter()
            .sum()
    }

    /// This worker's part of the block: the rows of `x` at their places behind the positions of
    /// `cache`. All of them leave their keys and values there; the last `outputs` rows (all, where
    /// some stand in place of others) go the whole way, to the first rows of `y`, which may be `x`
    /// where all rows do.
    ///
    /// Ends without a barrier where `outputs` > 0: no other worker may yet read `y`.
    ///
    /// # Safety
    /// Every worker of the team calls it with the same arguments; the views, the cache and the
    /// scratch space have room for the rows, the rotary table reaches them, and all fit the shape and
    /// belong to the team alone.
    pub(super) unsafe fn part(&self, worker: &Worker<'_>, call: &BlockCall<'_, T>) {
        let BlockCall { x, y, places, outputs, cache, rotary, scratch } = *call;
        let rows = places.count();
        let BlockShape { attention_heads, kv_heads, .. } = self.shape;
        let skip = rows - outputs;
        let normed = scratch.normed(worker);
        // SAFETY: the caller's promises. Between two barriers each worker writes to its own
        // columns, heads or buffers only, and reads what was written before the last barrier.
        unsafe {
            self.input_norm.rows(x, normed, rows);
            self.project(worker, normed, scratch, rows, outputs);
            worker.barrier();

            let heads = worker.share(kv_heads);
            let key_turn = Turn {
                x: scratch.key_value,
                places,
                heads: (heads.start, heads.end),
                factor: T::ONE,
            };
            rotary.turn(self.isa, key_turn);
            for head in heads {
                cache.append(scratch.key_value, places, head, kv_heads);
            }
            let heads = worker.share(attention_heads);
            let query_turn = Turn {
                x: scratch.query,
                places: places.skip(skip),
                heads: (heads.start, heads.end),
                factor: self.query_factor(),
            };
            rotary.turn(self.isa, query_turn);
            worker.barrier();
            if outputs == 0 {
                return;
            }

            let attention = Attention {
                queries: scratch.query,
                output: scratch.attended,
                cache,
                places: places.skip(skip),
                heads: (heads.start, heads.end),
                group: attention_heads / kv_heads,
                scores: scratch.scores(worker),
            };
            attention.run(self.isa);
            worker.barrier();

            let base = x.skip(skip);
            self.output.add_part(worker, scratch.attended, base, y, outputs);
            worker.barrier();

            self.post_norm.rows(y, normed, outputs);
            self.gate_up.apply_gated(worker, normed, scratch.gated, outputs);
            worker.barrier();
            self.down.add_part(worker, scratch.gated, y, y, outputs);
        }
    }

    /// This worker's columns of keys and values for all `rows`, of queries for the last `outputs`.
    ///
    /// # Safety
    /// As for [`BlockWeights::part`].
    unsafe fn project(
        &self,
        worker: &Worker<'_>,
        normed: View<T>,
        scratch: ScratchView<T>,
        rows: usize,
        outputs: usize,
    ) {
        let (query, key_value) = (scratch.query, scratch.key_value);
        // SAFETY: the caller's promise, handed on; a bias is read only.
        unsafe {
            let last = normed.skip(rows - outputs);
            match &self.biases {
                None => {
                    self.key_value.apply_part(worker, normed, key_value, rows);
                    if outputs > 0 {
                        self.query.apply_part(worker, last, query, outputs);
                    }
                }
                Some((query_bias, bias)) => {
                    self.key_value.add_part(worker, normed, bias.view(), key_value, rows);
                    if outputs > 0 {
                        self.query.add_part(worker, last, query_bias.view(), query, outputs);
                    }
                }
            }
        }
    }

    /// log₂(e) / √d: see [`Attention`].
    fn query_factor(&self) -> T {
        T::from_f64(std::f64::consts::LOG2_E / (self.shape.head_dim as f64).sqrt())
    }
}

/// The arguments of [`BlockWeights::part`].
#[derive(Clone, Copy)]
pub(super) struct BlockCall<'c, T> {
    pub(super) x: View<T>,
    pub(super) y: View<T>,
    pub(super) places: Places<'c>,
    pub(super) outputs: usize,
    pub(super) cache: CacheView<T>,
    pub(super) rotary: &'c RotaryTable<T>,
    pub(super) scratch: ScratchView<T>,
}

/// Room for what lies between a block's input and its output.
pub(super) struct Scratch<T> {
    query: Rows<T>,
    key_value: Rows<T>,
    attended: Rows<T>,
    gated: Rows<T>,
    /// For each thread as many rows as go through a block at once.
    normed: Rows<T>,
    /// For each thread a row for each query that is compared with the keys together.
    scores: Rows<T>,
    shape: BlockShape,
    rows: usize,
    positions: usize,
    threads: usize,
}

impl<T: Real> Scratch<T> {
    /// Room for `rows` rows at once and `positions` positions in all, on `threads` threads.
    pub(super) fn new(shape: &BlockShape, rows: usize, positions: usize, threads: usize) -> Self {
        let queries = shape.attention_heads * shape.head_dim;
        Self {
            query: Rows::new(rows, queries),
            key_value: Rows::new(rows, 2 * shape.kv_heads * shape.head_dim),
            attended: Rows::new(rows, queries),
            gated: Rows::new(rows, shape.ffn),
            normed: Rows::new(threads * rows, shape.dim),
            scores: Rows::new(threads * MOST_ROWS, positions),
            shape: *shape,
            rows,
            positions,
            threads,
        }
    }

    /// Whether it has room for such a pass.
    pub(super) fn fits(&self, rows: usize, positions: usize, threads: usize) -> bool {
        rows <= self.rows && positions <= self.positions && threads <= self.threads
    }

    /// The shape that it is made for.
    pub(super) fn shape(&self) -> &BlockShape {
        &self.shape
    }

    pub(super) fn view(&self) -> ScratchView<T> {
        ScratchView {
            query: self.query.view(),
            key_value: self.key_value.view(),
            attended: self.attended.view(),
            gated: self.gated.view(),
            normed: self.normed.view(),
            scores: self.scores.view(),
            rows: self.rows,
        }
    }
}

/// Where the scratch space is.
#[derive(Clone, Copy)]
pub(super) struct ScratchView<T> {
    query: View<T>,
    key_value: View<T>,
    attended: View<T>,
    gated: View<T>,
    normed: View<T>,
    scores: View<T>,
    rows: usize,
}

impl<T: Real> ScratchView<T> {
    /// This worker's own rows for norms.
    pub(super) fn normed(&self, worker: &Worker<'_>) -> View<T> {
        // SAFETY: the buffer has `rows` rows for each worker.
        unsafe { self.normed.skip(worker.index() * self.rows) }
    }

    /// This worker's own rows for scores.
    fn scores(&self, worker: &Worker<'_>) -> View<T> {
        // SAFETY: the buffer has `MOST_ROWS` rows for each worker.
        unsafe { self.scores.skip(worker.index() * MOST_ROWS) }
    }
}
