//! Batches of one shard's rows in a seeded order.

use std::sync::Arc;

use crate::batches::Row;
use crate::packing::{Plan, PlannedEpoch, Plans};
use crate::permutation::{Permutation, below, mix};
use crate::{Batches, Error, Packing, Result, SamplerOptions, TokenBatch, TokenShard};

/// Cuts a shard into rows and serves them in batches.
///
/// The batch of a step follows from the seed and the step alone, so a training that goes on at
/// step 1,000 sees what it would have seen. In each epoch all rows are visited once, in a
/// permutation of the epoch's own. Rows are windows of the stream of tokens, or whole documents
/// ([`Packing`]). The grid of windows is shifted by an offset of the epoch's own, so that what one
/// epoch cuts apart another shows whole.
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
    /// Whether batches say which document each token is of.
    numbered: bool,
    layout: Layout,
}

/// Where rows lie in the shard.
#[derive(Clone, Debug)]
enum Layout {
    Windows {
        windows: u64,
        /// Tokens that the grid of windows can be shifted by.
        slack: u64,
    },
    Documents(Arc<Plans>),
}

impl BatchSampler {
    /// A sampler whose windows lie side by side.
    ///
    /// # Errors
    /// When the batch has no rows or columns, or the shard is shorter than one window.
    pub fn new(shard: impl Into<Arc<TokenShard>>, options: SamplerOptions) -> Result<Self> {
        options.check()?;
        let shard: Arc<TokenShard> = shard.into();
        if shard.len() < options.columns {
            return Err(Error::TooSmall {
                dir: shard.dir().to_path_buf(),
                split: shard.split(),
                tokens: shard.len(),
                needed: options.columns,
            });
        }
        let layout = Layout::Windows { windows: 1, slack: 0 };
        let sampler = Self { shard, options, stride: options.columns, numbered: false, layout };
        Ok(sampler.laid_out(Packing::Windows))
    }

    /// The same with windows that begin `stride` tokens apart (at least 1). With the sequence's
    /// length for a stride, windows overlap by the heads' tokens and every token is an input. Of
    /// packed documents it is the pieces of long ones that begin a stride apart, and at most a row.
    #[must_use]
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.stride = stride.max(1);
        let packing = self.packing();
        self.laid_out(packing)
    }

    /// The same with rows of another kind. Rows of documents need a plan of each epoch, which is
    /// made when its first row is asked for and takes 12 bytes of memory for each document.
    ///
    /// # Errors
    /// When the shard's index of documents is not sound, or rows of documents have over
    /// `u32::MAX` columns.
    pub fn with_packing(self, packing: Packing) -> Result<Self> {
        if packing == Packing::Documents {
            self.shard.check_documents()?;
            if u32::try_from(self.options.columns).is_err() {
                let SamplerOptions { batch: rows, columns, .. } = self.options;
                return Err(Error::BatchShape { rows, columns, problem: "too large" });
            }
        }
        Ok(self.laid_out(packing))
    }

    /// The same with batches that say which document each token is of: [`TokenBatch::documents`].
    /// Batches of packed documents say it anyway.
    #[must_use]
    pub fn with_documents(mut self) -> Self {
        self.numbered = true;
        self
    }

    /// The same in another order.
    #[must_use]
    pub(crate) fn with_seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        let packing = self.packing();
        self.laid_out(packing)
    }

    fn laid_out(mut self, packing: Packing) -> Self {
        let SamplerOptions { columns, seed, .. } = self.options;
        self.layout = match packing {
            Packing::Windows => {
                let spare = self.shard.len() - columns;
                // As many windows as fit wherever the grid begins.
                let more = (spare + 1).saturating_sub(self.stride) / self.stride;
                let slack = (spare - more * self.stride) as u64;
                Layout::Windows { windows: more as u64 + 1, slack }
            }
            Packing::Documents => {
                let stride = self.stride.min(columns);
                Layout::Documents(Plans::new(Arc::clone(&self.shard), columns, stride, seed).into())
            }
        };
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

    /// How rows are cut out of the shard.
    pub fn packing(&self) -> Packing {
        match self.layout {
            Layout::Windows { .. } => Packing::Windows,
            Layout::Documents(_) => Packing::Documents,
        }
    }

    /// Whether batches say which document each token is of.
    pub(crate) fn numbers_documents(&self) -> bool {
        self.numbered || self.packing() == Packing::Documents
    }

    /// Rows that an epoch visits, each once. Epochs of packed documents differ by a few: then it
    /// is the first one's.
    pub fn windows_per_epoch(&self) -> u64 {
        match &self.layout {
            Layout::Windows { windows, .. } => *windows,
            Layout::Documents(plans) => plans.rows_of_first_epoch(),
        }
    }

    /// Batches until all rows were visited; the last may reach into the next epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.windows_per_epoch().div_ceil(self.options.batch as u64)
    }

    /// The batch of a step.
    ///
    /// # Errors
    /// When memory for it runs out, or the shard's files changed.
    pub fn batch(&self, step: u64) -> Result<TokenBatch> {
        self.rows(step, 0, self.options.batch)
    }

    /// Some rows of a step's batch: what one of several processes works on.
    ///
    /// # Errors
    /// When the batch has no such rows, memory for them runs out, or the shard's files changed.
    pub fn rows(&self, step: u64, first: usize, count: usize) -> Result<TokenBatch> {
        let numbered = self.numbers_documents();
        let mut batch = self.options.blank(first, count, self.padding(), numbered)?;
        let mut reader = RowReader::new(self);
        let begun = self.options.global_row(step, 0);
        for (index, row) in batch.rows_mut().enumerate() {
            reader.read(begun + (first + index) as u128, row)?;
        }
        batch.epoch = self.epoch_of(begun);
        Ok(batch)
    }

    /// The token that fills a row up.
    pub(crate) fn padding(&self) -> u32 {
        self.shard.manifest().tokenizer.end_of_text.unwrap_or_default()
    }

    /// The epoch of a row.
    pub(crate) fn epoch_of(&self, row: u128) -> u64 {
        match &self.layout {
            Layout::Windows { windows, .. } => (row / u128::from(*windows)) as u64,
            Layout::Documents(plans) => plans.epoch_of(row).number as u64,
        }
    }

    fn epoch(&self, row: u128) -> Epoch {
        let seed_of = |number: u128| {
            let number = number as u64;
            mix(self.options.seed ^ mix(number.wrapping_add(0x9E37_79B9_7F4A_7C15)))
        };
        match &self.layout {
            Layout::Windows { windows, slack } => {
                let number = row / u128::from(*windows);
                let seed = seed_of(number);
                let offset = below(mix(seed ^ 1), slack + 1) as usize;
                Epoch {
                    first: number * u128::from(*windows),
                    order: Permutation::new(*windows, seed),
                    cut: Cut::Windows { offset, stride: self.stride },
                }
            }
            Layout::Documents(plans) => {
                let PlannedEpoch { number, first, plan } = plans.epoch_of(row);
                let order = Permutation::new(plan.rows(), seed_of(number));
                Epoch { first, order, cut: Cut::Documents(plan) }
            }
        }
    }

    fn window(&self, start: usize, row: Row<'_>) -> Result<()> {
        self.shard.read_indices(start, row.tokens)?;
        if let Some(documents) = row.documents {
            self.shard.number_documents(start, documents);
        }
        Ok(())
    }

    fn documents(&self, plan: &Plan, index: u64, row: Row<'_>) -> Result<()> {
        let Row { tokens, mut documents } = row;
        let mut filled = 0;
        for (number, piece) in plan.row(index).enumerate() {
            let place = filled..filled + piece.len();
            self.shard.read_indices(piece.start, &mut tokens[place.clone()])?;
            if let Some(documents) = documents.as_deref_mut() {
                documents[place.clone()].fill(number as u32);
            }
            filled = place.end;
        }
        Ok(())
    }
}

