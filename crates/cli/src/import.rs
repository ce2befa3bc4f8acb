//! `foretoken import`.

use std::process::ExitCode;

use anyhow::Context;
use foretoken_heads::NewFolder;
use serde_json::json;
use tch::Device;

use crate::arguments::ImportArguments;
use crate::model::Opened;
use crate::output::Output;

pub(crate) fn run(arguments: &ImportArguments) -> anyhow::Result<ExitCode> {
    let out = &arguments.out;
    let folder = NewFolder::at(out).context("--out")?;
    let opened = Opened::new(&arguments.model, arguments.with_heads.as_deref(), Device::Cpu)?;
    let (model, reader) = opened.read()?;
    folder
        .fill(|folder| {
            model.save(folder)?;
            Ok(reader.tokenizer.save(&folder.join("tokenizer.json"))?)
        })
        .context("cannot write the model folder")?;
    let heads = &model.config().heads;
    let (layers, parameters) = (model.config().architecture.layers, model.parameter_count());
    let mut output = Output::new();
    if arguments.json {
        output.json(&json!({
            "out": out,
            "layers": layers,
            "heads": heads,
            "vocab": model.config().architecture.vocab,
            "parameters": parameters,
        }))?;
    } else {
        let count = match heads.count {
            1 => "1 head".to_owned(),
            n => format!("{n} heads, type {}", heads.kind),
        };
        let out = out.display();
        output.line(&format!("{out}: {parameters} parameters, {layers} layers, {count}"))?;
    }
    Ok(ExitCode::SUCCESS)
}
