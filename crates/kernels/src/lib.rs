//! Tensor functions of multi-token prediction, with no parameters of their own.
//!
//! Each function takes and returns libtorch tensors and stands beside a plain `…_reference` in
//! libtorch's own operators, which defines it and serves every kind and device. On the CPU in
//! float32 the functions are fused: one pass over the data each way, on libtorch's own threads; in
//! half precision they go the same way in float32, and only products are of the half kind.
//!
//! - [`rms_norm`], [`swiglu`], [`causal_attention`] with [`Rotary`]: the parts of a Llama block.
//! - [`KvCache`] and [`cached_attention`]: the same attention, position by position.
//! - [`linear_cross_entropy`]: hidden states to loss and both gradients, in chunks;
//!   [`linear_cross_entropy_with`]: the same with label smoothing and z-loss;
//!   [`linear_distillation`]: with another model's distribution as the target.
//! - [`BlockFormat`]: the quantised number formats of GGUF files.
//! - [`custom_gradient`]: how a value computed in Rust enters libtorch's graph; write your own
//!   fused operation with it.
//! - [`cpu`]: a Llama block for a few rows in pure Rust, whose results for a row do not depend on
//!   the rows beside it.
//!
//! ```
//! use foretoken_kernels::{AttentionShape, Rotary, causal_attention};
//! use tch::{Device, Kind, Tensor};
//!
//! let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 8 };
//! let rotary = Rotary::new(shape.head_dim, 10_000.0, 16, Kind::Float, Device::Cpu)?;
//! let qkv = Tensor::randn([1, 16, shape.qkv_width()], (Kind::Float, Device::Cpu));
//! assert_eq!(causal_attention(qkv, shape, &rotary)?.size(), [1, 16, 32]);
//! # Ok::<(), foretoken_kernels::Error>(())
//! ```

#[macro_use]
mod simd;

mod attention;
mod buffers;
mod cache;
pub mod cpu;
mod cross_entropy;
mod embedding;
mod error;
mod linear;
mod native;
mod norm;
mod quantised;
mod rotary;
mod swiglu;

pub use attention::{
    AttentionShape, cached_attention, causal_attention, causal_attention_reference,
};
pub use buffers::accumulator;
pub use cache::{Branch, KvCache};
pub use cross_entropy::{
    CrossEntropy, CrossEntropyOptions, IGNORED, linear_cross_entropy,
    linear_cross_entropy_reference, linear_cross_entropy_with, linear_cross_entropy_with_reference,
    linear_distillation,
};
pub use embedding::embedding;
pub use error::{Error, Result};
pub use linear::{linear, linear_add, linear_bias};
pub use native::{allow_cudnn_attention, allow_tf32, backward_from, custom_gradient, tf32_allowed};
pub use norm::{rms_norm, rms_norm_reference};
pub use quantised::BlockFormat;
pub use rotary::{Rotary, rotary_frequencies};
pub use swiglu::{swiglu, swiglu_reference};
