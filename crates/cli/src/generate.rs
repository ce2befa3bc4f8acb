//! `foretoken generate`.

use std::io::Write;
use std::ops::ControlFlow;
use std::process::ExitCode;

use anyhow::Context;
use foretoken_data::StreamDecoder;
use foretoken_decode::{
    Decoder, DecoderOptions, Decoding, GenerateOptions, Generation, Sampling, StoppedBy,
    WeightStorage,
};
use foretoken_heads::ModelConfig;
use serde_json::{Value, json};

use crate::arguments::{DecodingName, GenerateArguments, WeightsName};
use crate::device::{device, set_threads};
use crate::failure::usage;
use crate::model::{Opened, PromptReader};
use crate::output::Output;
use crate::prompts::{self, Prompt};
use crate::stop::StopTexts;

pub(crate) fn run(arguments: &GenerateArguments) -> anyhow::Result<ExitCode> {
    refuse(arguments)?;
    set_threads(arguments.threads)?;
    let prompts = match (&arguments.prompts, &arguments.prompt) {
        (Some(path), _) => prompts::read(path)?,
        (None, prompt) => {
            vec![Prompt { id: Value::from(0), prompt: prompt.clone().unwrap_or_default() }]
        }
    };
    let heads = arguments.with_heads.as_deref();
    let mut opened = Opened::new(&arguments.model, heads, device(arguments.device)?)?;
    let drafter = heads.unwrap_or(&arguments.model).display().to_string();
    opened.model = opened.model.tolerate_other_trunks(move |problem| {
        tracing::warn!(
            "{drafter}: {problem}; the text stays the model's own, but drafts may be wrong more often"
        );
    });
    if arguments.chat {
        opened = opened.with_chat(&arguments.model, arguments.system.clone())?;
    }
    let Opened { model, reader } = opened;
    let options = options(arguments, model.config(), &reader)?;
    // What is wrong with the last one is better known before the first is continued.
    let tokens = prompts.iter().map(|prompt| {
        let tokens = reader.encode(&prompt.prompt);
        match &arguments.prompts {
            Some(path) => {
                tokens.with_context(|| format!("{}: prompt {}", path.display(), name(&prompt.id)))
            }
            None => tokens,
        }
    });
    let tokens = tokens.collect::<anyhow::Result<Vec<_>>>()?;
    let setup = DecoderOptions {
        weights: match arguments.weights {
            WeightsName::Compact => WeightStorage::Compact,
            WeightsName::Full => WeightStorage::Full,
        },
        ..DecoderOptions::default()
    };
    let mut session = Session {
        decoder: Decoder::reading(model, setup).context("cannot read the model")?,
        reader: &reader,
        options,
        arguments,
        output: Output::new(),
    };
    for (prompt, tokens) in prompts.iter().zip(&tokens) {
        session.generate(prompt, tokens)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Options that are known and can't be had.
fn refuse(arguments: &GenerateArguments) -> anyhow::Result<()> {
    if arguments.stop.iter().any(String::is_empty) {
        return usage("--stop '': a stop text has at least one character");
    }
    if arguments.decoding == Some(DecodingName::Autoregressive)
        && let Some(heads) = arguments.heads.filter(|&heads| heads != 1)
    {
        return usage(format!(
            "--heads {heads}: autoregressive decoding takes one head; use --decoding speculative"
        ));
    }
    let drafts = arguments.decoding == Some(DecodingName::Speculative)
        || arguments.heads.is_some_and(|heads| heads > 1);
    if let Some(temperature) = arguments.temperature.filter(|_| drafts) {
        return usage(format!(
            "--temperature {temperature}: drafts are verified against the likeliest token, so a text that \
             is drawn at random is decoded plainly; leave out --heads and --decoding speculative"
        ));
    }
    Ok(())
}

fn options(
    arguments: &GenerateArguments,
    config: &ModelConfig,
    reader: &PromptReader,
) -> anyhow::Result<GenerateOptions> {
    let available = config.heads.drafting();
    let sampling = arguments.temperature.map(|temperature| Sampling {
        temperature,
        top_p: arguments.top_p.unwrap_or(1.0),
        seed: arguments.seed.unwrap_or(0),
    });
    let heads = arguments.heads.unwrap_or(available);
    let decoding = match arguments.decoding {
        Some(DecodingName::Autoregressive) => Decoding::Autoregressive,
        Some(DecodingName::Speculative) => Decoding::Speculative { heads },
        None if sampling.is_some() => Decoding::Autoregressive,
        None => Decoding::Adaptive { heads },
    };
    if heads == 0 || heads > available {
        let whose = match config.heads.count {
            all if all > available => {
                format!("of the model's {all} heads {available} predict one token after the other")
            }
            1 => "the model has one, its own (--with-heads adds trained ones)".to_owned(),
            _ => format!("the model has {available}"),
        };
        let range = if available > 1 { format!("1 to {available}") } else { "1".to_owned() };
        return usage(format!("--heads {heads}: {whose}; give {range}"));
    }
    let mut end_of_text = config.end_of_text.clone();
    end_of_text.extend(reader.tokenizer.end_of_text());
    let drafts = heads > 1 && decoding != Decoding::Autoregressive;
    if let Some(alternatives) = arguments.alternatives.filter(|_| !drafts) {
        return usage(format!(
            "--alternatives {alternatives}: nothing is drafted that there could be alternatives to, with one \
             head, a temperature or autoregressive decoding"
        ));
    }
    if arguments.decoding == Some(DecodingName::Speculative) && config.heads.count == 1 {
        tracing::warn!(
            "--decoding speculative: the model has no heads to draft with, so this is plain decoding; \
             --with-heads puts trained ones on it"
        );
    }
    Ok(GenerateOptions {
        max_new_tokens: arguments.max_new_tokens,
        decoding,
        end_of_text,
        sampling,
        alternatives: arguments
            .alternatives
            .map_or(GenerateOptions::USUAL_ALTERNATIVES, usize::from),
        record_gaps: false,
    })
}

struct Session<'a> {
    decoder: Decoder<'static>,
    reader: &'a PromptReader,
    options: GenerateOptions,
    arguments: &'a GenerateArguments,
    output: Output,
}

impl Session<'_> {
    /// Continues one prompt: streams the text, or writes its line of JSON.
    fn generate(&mut self, prompt: &Prompt, tokens: &[u32]) -> anyhow::Result<()> {
        let stream = !self.arguments.json;
        if stream && self.arguments.prompts.is_some() {
            self.output.line(&format!("# {}", name(&prompt.id)))?;
        }
        let mut text = Text {
            decoder: self.reader.tokenizer.stream_after(tokens)?,
            stops: StopTexts::new(&self.arguments.stop),
            stream: stream.then_some(&mut self.output),
            whole: String::new(),
        };
        let mut failed = None;
        let generation =
            self.decoder.generate(tokens, &self.options, &mut |new, _| match text.push(new) {
                Ok(flow) => flow,
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            })?;
        if let Some(error) = failed {
            return Err(error);
        }
        let (whole, stopped) = text.finish()?;
        let stopped_by = if stopped { StoppedBy::StopText } else { generation.stopped_by };
        if stream {
            self.output.text("\n")?;
            let summary = summary(&generation, stopped_by);
            let _ = writeln!(std::io::stderr(), "{summary}");
            return Ok(());
        }
        self.output.json(&json!({
            "id": prompt.id,
            "text": whole,
            "prompt_tokens": tokens.len(),
            "tokens": generation.tokens,
            "stopped_by": stopped_by,
            "forward_passes": generation.forward_passes,
            "tokens_per_forward": generation.tokens_per_forward(),
            "acceptance": generation.acceptance(),
            "seconds": {
                "prefill": generation.prefill.as_secs_f64(),
                "decode": generation.decode.as_secs_f64(),
            },
            "tokens_per_second": generation.tokens_per_second(),
        }))
    }
}

