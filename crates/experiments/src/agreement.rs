//! Speculative and plain decoding beside each other over a whole split.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

use foretoken_data::TokenShard;
use foretoken_decode::{Decoder, DecoderOptions, Decoding, GenerateOptions};
use foretoken_eval::{Comparison, compare};
use foretoken_heads::MultiTokenModel;

use crate::measure::check;
use crate::results::{Agreement, Difference};
use crate::say::Countdown;

/// Decodes a whole shard in prompts of `prompt_tokens`, `new_tokens` behind each, plainly and with
/// all heads, and counts the prompts where the two differ.
pub(crate) fn agreement(
    name: &str,
    model: &MultiTokenModel,
    shard: &TokenShard,
    (prompt_tokens, new_tokens): (usize, usize),
    stop: &AtomicBool,
) -> anyhow::Result<Agreement> {
    let heads_used = model.config().heads.count;
    // Nothing is timed here, and the bits do not depend on the threads: all of them.
    let threads = std::thread::available_parallelism().ok().map(usize::from);
    let options = DecoderOptions { threads, ..DecoderOptions::default() };
    let mut decoder = Decoder::with_options(model, options)?;
    let stride = prompt_tokens + new_tokens;
    let prompts = shard.len() / stride.max(1);
    let mut differences = Vec::new();
    let mut countdown = Countdown::new("prompts of the test split compared", prompts);
    for prompt in 0..prompts {
        check(stop)?;
        let tokens = shard.tokens(prompt * stride..prompt * stride + prompt_tokens)?;
        let mut generate = |decoding, record_gaps| {
            let options = GenerateOptions {
                max_new_tokens: new_tokens,
                decoding,
                record_gaps,
                ..GenerateOptions::default()
            };
            decoder.generate(&tokens, &options, &mut |_, _| ControlFlow::Continue(()))
        };
        let plain = generate(Decoding::Autoregressive, true)?;
        let fast = generate(Decoding::Speculative { heads: heads_used }, false)?;
        let comparison = compare(&plain.tokens, &plain.gaps, &fast.tokens);
        if comparison != Comparison::Identical {
            differences.push(Difference { model: name.to_owned(), heads_used, prompt, comparison });
        }
        countdown.tick();
    }
    let near_ties = differences
        .iter()
        .filter(|difference| matches!(difference.comparison, Comparison::NearTie { .. }))
        .count();
    Ok(Agreement {
        model: name.to_owned(),
        heads_used,
        prompts,
        new_tokens: prompts * new_tokens,
        mismatches: differences.len() - near_ties,
        near_ties,
        differences,
    })
}
