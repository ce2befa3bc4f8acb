//! `foretoken export`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use foretoken_heads::{DraftVocabulary, GgufNumbers, NewFolder};
use serde_json::json;
use tch::Device;

use crate::arguments::{ExportArguments, FormatName};
use crate::failure::usage;
use crate::model::Opened;
use crate::output::Output;

pub(crate) fn run(arguments: &ExportArguments) -> anyhow::Result<ExitCode> {
    match arguments.format {
        FormatName::Gguf => gguf(arguments)?,
        FormatName::Medusa => medusa(arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn gguf(arguments: &ExportArguments) -> anyhow::Result<()> {
    if arguments.with_heads.is_some() {
        return usage(
            "--with-heads: a GGUF file has no place for heads; leave the option out, or use \
             --format medusa",
        );
    }
    let out = &arguments.out;
    let free = !out.exists() && !out.is_symlink();
    ensure!(free, "--out {}: there is something already; name a new file", out.display());
    let (model, reader) = Opened::new(&arguments.model, None, Device::Cpu)?.read()?;
    let (numbers, in_words) = match arguments.float16 {
        false => (GgufNumbers::Float32, "float32"),
        true => (GgufNumbers::Float16, "float16"),
    };
    let (name, tokenizer) = (name(&arguments.model), &reader.tokenizer);
    model.export_gguf(out, &name, tokenizer, numbers).context("cannot write the GGUF file")?;
    let bytes = std::fs::metadata(out).map(|metadata| metadata.len()).unwrap_or_default();
    let left_out = model.heads().len() - 1;
    let mut output = Output::new();
    if arguments.json {
        return output.json(&json!({
            "out": out,
            "format": "gguf",
            "numbers": in_words,
            "bytes": bytes,
            "heads_left_out": left_out,
        }));
    }
    let heads = match left_out {
        0 => String::new(),
        1 => "; the head beyond the first is left out".to_owned(),
        n => format!("; the {n} heads beyond the first are left out"),
    };
    output.line(&format!("{}: {bytes} bytes in {in_words}{heads}", out.display()))
}

fn medusa(arguments: &ExportArguments) -> anyhow::Result<()> {
    if arguments.float16 {
        return usage("--float16: Medusa heads are written in float32; leave the option out");
    }
    let out = &arguments.out;
    let folder = NewFolder::at(out).context("--out")?;
    let heads = arguments.with_heads.as_deref();
    let (model, _) = Opened::new(&arguments.model, heads, Device::Cpu)?.read()?;
    folder.fill(|folder| model.export_medusa(folder)).context("cannot write the Medusa heads")?;
    let heads = model.heads().len() - 1;
    let vocab = model.config().architecture.vocab;
    let drafted = model.draft_vocabulary().map(DraftVocabulary::tokens).map_or(vocab, <[u32]>::len);
    let mut output = Output::new();
    if arguments.json {
        return output.json(&json!({
            "out": out,
            "format": "medusa",
            "heads": heads,
            "draft_vocabulary": drafted,
        }));
    }
    let count = if heads == 1 { "1 head".to_owned() } else { format!("{heads} heads") };
    output.line(&format!("{}: {count} over {drafted} of {vocab} tokens", out.display()))
}

/// What llama.cpp will call the model: the name of its folder or file.
fn name(model: &Path) -> String {
    let whole = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    name.unwrap_or_default().to_string_lossy().into_owned()
}
