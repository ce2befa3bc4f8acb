//! Batches of several corpora.

use std::sync::Arc;

use crate::permutation::mix;
use crate::sampler::RowReader;
use crate::turns::Turns;
use crate::{BatchSampler, Batches, Error, Result, SamplerOptions, TokenBatch};

/// Serves rows of several corpora in shares that hold at every moment.
///
/// Which corpus a row is of follows from its number alone: each corpus is at every row less than
/// one row away from its share, and a batch of any size has its part of each. A corpus's own rows
/// come in the order in which its sampler would serve them, in epochs of its own: each row of it
/// is visited once before any comes again, and a small corpus with a large weight comes round
/// often. The batch of a step is a pure function of seed and step, as cheap at step 1,000,000 as
/// at step 0.
///
/// ```no_run
/// use std::path::Path;
/// use foretoken_data::{BatchSampler, Batches, Mixture, SamplerOptions, Split, open_split};
///
/// # fn main() -> foretoken_data::Result<()> {
/// let options = SamplerOptions { batch: 8, columns: 256 + 4, seed: 1 };
/// let sampler = |shards: &str| {
///     BatchSampler::new(open_split(Path::new(shards), Split::Train)?, options)
/// };
/// let mixture = Mixture::new(vec![(sampler("code")?, 0.7), (sampler("prose")?, 0.3)])?;
/// assert_eq!(mixture.batch(1_000_000)?.rows, 8);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Mixture {
    samplers: Vec<BatchSampler>,
    turns: Arc<Turns>,
    options: SamplerOptions,
    numbered: bool,
}

impl Mixture {
    /// Mixes samplers of one shape and seed, each with its weight: its rows among all, over the
    /// sum of the weights. Packing and stride are each sampler's own; if one says which document
    /// each token is of, all do.
    ///
    /// Weights in ratios of whole numbers that add up to 65,536 at most are kept exactly, such as
    /// 0.7 to 0.3; others are rounded to about such a part, see [`shares`](Self::shares). The
    /// first sampler keeps its order, the others get seeds of their own.
    ///
    /// # Errors
    /// When there is no sampler, or more than 256, when they differ in shape, seed or tokenizer,
    /// or a weight is not positive or less than about a 65,536th of all.
    pub fn new(corpora: Vec<(BatchSampler, f64)>) -> Result<Self> {
        let (samplers, weights): (Vec<_>, Vec<_>) = corpora.into_iter().unzip();
        let turns = Arc::new(Turns::new(&weights)?);
        let Some(options) = samplers.first().map(BatchSampler::options) else {
            return Err(Error::Mixture { problem: "there are none".to_owned() });
        };
        for (number, sampler) in (1..).zip(&samplers) {
            check_alike(number, sampler, &samplers[0])?;
        }
        let numbered = samplers.iter().any(BatchSampler::numbers_documents);
        // `mix(0)` is 0.
        let seeds = (0..).map(|corpus| options.seed ^ mix(corpus));
        let samplers =
            samplers.into_iter().zip(seeds).map(|(sampler, seed)| sampler.with_seed(seed));
        Ok(Self { samplers: samplers.collect(), turns, options, numbered })
    }

    /// The corpora's shares of the rows, as they are after rounding. They add up to 1.
    pub fn shares(&self) -> Vec<f64> {
        self.turns.shares()
    }

    /// The corpora's samplers, with the seeds that they have here.
    pub fn samplers(&self) -> &[BatchSampler] {
        &self.samplers
    }

    /// How many rows of each corpus the steps before `step` had.
    pub fn rows_before(&self, step: u64) -> Vec<u128> {
        let row = self.options.global_row(step, 0);
        (0..self.samplers.len()).map(|corpus| self.turns.before(corpus, row)).collect()
    }
}

/// Makes sure that rows of two samplers can stand in one batch.
fn check_alike(number: usize, sampler: &BatchSampler, first: &BatchSampler) -> Result<()> {
    if sampler.options() != first.options() {
        let describe = |SamplerOptions { batch, columns, seed }| {
            format!("batches of {batch} rows of {columns} tokens with seed {seed}")
        };
        let problem = format!(
            "corpus {number} has {}, the first {}",
            describe(sampler.options()),
            describe(first.options())
        );
        return Err(Error::Mixture { problem });
    }
    let (tokenizer, wanted) =
        (&sampler.shard().manifest().tokenizer, &first.shard().manifest().tokenizer);
    if tokenizer == wanted {
        return Ok(());
    }
    Err(Error::OtherVocabulary {
        dir: sampler.shard().dir().to_path_buf(),
        shard: tokenizer.to_string(),
        wanted: wanted.to_string(),
    })
}

impl Batches for Mixture {
    fn options(&self) -> SamplerOptions {
        self.options
    }

    fn rows(&self, step: u64, first: usize, count: usize) -> Result<TokenBatch> {
        let padding = self.samplers[0].padding();
        let mut batch = self.options.blank(first, count, padding, self.numbered)?;
        let mut readers: Vec<RowReader<'_>> = self.samplers.iter().map(RowReader::new).collect();
        let begun = self.options.global_row(step, first);
        for (index, row) in (0..).zip(batch.rows_mut()) {
            let number = begun + index;
            let corpus = self.turns.corpus(number);
            readers[corpus].read(self.turns.before(corpus, number), row)?;
        }
        batch.epoch = self.epochs(step).into_iter().min().unwrap_or_default();
        Ok(batch)
    }

    fn epochs(&self, step: u64) -> Vec<u64> {
        let rows = self.rows_before(step);
        self.samplers.iter().zip(rows).map(|(sampler, row)| sampler.epoch_of(row)).collect()
    }
}
