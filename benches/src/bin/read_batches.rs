//! How many tokens a second the batches of a warm shard come at.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use foretoken_benches::prepare_bytes;
use foretoken_data::{BatchSampler, SamplerOptions, Split, open_split};
use serde_json::json;

/// Reads the batches of several epochs, the steps dealt out to threads, after one that warms up.
#[derive(Parser)]
struct Arguments {
    /// The folder of the corpus `python-code`
    #[arg(long)]
    corpus: PathBuf,
    /// Where its token shards are or go
    #[arg(long)]
    shards: PathBuf,
    /// Threads that read
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Sequences in a batch
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Tokens in a row: a sequence and one for each head
    #[arg(long, default_value_t = 256 + 4)]
    columns: usize,
    /// Epochs that are timed
    #[arg(long, default_value_t = 5)]
    epochs: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let Arguments { threads, batch, columns, epochs, .. } = arguments;
    ensure!(threads > 0 && epochs > 0, "threads and epochs begin at 1");
    prepare_bytes(&arguments.corpus, &arguments.shards)?;
    let shard = open_split(&arguments.shards, Split::Train)?;
    let sampler = BatchSampler::new(shard, SamplerOptions { batch, columns, seed: 1 })?;
    let steps = sampler.batches_per_epoch();
    read(&sampler, 0..steps, threads)?;
    let start = Instant::now();
    let tokens = read(&sampler, steps..steps * (1 + epochs), threads)?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{}",
        json!({
            "threads": threads, "batch": batch, "columns": columns, "tokens": tokens,
            "seconds": seconds, "tokens_per_second": tokens as f64 / seconds,
        })
    );
    Ok(())
}

/// Reads the batches of these steps, thread t every `threads`-th from the t-th on; their tokens.
fn read(sampler: &BatchSampler, steps: std::ops::Range<u64>, threads: usize) -> Result<usize> {
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                let own = steps.clone().skip(thread).step_by(threads);
                scope.spawn(move || -> Result<usize> {
                    let mut tokens = 0;
                    for step in own {
                        tokens += black_box(sampler.batch(step)?).tokens.len();
                    }
                    Ok(tokens)
                })
            })
            .collect();
        let mut tokens = 0;
        for thread in started {
            tokens += thread.join().ok().context("a reading thread ended early")??;
        }
        Ok(tokens)
    })
}
