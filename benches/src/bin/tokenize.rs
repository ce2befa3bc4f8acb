//! Token ids of many texts, to hold a model's tokenizer against another reading of it.

use std::io::{BufRead, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use foretoken_heads::ModelSource;

/// Reads JSON strings from stdin, one a line, and writes the ids of each, a JSON array a line.
#[derive(Parser)]
struct Arguments {
    /// The model whose tokenizer it is
    #[arg(long, value_name = "DIR|FILE.gguf")]
    model: PathBuf,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let tokenizer = ModelSource::open(&arguments.model)
        .context("cannot open the model")?
        .tokenizer()
        .context("cannot open the model's tokenizer")?;
    let mut stdout = BufWriter::new(std::io::stdout().lock());
    for (number, line) in (1_u64..).zip(std::io::stdin().lock().lines()) {
        let line = line.context("cannot read stdin")?;
        let text: String = serde_json::from_str(&line)
            .with_context(|| format!("line {number} is not a JSON string"))?;
        let ids = tokenizer
            .encode_with_specials(&text)
            .with_context(|| format!("cannot encode line {number}, {line}"))?;
        writeln!(stdout, "{}", serde_json::json!(ids)).context("cannot write to stdout")?;
    }
    stdout.flush().context("cannot write to stdout")
}
