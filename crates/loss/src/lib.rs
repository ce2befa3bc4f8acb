//! The multi-token objective and its head-by-head backward.
//!
//! L = Σᵢ wᵢ · mean over t of −log P(token t+i+1 | ≤ t), heads i = 0 … n−1 (Gloeckle et al. 2024,
//! equation 2; there all weights are 1). [`MultiTokenLoss::backward`] runs the trunk once, then
//! forward and backward of one head after the other on the detached trunk output, and the
//! trunk's backward at the end with what the heads' gradients add up to. One head's logits exist
//! at a time: memory is that of a next-token model.
//!
//! [`HeadWeights`] and [`Curriculum`] say how much the heads count and how many of them learn at a
//! step; [`CrossEntropyOptions`] adds label smoothing and z-loss.
//!
//! [`FrozenTrunkLoss`] trains new heads on a pretrained model that stays as it is, towards the text
//! or towards the model's own distributions.
//!
//! ```
//! use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
//! use foretoken_loss::MultiTokenLoss;
//! use foretoken_trunk::Architecture;
//! use tch::{Device, Kind, Tensor};
//!
//! let architecture = Architecture { dim: 32, layers: 4, ffn: 64, ..Architecture::default() };
//! let heads = HeadsConfig::new("block", 3);
//! let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
//! let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
//! // Two sequences of 16 positions: 16 + 3 tokens each, so that every position has its targets.
//! let tokens = Tensor::randint(256, [2, 16 + 3], (Kind::Int64, Device::Cpu));
//! let losses = MultiTokenLoss::new(3).backward(&model, &tokens)?;
//! assert_eq!(losses.to_vec()?.len(), 3);
//! assert!(model.unembedding().grad().defined());
//! # Ok::<(), foretoken_loss::Error>(())
//! ```

mod curriculum;
mod error;
mod frozen_trunk;
mod head_losses;
mod multi_token;
mod text_rows;
mod weights;

pub use curriculum::Curriculum;
pub use error::{Error, Result};
pub use foretoken_kernels::CrossEntropyOptions;
pub use frozen_trunk::{FrozenStates, FrozenTrunkLoss, HeadTargets};
pub use head_losses::HeadLosses;
pub use multi_token::{HeadExecution, MultiTokenLoss};
pub use text_rows::TextRows;
pub use weights::HeadWeights;
