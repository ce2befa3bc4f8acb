//! A Llama block for a few rows on the CPU, in pure Rust: what decoding runs on.
//!
//! Decoding passes one row through a model, or a few: the last token and the drafts of the next
//! ones. Libraries made for large matrices spend most of such a pass outside of their products,
//! and round a row differently alone and among others, so that speculation changes the text where
//! two tokens are nearly equal. Here a pass costs what reading its weights costs, and **a row has
//! the same bits in every pass**: alone, among others, on any number of threads, behind any cut of
//! the text before it. (Another vector unit, another processor, may round otherwise.) It comes
//! from one rule: each sum of a row runs over its terms in one order that is fixed by the model's
//! shape and the row's position. Rows and columns share registers, caches and threads, never a
//! sum.
//!
//! - [`PackedLinear`]: a weight matrix in panels, each read from front to back by tiles of a few rows
//!   times four vectors, which take turns where there are more rows. [`WeightFormat::Compact`] finds
//!   out which weights are numbers of fewer bits, or blocks of levels of 4 or 8, as those of
//!   published models are, and reads these with the same bits coming out;
//!   [`WeightFormat::BFloat16`] halves the bytes of others where a result may be off, as drafts may.
//! - [`RmsNorm`] and [`BlockCache`]: keys lie in blocks of 16 positions, so that a query times
//!   sixteen keys is a sum of vectors too.
//! - [`BlockWeights`]: a block packed for this. [`Workspace::run`] takes rows through a trunk and
//!   its heads in one [`Pass`], without allocating: the trunk's blocks one after the other, then
//!   heads that each read the trunk's output, of which only the last rows need to go the whole
//!   way, then the unembedding and the best token of each row. [`DenseWeights`] are heads without
//!   attention, over the final norm; [`TokenWeights`] tell heads the tokens before their targets.
//!
//! The threads of a workspace share columns and attention heads, between barriers that take a few
//! hundred nanoseconds.
//!
//! Vector units are chosen at run time: AVX-512, AVX2 with fused multiply-add, or what the target
//! has. A kernel is written once over a unit's operations and compiled for each.
//!
//! ```
//! use foretoken_kernels::cpu::{
//!     BlockShape, BlockTensors, BlockWeights, Blocks, PackedLinear, Pass, RmsNorm, Room,
//!     Unembedding, WeightFormat, Workspace,
//! };
//!
//! let shape =
//!     BlockShape { dim: 4, attention_heads: 2, kv_heads: 1, head_dim: 2, ffn: 3, norm_eps: 1e-5 };
//! let wave = |len: usize| (0..len).map(|i| (i as f32).sin()).collect::<Vec<f32>>();
//! let [norm, qkv, out, gate_up, down] = [4, 8 * 4, 4 * 4, 6 * 4, 4 * 3].map(wave);
//! let tensors = BlockTensors {
//!     input_layernorm: &norm,
//!     qkv_proj: &qkv,
//!     qkv_bias: None,
//!     o_proj: &out,
//!     post_attention_layernorm: &norm,
//!     gate_up_proj: &gate_up,
//!     down_proj: &down,
//! };
//! // One block, as head 0 of a model without a trunk, over a vocabulary of five.
//! let head = [BlockWeights::pack(&shape, &tensors, WeightFormat::Full)];
//! let unembedding = Unembedding {
//!     norm: RmsNorm::new(&norm, 1e-5),
//!     product: PackedLinear::pack(&wave(5 * 4), 5, 4, WeightFormat::Full),
//! };
//! let room = Room { rows: 3, outputs: 3, positions: 16, threads: 1 };
//! let frequencies = foretoken_kernels::rotary_frequencies(shape.head_dim, 10_000.0);
//! let mut workspace = Workspace::new(&shape, 5, &frequencies, room);
//! let mut run = |rows: &[[f32; 4]], caches: &mut [_]| {
//!     for (r, row) in rows.iter().enumerate() {
//!         workspace.input(r).copy_from_slice(row);
//!     }
//!     workspace.run(Pass {
//!         rows: rows.len(),
//!         others: &[],
//!         trunk: Blocks { weights: &[], caches: &mut [] },
//!         heads: Blocks { weights: &head, caches },
//!         outputs: rows.len(),
//!         unembedding: &unembedding,
//!     });
//!     workspace.logits(rows.len() - 1).to_vec()
//! };
//!
//! let text = [[1.0, 0.0, 0.5, 2.0], [0.0, 1.0, -1.0, 0.3], [0.2, 0.1, 0.7, -0.4]];
//! let together = run(&text, &mut [head[0].cache(16)]);
//! let mut cache = [head[0].cache(16)];
//! let one_by_one = text.map(|row| run(&[row], &mut cache));
//! assert_eq!(together, one_by_one[2]);
//! ```

// Kernels work on addresses (each block says why it may), have to be inlined into the function that
// is compiled for a vector unit, and index several arrays of registers by one constant.
#![allow(unsafe_code, clippy::inline_always, clippy::needless_range_loop)]

mod aligned;
mod attention;
mod block;
mod cache;
mod dense;
mod dispatch;
mod levels;
mod linear;
mod logits;
mod norm;
mod pairs;
mod pass;
mod product;
mod real;
#[cfg(test)]
mod reference;
mod rotary;
mod simd;
mod team;
#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests;
mod tile;
mod told;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use aligned::Rows;
pub use block::{BlockShape, BlockTensors, BlockWeights};
pub use cache::BlockCache;
pub use dense::DenseWeights;
pub use linear::{PackedLinear, WeightFormat};
pub use logits::{argmax, top_gap};
pub use norm::RmsNorm;
pub use pass::{Blocks, Pass, Room, Unembedding, Workspace};
pub use real::Real;
pub use told::TokenWeights;
