//! `foretoken logits`.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use foretoken_heads::MultiTokenModel;
use foretoken_trunk::io::write_safetensors;
use serde_json::json;
use tch::{Kind, Tensor};

use crate::arguments::LogitsArguments;
use crate::device::device;
use crate::model::Opened;
use crate::output::Output;

pub(crate) fn run(arguments: &LogitsArguments) -> anyhow::Result<ExitCode> {
    let out = &arguments.out;
    // A device or a link would be replaced, not written to.
    let replaceable = !out.exists() || (out.is_file() && !out.is_symlink());
    ensure!(replaceable, "--out {}: this is not a plain file", out.display());
    let heads = arguments.with_heads.as_deref();
    let opened = Opened::new(&arguments.model, heads, device(arguments.device)?)?;
    let (model, reader) = opened.read()?;
    let tokens = reader.encode(&arguments.prompt)?;
    let (tokens, logits) = tch::no_grad(|| tensors(&model, &tokens))?;
    let shape = logits.size();
    write_safetensors(out, &[("tokens".to_owned(), tokens), ("logits".to_owned(), logits)])
        .context("cannot write the logits")?;
    let mut output = Output::new();
    if arguments.json {
        output.json(&json!({"out": out, "tokens": [shape[1]], "logits": shape}))?;
    } else {
        output.line(&format!(
            "{}: logits of {} heads at {} positions over {} tokens",
            out.display(),
            shape[0],
            shape[1],
            shape[2]
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `tokens` `[seq]` and `logits` `[heads, seq, vocab]`.
fn tensors(model: &MultiTokenModel, tokens: &[u32]) -> anyhow::Result<(Tensor, Tensor)> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    let ids = Tensor::f_from_slice(&ids)?.f_to_device(model.device())?;
    let heads = model.text_logits(&ids.f_unsqueeze(0)?)?.into_iter();
    let heads: Vec<Tensor> = heads
        .map(|logits| Ok(logits.f_squeeze_dim(0)?.f_to_kind(Kind::Float)?))
        .collect::<anyhow::Result<_>>()?;
    Ok((ids, Tensor::f_stack(&heads, 0)?))
}
