//! How fast batches come from a warm shard: `cargo run --release -p foretoken-data --example
//! shard_speed -- [SHARDS]`. Without a shard folder it prepares text of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foretoken_data::{
    BatchSampler, Batches, CorpusSource, Mixture, Packing, Prefetch, PrepareOptions, Result,
    SamplerOptions, Split, SplitFractions, Tokenizer, open_split, prepare,
};

/// Threads that read side by side.
const THREADS: u64 = 2;
/// How long each measurement takes.
const TIME: Duration = Duration::from_secs(1);
const OPTIONS: SamplerOptions = SamplerOptions { batch: 16, columns: 1024 + 4, seed: 1 };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?;
    let shards = match std::env::args_os().nth(1) {
        Some(shards) => PathBuf::from(shards),
        None => made(folder.path())?,
    };
    let shard = Arc::new(open_split(&shards, Split::Train)?);
    // Reads it whole: from here on it is warm.
    shard.verify()?;
    println!("{} tokens, {} documents", shard.len(), shard.documents());

    let windows = BatchSampler::new(Arc::clone(&shard), OPTIONS)?.with_stride(1024);
    let began = Instant::now();
    let packed = windows.clone().with_packing(Packing::Documents)?;
    let rows = packed.windows_per_epoch();
    println!("{rows} rows of documents planned in {:.3} s", began.elapsed().as_secs_f64());
    let mixture = Mixture::new(vec![(windows.clone(), 0.7), (packed.clone(), 0.3)])?;

    let sources: [(&str, Arc<dyn Batches>); 4] = [
        ("windows", Arc::new(windows.clone())),
        ("windows, documents numbered", Arc::new(windows.with_documents())),
        ("documents", Arc::new(packed)),
        ("mixture", Arc::new(mixture)),
    ];
    for (name, source) in sources {
        let direct = side_by_side(source.as_ref())?;
        let ahead = read_ahead(source)?;
        println!("{name}: {direct:.0} million tokens a second, read ahead {ahead:.0}");
    }
    Ok(())
}

/// Shards of 24 MB of records, from a few words to a few pages.
fn made(folder: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let text = folder.join("records.jsonl");
    let mut records = String::new();
    for number in 0_u64.. {
        let words = 5 + number * 7919 % 600;
        let words: Vec<String> = (0..words).map(|word| format!("{}", number * 31 + word)).collect();
        writeln!(records, "{{\"text\": \"{}\"}}", words.join(" "))?;
        if records.len() > 24 << 20 {
            break;
        }
    }
    std::fs::write(&text, records)?;
    let shards = folder.join("shards");
    let options = PrepareOptions {
        source: CorpusSource::Path(text),
        tokenizer: Tokenizer::bytes(),
        out_dir: shards.clone(),
        name: "numbers".to_owned(),
        split: SplitFractions::all_train(),
    };
    prepare(&options, &|_| {})?;
    Ok(shards)
}

/// Millions of tokens a second of threads that take turns in the steps.
fn side_by_side(source: &dyn Batches) -> Result<f64> {
    let began = Instant::now();
    let counts = std::thread::scope(|scope| {
        let count = |first: u64| -> Result<usize> {
            let mut tokens = 0;
            for step in (first..).step_by(THREADS as usize) {
                tokens += std::hint::black_box(source.batch(step)?).tokens.len();
                if began.elapsed() > TIME {
                    break;
                }
            }
            Ok(tokens)
        };
        let threads: Vec<_> = (0..THREADS).map(|first| scope.spawn(move || count(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(0))).collect::<Result<Vec<_>>>()
    })?;
    Ok(counts.iter().sum::<usize>() as f64 / began.elapsed().as_secs_f64() / 1e6)
}

/// Millions of tokens a second that one consumer gets, who does nothing else.
fn read_ahead(source: Arc<dyn Batches>) -> Result<f64> {
    let began = Instant::now();
    let mut tokens = 0;
    for batch in Prefetch::new(source, 0.., 0..OPTIONS.batch, 4)? {
        tokens += std::hint::black_box(batch?).tokens.len();
        if began.elapsed() > TIME {
            break;
        }
    }
    Ok(tokens as f64 / began.elapsed().as_secs_f64() / 1e6)
}
