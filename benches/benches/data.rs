//! Criterion over the data: batches from a warm shard, in tokens a second.
//!
//! `cargo xtask bench layers`, or `cargo bench -p foretoken-benches`; a word behind it filters.

use std::hint::black_box;
use std::path::Path;

use anyhow::{Context, Result};
use criterion::{BenchmarkId, Criterion, Throughput};
use foretoken_data::{
    BatchSampler, CorpusSource, PrepareOptions, SamplerOptions, Split, SplitFractions, Tokenizer,
    open_split, prepare,
};

const ROWS: usize = 32;
const DOCUMENTS: usize = 64;
const LINES: usize = 2048;

/// Documents that differ in every line, about 6 MB in all.
fn write_text(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).context("cannot make a folder for text")?;
    for document in 0..DOCUMENTS {
        let lines = (0..LINES).map(|line| {
            let word = line.wrapping_mul(2_654_435_761) % 1_000_003;
            format!("document {document}, line {line}: {word:x} and more\n")
        });
        let path = folder.join(format!("{document}.txt"));
        std::fs::write(path, lines.collect::<String>()).context("cannot write text")?;
    }
    Ok(())
}

fn options(text: &Path, shards: &Path) -> PrepareOptions {
    PrepareOptions {
        source: CorpusSource::Path(text.to_path_buf()),
        tokenizer: Tokenizer::bytes(),
        out_dir: shards.to_path_buf(),
        name: "lines".to_owned(),
        split: SplitFractions::default(),
    }
}

/// Batches of one step after the other, by the length of a row; the shard's pages are in memory.
fn batches(criterion: &mut Criterion, shards: &Path) -> Result<()> {
    let mut group = criterion.benchmark_group("batches");
    for columns in [256 + 4, 2048 + 4] {
        let shard = open_split(shards, Split::Train)?;
        let options = SamplerOptions { batch: ROWS, columns, seed: 1 };
        let sampler = BatchSampler::new(shard, options)?;
        let mut step = 0;
        while step < sampler.batches_per_epoch() {
            black_box(sampler.batch(step)?);
            step += 1;
        }
        group.throughput(Throughput::Elements((ROWS * columns) as u64));
        group.bench_function(BenchmarkId::from_parameter(columns), |bench| {
            bench.iter(|| {
                step += 1;
                black_box(sampler.batch(step))
            });
        });
    }
    group.finish();
    Ok(())
}

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let folder = tempfile::tempdir().context("cannot make a folder for the shards")?;
    let (text, shards) = (folder.path().join("text"), folder.path().join("shards"));
    write_text(&text)?;
    prepare(&options(&text, &shards), &|_| ())?;
    batches(&mut criterion, &shards)?;
    criterion.final_summary();
    Ok(())
}