impl Batches for BatchSampler {
    fn options(&self) -> SamplerOptions {
        self.options
    }

    fn rows(&self, step: u64, first: usize, count: usize) -> Result<TokenBatch> {
        self.rows(step, first, count)
    }

    fn epochs(&self, step: u64) -> Vec<u64> {
        vec![self.epoch_of(self.options.global_row(step, 0))]
    }
}

/// The rows of an epoch, and the order in which they are visited.
struct Epoch {
    /// Rows of the epochs before it.
    first: u128,
    order: Permutation,
    cut: Cut,
}

enum Cut {
    Windows { offset: usize, stride: usize },
    Documents(Arc<Plan>),
}

impl Epoch {
    fn contains(&self, row: u128) -> bool {
        row.checked_sub(self.first).is_some_and(|index| index < u128::from(self.order.len()))
    }
}

/// Reads rows of a sampler, whichever: fast where they are of one epoch.
pub(crate) struct RowReader<'s> {
    sampler: &'s BatchSampler,
    epoch: Option<Epoch>,
}

impl<'s> RowReader<'s> {
    pub(crate) fn new(sampler: &'s BatchSampler) -> Self {
        Self { sampler, epoch: None }
    }

    /// Reads a row, counted from the first of the first epoch. The first call makes sure that the
    /// shard's files are as they were.
    pub(crate) fn read(&mut self, row: u128, to: Row<'_>) -> Result<()> {
        let sampler = self.sampler;
        let epoch = match self.epoch.take() {
            Some(epoch) if epoch.contains(row) => epoch,
            other => {
                if other.is_none() {
                    sampler.shard.check_files()?;
                }
                sampler.epoch(row)
            }
        };
        let index = epoch.order.apply((row - epoch.first) as u64);
        match &epoch.cut {
            Cut::Windows { offset, stride } => {
                sampler.window(offset + index as usize * stride, to)?;
            }
            Cut::Documents(plan) => sampler.documents(plan, index, to)?,
        }
        self.epoch = Some(epoch);
        Ok(())
    }
}
