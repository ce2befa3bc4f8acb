//! Multi-token prediction: all layers under one name.
//!
//! A model reads a text once and predicts the next n tokens with n heads (Gloeckle et al. 2024);
//! its heads then draft, and decoding keeps what head 0 confirms: several tokens a pass, the same
//! text. Each module is a crate of its own (`foretoken-kernels`, `foretoken-heads`, …); import those
//! that you need, or this one for all.
//!
//! ```
//! use foretoken::decode::{Decoder, Decoding, GenerateOptions};
//! use foretoken::heads::{HeadsConfig, ModelConfig, MultiTokenModel};
//! use foretoken::trunk::Architecture;
//! use std::ops::ControlFlow;
//! use tch::{Device, Kind};
//!
//! let architecture = Architecture { dim: 32, layers: 5, ffn: 64, ..Architecture::default() };
//! let heads = HeadsConfig::new("block", 4);
//! let config = ModelConfig { architecture, heads, end_of_text: vec![256] };
//! let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
//! let options = GenerateOptions {
//!     max_new_tokens: 8,
//!     decoding: Decoding::Speculative { heads: 4 },
//!     ..GenerateOptions::default()
//! };
//! let prompt = b"fn main".map(u32::from);
//! let text = Decoder::new(&model)?
//!     .generate(&prompt, &options, &mut |_, _| ControlFlow::Continue(()))?;
//! assert!(text.tokens_per_forward() >= 1.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use foretoken_data as data;
pub use foretoken_decode as decode;
pub use foretoken_eval as eval;
pub use foretoken_heads as heads;
pub use foretoken_kernels as kernels;
pub use foretoken_loss as loss;
pub use foretoken_train as train;
pub use foretoken_trunk as trunk;