/// New tokens on their way to text.
struct Text<'t> {
    decoder: StreamDecoder,
    stops: StopTexts<'t>,
    stream: Option<&'t mut Output>,
    whole: String,
}

impl Text<'_> {
    fn push(&mut self, tokens: &[u32]) -> anyhow::Result<ControlFlow<()>> {
        for &token in tokens {
            if let Some(piece) = self.decoder.push(token)? {
                let piece = self.stops.push(&piece);
                self.emit(&piece)?;
            }
            if self.stops.found() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The whole text, and whether a stop text ended it.
    fn finish(mut self) -> anyhow::Result<(String, bool)> {
        let rest = self.decoder.finish()?;
        let mut last = self.stops.push(&rest);
        last.push_str(&self.stops.finish());
        self.emit(&last)?;
        Ok((self.whole, self.stops.found()))
    }

    fn emit(&mut self, piece: &str) -> anyhow::Result<()> {
        self.whole.push_str(piece);
        match &mut self.stream {
            Some(output) if !piece.is_empty() => output.text(piece),
            _ => Ok(()),
        }
    }
}

/// An id as text.
fn name(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

fn summary(generation: &Generation, stopped_by: StoppedBy) -> String {
    let why = match stopped_by {
        StoppedBy::EndOfText => "the model ended the text",
        StoppedBy::StopText => "a stop text came",
        StoppedBy::Limit => "--max-new-tokens reached",
        StoppedBy::Context => "the model's context is full",
    };
    format!(
        "{} tokens in {} passes ({:.2} tokens per forward), {:.0} tokens/s; {why}",
        generation.tokens.len(),
        generation.forward_passes,
        generation.tokens_per_forward(),
        generation.tokens_per_second(),
    )
}
