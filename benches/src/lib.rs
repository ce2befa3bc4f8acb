//! Our side of the comparisons that `cargo xtask bench` runs.
//!
//! Four programs: `train_steps` trains from a [`Job`] folder that a peer reads too, and answers
//! commands line by line, so that both sides can take turns; `step_memory` says how much memory
//! training steps took, and how long; `read_batches` how fast a warm shard is read; `tokenize`
//! gives the ids of lines. They drive the library as any user would, the first two through
//! [`TrainingLoop`].
//! [`StepWork`] counts what a step has to do, [`Bound`] measures how fast that can be. The peers'
//! side is in `peers/`; `benches/*.rs` is Criterion over kernels, steps, decoding and data.

mod bound;
mod job;
mod memory;
mod training_loop;
mod work;

pub use bound::Bound;
pub use job::{Job, Text, pair_token, prepare_bytes};
pub use memory::{current_resident_bytes, peak_resident_bytes};
pub use training_loop::TrainingLoop;
pub use work::{Linear, Stack, StepWork};
