//! Heads over a shared trunk, and the model that holds trunk, heads and unembedding.
//!
//! P(t+i+1 | ≤ t) = softmax(unembedding · norm(headᵢ(trunk(x)))) for heads i = 0 … n−1 (Gloeckle et
//! al. 2024, section 2): every head reads the same trunk output and shares the final norm and the
//! unembedding. Head 0 is the last layer of a stock Llama, so that trunk + head 0 is one.
//!
//! - [`Head`] is what a researcher implements: one file, one line in the [`Registry`]. [`BlockHead`]
//!   is the paper's head, one transformer layer.
//! - [`ModelConfig`] names sizes and heads; [`MultiTokenModel`] is built from it, or loaded from
//!   a model folder, and saved to one that other tools open as a plain Llama.
//!
//! ```
//! use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
//! use foretoken_trunk::Architecture;
//! use tch::{Device, Kind, Tensor};
//!
//! let architecture = Architecture { dim: 32, layers: 4, ffn: 64, ..Architecture::default() };
//! let heads = HeadsConfig { kind: "block".into(), count: 2 };
//! let config = ModelConfig { architecture, heads, end_of_text: Some(256) };
//! let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
//! let hidden = model.hidden(&Tensor::from_slice(&[1i64, 2, 3]).view([1, 3]))?;
//! assert_eq!(model.logits(1, &hidden)?.size(), [1, 3, 264]);
//! # Ok::<(), foretoken_heads::Error>(())
//! ```

mod block_head;
mod config;
mod error;
mod files;
mod head;
mod model;
mod registry;

pub use block_head::BlockHead;
pub use config::{HeadsConfig, ModelConfig};
pub use error::{Error, Result};
pub use head::{Head, HeadContext, Tap};
pub use model::MultiTokenModel;
pub use registry::{BuildHead, Registry};
