//! Training: recipes, optimisers, schedules, checkpoints and metrics.
//!
//! # Overview
//!
//! A [`TrainConfig`] is a recipe, read from TOML: the model's sizes, the number of heads, the text,
//! the optimiser, the length. [`train`] runs one in a folder, from text to a finished model, and
//! goes on where an earlier run stopped, to the same bits. What it does in a step is what a loop of
//! one's own does with the same parts: a batch, `MultiTokenLoss::backward` and
//! [`Optimizer::step`] with the rate that [`schedule_factor`] gives.
//!
//! With `model.init_from` a run starts from a pretrained model instead; `heads.train = "alone"`
//! trains heads on it and leaves it as it is.
//!
//! The [`Optimizer`] knows parameters and their roles, not the model: Muon moves the matrices,
//! `AdamW` the rest (or everything).
//!
//! # Example
//!
//! ```
//! use foretoken_train::{TrainConfig, TrainOptions, train};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let text = folder.path().join("poem.txt");
//! std::fs::write(&text, "It was many and many a year ago,\n".repeat(200))?;
//!
//! let mut config = TrainConfig::from_toml(
//!     r#"
//!     [model]
//!     layers = 3
//!     attention_heads = 2
//!     dim = 16
//!     ffn = 32
//!     context = 32
//!     [heads]
//!     count = 2
//!     [train]
//!     steps = 4
//!     batch = 2
//!     sequence = 16
//!     "#,
//!     &[],
//! )?;
//! config.data.path = Some(text);
//! let outcome = train(&config, &folder.path().join("run"), &TrainOptions::default())?;
//! assert_eq!(outcome.steps, 4);
//! assert!(outcome.model_dir.join("model.safetensors").exists());
//! # Ok(())
//! # }
//! ```

mod checkpoint;
mod checksums;
mod config;
mod corpus;
mod draft_tokens;
mod error;
mod flops;
mod folder;
mod log_file;
mod loss_section;
mod memory;
mod metrics;
mod optimizer;
mod peak;
mod progress;
mod recipe;
mod run;
mod schedule;
mod start;
mod states;
mod tensorboard;
mod trainer;
mod usage;
mod watch;
mod written;

pub use config::{
    DataSection, Documents, Execution, HeadTraining, HeadsSection, MixturePart, ModelSection,
    MuonPrecision, OptimizerKind, OptimizerSection, Precision, ScheduleKind, TargetKind,
    TrainConfig, TrainSection,
};
pub use error::Error;
pub use flops::StepFlops;
pub use loss_section::{LossSection, WeightRule};
pub use memory::peak_memory_bytes;
pub use metrics::StepMetrics;
pub use optimizer::{Optimizer, StepReport, orthogonalize};
pub use peak::product_rate;
pub use run::{TrainOptions, TrainOutcome, train};
pub use schedule::schedule_factor;
