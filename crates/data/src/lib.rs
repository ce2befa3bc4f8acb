//! Text to token batches.
//!
//! # Overview
//!
//! A [`CorpusSource`] says where text comes from: the `.py` files of `python-code`, or any folder,
//! text file or `.jsonl` of one's own. [`prepare`] reads it once, drops what the filters refuse
//! ([`DropReason`]), divides it into training, validation and test ([`SplitFractions`]), makes ids
//! of it with a [`Tokenizer`] and leaves a *shard folder*: three files of tokens and a
//! [`Manifest`] that says what they are and where they came from. [`open_split`] maps one of them
//! into memory as a [`TokenShard`], and a [`BatchSampler`] cuts it into windows, or packs whole
//! documents into rows ([`Packing`]), and serves [`TokenBatch`]es in an order that follows from a
//! seed and the step alone. A [`Mixture`] does so with several corpora in given shares. Both are
//! [`Batches`], the trait by which a trainer knows them; [`Prefetch`] reads them ahead.
//!
//! A tokenizer comes from a `tokenizer.json`, or from the [`Vocabulary`] of a GGUF file; the
//! [`ChatTemplate`] that came with it makes prompts of chats.
//!
//! The layer knows no model and no tensors: a batch is a vector of integers and its shape.
//!
//! # Example
//!
//! ```
//! use foretoken_data::{
//!     BatchSampler, CorpusSource, PrepareOptions, SamplerOptions, Split, SplitFractions,
//!     Tokenizer, open_split, prepare,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let text = folder.path().join("poem.txt");
//! std::fs::write(&text, "It was many and many a year ago,\n".repeat(200))?;
//!
//! let shards = folder.path().join("shards");
//! let manifest = prepare(
//!     &PrepareOptions {
//!         source: CorpusSource::Path(text),
//!         tokenizer: Tokenizer::bytes(),
//!         out_dir: shards.clone(),
//!         name: "poem".to_owned(),
//!         split: SplitFractions::default(),
//!     },
//!     &|_progress| {},
//! )?;
//! assert!(manifest.splits.test.tokens > 0);
//!
//! let shard = open_split(&shards, Split::Train)?;
//! let sampler = BatchSampler::new(shard, SamplerOptions { batch: 4, columns: 64 + 2, seed: 1 })?;
//! let batch = sampler.batch(0)?;
//! assert_eq!((batch.rows, batch.columns), (4, 66));
//! assert_eq!(batch, sampler.batch(0)?);
//! # Ok(())
//! # }
//! ```

mod batches;
mod boundaries;
mod documents;
mod encode;
mod error;
mod files;
mod filters;
mod manifest;
mod map;
mod mixture;
mod packing;
mod permutation;
mod prefetch;
mod prepare;
mod sampler;
mod scan;
mod shard;
mod source;
mod split;
mod tokenizer;
mod turns;
mod writer;

pub use batches::{Batches, SamplerOptions, TokenBatch};
pub use error::{Error, Result};
pub use files::file_sha256;
pub use filters::{Count, DropReason, FilterCounts};
pub use manifest::{Manifest, SourceInfo, SplitInfo, Splits};
pub use mixture::Mixture;
pub use packing::Packing;
pub use prefetch::Prefetch;
pub use prepare::{PrepareOptions, Progress, prepare};
pub use sampler::BatchSampler;
pub use shard::{TokenShard, open_split};
pub use source::{CorpusSource, python_code_root};
pub use split::{Split, SplitFractions, SplitPlan, SplitRule};
pub use tokenizer::{
    ChatTemplate, Message, StreamDecoder, Tokenizer, TokenizerInfo, Vocabulary, VocabularyProblem,
};
