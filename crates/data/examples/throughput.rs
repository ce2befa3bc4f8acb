//! Prepares a folder of Python and measures it: `cargo run --release -p foretoken-data --example
//! throughput -- [FOLDER]`.

use std::time::Instant;

use foretoken_data::{
    BatchSampler, CorpusSource, PrepareOptions, SamplerOptions, Split, SplitFractions, Tokenizer,
    open_split, prepare,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    let shards = tempfile::tempdir()?;
    let options = PrepareOptions {
        source: CorpusSource::named("python-code", folder.as_deref())?,
        tokenizer: Tokenizer::bytes(),
        out_dir: shards.path().to_path_buf(),
        name: "python-code".to_owned(),
        split: SplitFractions::default(),
    };
    let start = Instant::now();
    let manifest = prepare(&options, &|_| {})?;
    println!("{}", serde_json::to_string_pretty(&manifest)?);
    println!("prepared in {:.2} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    prepare(&options, &|_| {})?;
    println!("reused in {:.2} s", start.elapsed().as_secs_f64());

    let shard = open_split(shards.path(), Split::Train)?;
    let sampler = BatchSampler::new(shard, SamplerOptions { batch: 8, columns: 256 + 8, seed: 1 })?;
    let start = Instant::now();
    let mut tokens = 0;
    for step in 0..sampler.batches_per_epoch() {
        tokens += std::hint::black_box(sampler.batch(step)?).tokens.len();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.0} million tokens a second", tokens as f64 / seconds / 1e6);
    Ok(())
}
