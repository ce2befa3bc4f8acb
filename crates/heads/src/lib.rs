//! Heads over a shared trunk, and the model that holds trunk, heads and unembedding.
//!
//! P(t+i+1 | ≤ t) = softmax(unembedding · norm(headᵢ(trunk(x)))) for heads i = 0 … n−1 (Gloeckle et
//! al. 2024, section 2): every head reads the same trunk output and shares the final norm and the
//! unembedding. Head 0 is the last layer of a stock Llama, so that trunk + head 0 is one.
//!
//! - [`Head`] is what a researcher implements: one file, one line in the [`Registry`]. [`BlockHead`]
//!   is the paper's head, one transformer layer; [`InformedHead`] is one that is told the token
//!   which head 0 has chosen; [`MedusaHead`] and [`LinearHead`] read the final hidden state of a
//!   model that is pretrained.
//! - [`ModelConfig`] names sizes and heads; [`MultiTokenModel`] is built from it, or loaded from
//!   a model folder, and saved to one that other tools open as a plain Llama.
//! - [`MultiTokenModel::grow`] puts new heads on a pretrained next-token model; a
//!   [`DraftVocabulary`] makes them draft frequent tokens only, for a fraction of the cost.
//! - [`ModelSource`]: a published model, a folder or a GGUF file, with its tokenizer. An
//!   [`UnreadModel`] can be read piece by piece by who keeps its weights in another form.
//! - [`MultiTokenModel::export_gguf`] and [`MultiTokenModel::export_medusa`] write what llama.cpp
//!   and vLLM read.
//!
//! ```
//! use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
//! use foretoken_trunk::Architecture;
//! use tch::{Device, Kind, Tensor};
//!
//! let architecture = Architecture { dim: 32, layers: 4, ffn: 64, ..Architecture::default() };
//! let heads = HeadsConfig::new("block", 2);
//! let config = ModelConfig { architecture, heads, end_of_text: vec![256] };
//! let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
//! let hidden = model.hidden(&Tensor::from_slice(&[1i64, 2, 3]).view([1, 3]))?;
//! assert_eq!(model.logits(1, &hidden)?.size(), [1, 3, 264]);
//! # Ok::<(), foretoken_heads::Error>(())
//! ```

mod block_head;
mod config;
mod draft_vocabulary;
mod error;
mod export_gguf;
mod export_medusa;
mod files;
mod fingerprint;
mod grow;
mod head;
mod heads_file;
mod informed_head;
mod linear_head;
mod medusa_head;
mod model;
mod new_folder;
mod registry;
mod source;
mod stacked;
mod unread;

pub use block_head::BlockHead;
pub use config::{HeadsConfig, ModelConfig};
pub use draft_vocabulary::DraftVocabulary;
pub use error::{Error, Result};
pub use export_gguf::GgufNumbers;
pub use head::{Dense, Head, HeadContext, Informed, Tap};
pub use informed_head::InformedHead;
pub use linear_head::LinearHead;
pub use medusa_head::MedusaHead;
pub use model::{ModelPart, MultiTokenModel};
pub use new_folder::NewFolder;
pub use registry::{BuildHead, Registry};
pub use source::ModelSource;
pub use stacked::StackedHeads;
pub use unread::{ModelPieces, Piece, Pieces, UnreadModel};
