//! Generation: one token a pass, or several with the drafts of a model's own heads.
//!
//! A [`Decoder`] is made once for a model, which may still be in its files ([`Decoder::reading`]), and
//! generates for one prompt after the other;
//! [`write_rows`] lets a model write many rows of text at once, to be trained on.
//! [`GenerateOptions`] say how: [`Decoding::Autoregressive`] takes the next token of head 0 in each
//! pass; [`Decoding::Speculative`] is the paper's greedy self-speculative decoding, where heads
//! 1 … k − 1 draft the tokens after the next one, the next pass verifies all drafts at once, and
//! the longest prefix that equals head 0's own choice is kept. A [`Generation`] holds the tokens
//! and the figures.
//!
//! Two engines run the passes. On the CPU, in float32 and float64, a model whose drafting heads are
//! blocks, or matrices over the final hidden state, is run by [`foretoken_kernels::cpu`], where a
//! row's result has the same bits alone and among other rows: speculative output *equals* plain
//! output there, by construction, and the drafting heads may compute in bfloat16 without a trace in
//! the text. Everything else
//! (GPUs, other head types, bfloat16) runs on libtorch, where two nearly equal logits may change
//! places between a pass of one row and a pass of several.
//!
//! ```
//! use std::ops::ControlFlow;
//! use foretoken_decode::{Decoder, Decoding, GenerateOptions};
//! use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
//! use foretoken_trunk::Architecture;
//! use tch::{Device, Kind};
//!
//! let architecture = Architecture { dim: 32, layers: 5, ffn: 64, context: 64, ..Default::default() };
//! let heads = HeadsConfig::new("block", 4);
//! let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
//! let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
//!
//! let mut decoder = Decoder::new(&model)?;
//! let plain = GenerateOptions { max_new_tokens: 20, ..Default::default() };
//! let speculative =
//!     GenerateOptions { decoding: Decoding::Speculative { heads: 4 }, ..plain.clone() };
//! let mut ignore = |_: &[u32], _: &[usize]| ControlFlow::Continue(());
//! let a = decoder.generate(b"fn ma".map(u32::from).as_slice(), &plain, &mut ignore)?;
//! let b = decoder.generate(b"fn ma".map(u32::from).as_slice(), &speculative, &mut ignore)?;
//! assert_eq!(a.tokens, b.tokens);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cpu_engine;
mod cpu_pack;
mod cpu_told;
mod decoder;
mod engine;
#[cfg(test)]
mod engine_tests;
mod error;
mod generation;
mod options;
mod pace;
mod rows;
mod sampler;
mod tensor_engine;
mod tensor_told;

pub use decoder::{Decoder, OnTokens};
pub use error::{Error, Result};
pub use generation::{Generation, StoppedBy};
pub use options::{
    DecoderOptions, Decoding, DraftPrecision, GenerateOptions, Sampling, WeightStorage,
};
pub use rows::{RowsOptions, WrittenRows, write_rows, write_rows_while};
