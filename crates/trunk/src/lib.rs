//! The shared transformer of a multi-token model: a stock Llama without its last layers.
//!
//! [`Architecture`] holds the sizes, as a Hugging Face Llama config names them. A [`Block`] is one
//! Llama layer; a [`Trunk`] is the token embedding and the blocks that all heads share. What the
//! trunk returns is the *trunk output*, the residual stream before any head and any final norm:
//! `[batch, seq, dim]`.
//!
//! Weights are plain tensors in plain structs. [`Parameter`] lists them with their stock Llama
//! names, for an optimiser or a file; [`io`] reads and writes them, [`gguf`] reads them from the files
//! of llama.cpp, [`meta`] from the multi-token checkpoints that Meta released.
//!
//! ```
//! use foretoken_trunk::{Architecture, Initialiser, Trunk};
//! use tch::{Device, Kind, Tensor};
//!
//! let sizes = Architecture { vocab: 264, dim: 32, layers: 2, attention_heads: 4, kv_heads: 2,
//!     ffn: 64, context: 128, ..Architecture::default() };
//! let init = Initialiser::new(&sizes, Kind::Float, Device::Cpu, 0);
//! let trunk = Trunk::new(&sizes, 2, &init)?;
//! let tokens = Tensor::from_slice(b"hello").to_kind(Kind::Int64).view([1, 5]);
//! assert_eq!(trunk.forward(&tokens, None)?.size(), [1, 5, 32]);
//! # Ok::<(), foretoken_trunk::Error>(())
//! ```

mod architecture;
mod block;
mod bytes;
mod error;
pub mod gguf;
mod initialiser;
pub mod io;
pub mod meta;
mod parameter;
mod rope;
mod segments;
mod trunk;

pub use architecture::Architecture;
pub use block::Block;
pub use error::{Error, Result};
pub use initialiser::Initialiser;
pub use parameter::{Parameter, Part, Role};
pub use rope::RopeScaling;
pub use segments::{Segments, TrunkPart};
pub use trunk::{Trunk, TrunkCache};
