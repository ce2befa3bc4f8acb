//! Decoding's own kernels for the CPU.
// Kernels work on addresses (each block says why it may), have to be inlined into the function that
// is compiled for a vector unit, and index several arrays of registers by one constant.
#![allow(unsafe_code, clippy::inline_always, clippy::needless_range_loop)]
mod aligned;
mod attention;
mod block;
mod cache;
mod dispatch;
mod linear;
mod logits;
mod norm;
mod pass;
mod real;
mod rotary;
mod simd;
mod team;
#[cfg(test)]
#[allow(clippy::float_cmp)]
mod tests;
mod tile;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use aligned::Rows;
pub use block::{BlockShape, BlockTensors, BlockWeights, Scratch};
pub use cache::BlockCache;
pub use dispatch::Isa;
pub use linear::PackedLinear;
pub use logits::{argmax, top_gap};
pub use norm::RmsNorm;
pub use pass::{Blocks, Pass, Room, Unembedding, Workspace};
pub use real::Real;
pub use rotary::RotaryTable;
pub use team::Team;
