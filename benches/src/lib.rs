//! Our side of the comparisons that `cargo xtask bench` runs.
//!
//! Three programs: `train_steps` trains from a [`Job`] folder that a peer reads too, and answers
//! commands line by line, so that both sides can take turns; `step_memory` says how much memory
//! training steps took; `tokenize` gives the ids of lines. They drive the library as any user would,
//! the first two through [`TrainingLoop`]. The peers' side is in `peers/`; `benches/layers.rs` is
//! Criterion over kernels, gradients and decoding.

mod job;
mod memory;
mod training_loop;

pub use job::Job;
pub use memory::{current_resident_bytes, peak_resident_bytes};
pub use training_loop::TrainingLoop;
