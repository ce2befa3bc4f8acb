//! Batches of token windows in a seeded order.

use std::sync::Arc;

use crate::permutation::{Permutation, mix};
use crate::{Error, Result, TokenShard};

/// The shape of a batch and the seed of its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerOptions {
    /// Windows in a batch.
    pub batch: usize,
    /// Tokens in a window: the sequence and, behind it, one token for each head.
    pub columns: usize,
    /// What the order follows from.
    pub seed: u64,
}

/// A batch of windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Windows.
    pub rows: usize,
    /// Tokens in each.
    pub columns: usize,
    /// `[rows, columns]`, row after row.
    pub tokens: Vec<i64>,
    /// How often all windows had been visited when the batch began.
    pub epoch: u64,
}

/// Cuts a shard into windows and serves them in batches.
///
/// The batch of a step follows from the seed and the step alone, so a training that goes on at
/// step 1,000 sees what it would have seen. In each epoch all windows are visited once, in a
/// permutation of the epoch's own; and the grid of windows is shifted by an offset of the epoch's
/// own, so that what one epoch cuts apart another shows whole.
///
/// ```no_run
/// use std::path::Path;
/// use foretoken_data::{BatchSampler, SamplerOptions, Split, open_split};
///
/// # fn main() -> foretoken_data::Result<()> {
/// let shard = open_split(Path::new("shards"), Split::Train)?;
/// let sampler = BatchSampler::new(shard, SamplerOptions { batch: 8, columns: 256 + 4, seed: 1 })?;
/// assert_eq!(sampler.batch(7)?.tokens.len(), 8 * 260);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BatchSampler {
    shard: Arc<TokenShard>,
    options: SamplerOptions,
    stride: usize,
    windows: u64,
    /// Tokens that the grid of windows can be shifted by.
    slack: u64,
}

impl BatchSampler {
    /// A sampler whose windows lie side by side.
    ///
    /// # Errors
    /// When the batch has no rows or columns, or the shard is shorter than one window.
    pub fn new(shard: impl Into<Arc<TokenShard>>, options: SamplerOptions) -> Result<Self> {
        let shape =
            |problem| Error::BatchShape { rows: options.batch, columns: options.columns, problem };
        if options.batch == 0 || options.columns == 0 {
            return Err(shape("empty"));
        }
        let bytes = options.batch.checked_mul(options.columns).and_then(|n| n.checked_mul(8));
        if bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(shape("too large"));
        }
        let shard: Arc<TokenShard> = shard.into();
        if shard.len() < options.columns {
            return Err(Error::TooSmall {
                dir: shard.dir().to_path_buf(),
                split: shard.split(),
                tokens: shard.len(),
                needed: options.columns,
            });
        }
        Ok(Self { shard, options, stride: 1, windows: 1, slack: 0 }.with_stride(options.columns))
    }

    /// The same with windows that begin `stride` tokens apart (at least 1). With the sequence's
    /// length for a stride, windows overlap by the heads' tokens and every token is an input.
    #[must_use]
    pub fn with_stride(mut self, stride: usize) -> Self {
        let stride = stride.max(1);
        let spare = self.shard.len() - self.options.columns;
        // As many windows as fit wherever the grid begins.
        let more = (spare + 1).saturating_sub(stride) / stride;
        self.stride = stride;
        self.windows = more as u64 + 1;
        self.slack = (spare - more * stride) as u64;
        self
    }

    /// The shard.
    pub fn shard(&self) -> &TokenShard {
        &self.shard
    }

    /// Shape and seed.
    pub fn options(&self) -> SamplerOptions {
        self.options
    }

    /// Windows that an epoch visits, each once.
    pub fn windows_per_epoch(&self) -> u64 {
        self.windows
    }

    /// Batches until all windows were visited; the last may reach into the next epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.windows.div_ceil(self.options.batch as u64)
    }

    /// The batch of a step.
    ///
    /// # Errors
    /// When memory for it runs out.
    pub fn batch(&self, step: u64) -> Result<TokenBatch> {
        self.rows(step, 0, self.options.batch)
    }

    /// Some rows of a step's batch: what one of several processes works on.
    ///
    /// # Errors
    /// When the batch has no such rows, or memory for them runs out.
    pub fn rows(&self, step: u64, first: usize, count: usize) -> Result<TokenBatch> {
        let SamplerOptions { batch, columns, .. } = self.options;
        let shape = |problem| Error::BatchShape { rows: count, columns, problem };
        if first.checked_add(count).is_none_or(|end| end > batch) {
            return Err(shape("not part of the sampler's"));
        }
        let mut tokens = Vec::new();
        tokens.try_reserve_exact(count * columns).map_err(|_| shape("too large"))?;

        let windows = u128::from(self.windows);
        let global = u128::from(step) * batch as u128 + first as u128;
        let begun = u128::from(step) * batch as u128 / windows;
        let mut epoch = (global / windows) as u64;
        let mut index = (global % windows) as u64;
        let mut grid = self.grid(epoch);
        for _ in 0..count {
            if index == self.windows {
                epoch += 1;
                index = 0;
                grid = self.grid(epoch);
            }
            let start = grid.start(index, self.stride);
            self.shard.extend_indices(start..start + columns, &mut tokens)?;
            index += 1;
        }
        Ok(TokenBatch { rows: count, columns, tokens, epoch: begun as u64 })
    }

    fn grid(&self, epoch: u64) -> Grid {
        let seed = mix(self.options.seed ^ mix(epoch.wrapping_add(0x9E37_79B9_7F4A_7C15)));
        Grid {
            // Lemire's way to a number below a bound, without a division.
            offset: ((u128::from(mix(seed ^ 1)) * u128::from(self.slack + 1)) >> 64) as usize,
            order: Permutation::new(self.windows, seed),
        }
    }
}

/// An epoch's windows.
struct Grid {
    offset: usize,
    order: Permutation,
}

impl Grid {
    fn start(&self, index: u64, stride: usize) -> usize {
        self.offset + self.order.apply(index) as usize * stride
    }
}
