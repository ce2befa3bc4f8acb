//! How a trained model decodes, and how well it predicts.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use foretoken_data::{TokenShard, Tokenizer};
use foretoken_decode::{Decoder, Decoding, GenerateOptions, Generation};
use foretoken_eval::{
    Comparison, HeldOut, HeldOutOptions, LossOptions, compare, distinct_8grams, head_losses,
    held_out_texts,
};
use foretoken_heads::MultiTokenModel;
use serde::{Deserialize, Serialize};

use crate::agreement::agreement;
use crate::recipe::{DecodingPlan, Recipe};
use crate::results::{Agreement, Difference, Sample};
use crate::stretches::stretches;
use crate::timing::Times;

/// Everything measured on one model; kept in a file, so that it is measured once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) parameters: u64,
    /// In all, as the next-token baseline counts them.
    pub(crate) layers: usize,
    pub(crate) dim: usize,
    pub(crate) vocab: usize,
    pub(crate) validation_loss: Vec<f64>,
    pub(crate) held_out: HeldOut,
    pub(crate) other: Option<OnOther>,
    pub(crate) ways: Vec<WayMeasured>,
    pub(crate) differences: Vec<Difference>,
    pub(crate) sample: Option<Sample>,
    /// The count over the whole test split.
    pub(crate) agreement: Option<Agreement>,
}

/// Predictions on another corpus.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OnOther {
    pub(crate) loss: Vec<f64>,
    pub(crate) held_out: HeldOut,
}

/// Decoding with one number of heads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WayMeasured {
    pub(crate) heads_used: usize,
    pub(crate) tokens_per_forward: f64,
    pub(crate) acceptance: Vec<f64>,
    pub(crate) distinct_8grams: f64,
    pub(crate) tokens_per_second: f64,
    pub(crate) speedup: f64,
    pub(crate) speedup_range: (f64, f64),
    pub(crate) speedup_with_prompt: f64,
    pub(crate) speedup_over_baseline: f64,
    pub(crate) mismatches: usize,
    pub(crate) near_ties: usize,
}

/// The texts that models are measured on.
pub(crate) struct Texts<'t> {
    pub(crate) tokenizer: &'t Tokenizer,
    pub(crate) validation: &'t TokenShard,
    pub(crate) test: &'t TokenShard,
    pub(crate) other: Option<&'t TokenShard>,
    pub(crate) prompts: &'t [Vec<u32>],
}

/// The run was asked to stop.
#[derive(Debug)]
pub(crate) struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted, what is done is kept")
    }
}

impl std::error::Error for Stopped {}

/// Fails with [`Stopped`] when the run was asked to stop.
pub(crate) fn check(stop: &AtomicBool) -> anyhow::Result<()> {
    if stop.load(Ordering::Relaxed) {
        return Err(Stopped.into());
    }
    Ok(())
}

/// Measures `model` (called `name`), with the baseline beside it for the wall-clock ratios unless
/// it is that itself.
pub(crate) fn measure(
    name: &str,
    model: &MultiTokenModel,
    baseline: Option<&MultiTokenModel>,
    texts: &Texts,
    recipe: &Recipe,
    stop: &AtomicBool,
) -> anyhow::Result<Measured> {
    let heads = model.config().heads.count;
    let sequence = recipe.largest()?.train.sequence;
    let seed = recipe.largest()?.train.seed;
    let losses = LossOptions {
        windows: recipe.validation.windows,
        sequence,
        batch: (4096 / sequence).max(1),
        seed,
    };
    let walk = HeldOutOptions {
        window: recipe.held_out.window,
        prompt: recipe.held_out.prompt,
        batch: (2048 / recipe.held_out.window).max(1),
    };
    let validation_loss = head_losses(model, texts.validation, &losses)?;
    check(stop)?;
    let held_out = held_out_texts(model, &held_out_text(texts.test, heads, recipe)?, &walk)?;
    check(stop)?;
    let other = match texts.other {
        Some(shard) => Some(OnOther {
            loss: head_losses(model, shard, &losses)?,
            held_out: held_out_texts(model, &held_out_text(shard, heads, recipe)?, &walk)?,
        }),
        None => None,
    };
    check(stop)?;
    let (ways, differences, plain) = decode(name, model, baseline, texts.prompts, recipe, stop)?;
    let sample = if heads > 1 && recipe.decoding.sample_tokens > 0 {
        Some(sample(name, model, liveliest(texts.prompts, &plain), texts, recipe)?)
    } else {
        None
    };
    let agreement = if heads > 1 && recipe.pretrained().is_none() {
        let lengths = (recipe.decoding.prompt_tokens, recipe.decoding.new_tokens);
        Some(agreement(name, model, texts.test, lengths, stop)?)
    } else {
        None
    };
    let sizes = &model.config().architecture;
    Ok(Measured {
        parameters: model.parameter_count() as u64,
        layers: sizes.layers,
        dim: sizes.dim,
        vocab: sizes.vocab,
        validation_loss,
        held_out,
        other,
        ways,
        differences,
        sample,
        agreement,
    })
}

/// The held-out text: windows at seeded places that spread over a shard, the same ones for every
/// model of a recipe, each with the tokens that the drafts of `heads` heads are checked against.
fn held_out_text(
    shard: &TokenShard,
    heads: usize,
    recipe: &Recipe,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let plan = &recipe.held_out;
    let most = recipe.heads.iter().copied().max().unwrap_or(heads);
    let seed = recipe.largest()?.train.seed;
    let mut texts = stretches(shard, plan.windows(), plan.window + most, seed)?;
    for text in &mut texts {
        text.truncate(plan.window + heads);
    }
    Ok(texts)
}

/// Decodes every prompt in every way, all ways in turn, `repeats` times over; what plain decoding
/// wrote comes last.
fn decode(
    name: &str,
    model: &MultiTokenModel,
    baseline: Option<&MultiTokenModel>,
    prompts: &[Vec<u32>],
    recipe: &Recipe,
    stop: &AtomicBool,
) -> anyhow::Result<(Vec<WayMeasured>, Vec<Difference>, Vec<Generation>)> {
    let heads = model.config().heads.count;
    let mut decoder = Decoder::new(model)?;
    let mut baseline_decoder = baseline.map(Decoder::new).transpose()?;
    // The first pass of each decoder is slower than all others.
    for decoder in std::iter::once(&mut decoder).chain(&mut baseline_decoder) {
        if let Some(prompt) = prompts.first() {
            _ = generate(decoder, prompt, 1, false, recipe)?;
        }
    }
    let mut outputs: Vec<Vec<Generation>> = vec![Vec::new(); heads];
    let mut times = vec![Times::default(); heads];
    let mut baseline_times = Times::default();
    for repeat in 0..recipe.decoding.repeats {
        times.iter_mut().for_each(Times::open);
        baseline_times.open();
        for (index, prompt) in prompts.iter().enumerate() {
            check(stop)?;
            // The baseline, then k = 1, 2, …, starting elsewhere each time.
            for turn in 0..=heads {
                let way = (turn + index + repeat) % (heads + 1);
                if way == 0 {
                    if let Some(decoder) = &mut baseline_decoder {
                        baseline_times.add(&generate(decoder, prompt, 1, false, recipe)?);
                    }
                    continue;
                }
                let run = generate(&mut decoder, prompt, way, false, recipe)?;
                times[way - 1].add(&run);
                if repeat == 0 {
                    outputs[way - 1].push(run);
                }
            }
        }
    }
    let plain = with_gaps(&mut decoder, prompts, &outputs, recipe, stop)?;
    let mut differences = Vec::new();
    let ways = (1..=heads)
        .map(|heads_used| {
            let outputs = &outputs[heads_used - 1];
            let parted = compare_all(name, heads_used, &plain, outputs);
            let way = summarise(
                heads_used,
                outputs,
                &parted,
                &times[heads_used - 1],
                (&times[0], baseline.map_or(&times[0], |_| &baseline_times)),
            );
            differences.extend(parted);
            way
        })
        .collect();
    Ok((ways, differences, plain))
}

/// What plain decoding wrote; where another way wrote something else, once more with the gaps
/// between the best logits, which say whether it may.
fn with_gaps(
    decoder: &mut Decoder,
    prompts: &[Vec<u32>],
    outputs: &[Vec<Generation>],
    recipe: &Recipe,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Generation>> {
    let plain = outputs.first().map_or(&[][..], |plain| plain);
    let pairs = prompts.iter().zip(plain).enumerate();
    pairs
        .map(|(index, (prompt, plain))| {
            check(stop)?;
            let same = |way: &Vec<Generation>| way[index].tokens == plain.tokens;
            match outputs.iter().all(same) {
                true => Ok(plain.clone()),
                false => generate(decoder, prompt, 1, true, recipe),
            }
        })
        .collect()
}

/// One generation with `heads_used` heads; 1 is plain autoregressive decoding. There is no end of
/// text, so that all ways write the same number of tokens.
fn generate(
    decoder: &mut Decoder,
    prompt: &[u32],
    heads_used: usize,
    record_gaps: bool,
    recipe: &Recipe,
) -> anyhow::Result<Generation> {
    let plan = &recipe.decoding;
    let options = GenerateOptions { record_gaps, ..options(plan, heads_used, plan.new_tokens) };
    let run = decoder.generate(prompt, &options, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(run)
}

fn options(plan: &DecodingPlan, heads_used: usize, new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: new_tokens,
        decoding: match heads_used {
            1 => Decoding::Autoregressive,
            heads => Decoding::Speculative { heads },
        },
        end_of_text: Vec::new(),
        sampling: None,
        alternatives: plan.alternatives,
        record_gaps: false,
    }
}

fn compare_all(
    name: &str,
    heads_used: usize,
    references: &[Generation],
    outputs: &[Generation],
) -> Vec<Difference> {
    references
        .iter()
        .zip(outputs)
        .enumerate()
        .map(|(prompt, (reference, output))| Difference {
            model: name.to_owned(),
            heads_used,
            prompt,
            comparison: compare(&reference.tokens, &reference.gaps, &output.tokens),
        })
        .filter(|difference| difference.comparison != Comparison::Identical)
        .collect()
}

fn summarise(
    heads_used: usize,
    outputs: &[Generation],
    differences: &[Difference],
    times: &Times,
    (plain, baseline): (&Times, &Times),
) -> WayMeasured {
    let tokens: usize = outputs.iter().map(|run| run.tokens.len()).sum();
    let passes: usize = outputs.iter().map(|run| run.forward_passes).sum();
    let acceptance = (0..heads_used).map(|head| {
        let accepted = |run: &Generation| run.accepted.get(head).copied().unwrap_or(0);
        outputs.iter().map(accepted).sum::<usize>() as f64 / passes.max(1) as f64
    });
    let texts: Vec<&[u32]> = outputs.iter().map(|run| &run.tokens[..]).collect();
    let near_ties = differences
        .iter()
        .filter(|difference| matches!(difference.comparison, Comparison::NearTie { .. }))
        .count();
    let (speedup, low, high) = times.speedup_over(plain);
    WayMeasured {
        heads_used,
        tokens_per_forward: tokens as f64 / passes.max(1) as f64,
        acceptance: acceptance.collect(),
        distinct_8grams: distinct_8grams(&texts),
        // The first token of each prompt is the prompt's pass.
        tokens_per_second: (tokens - outputs.len()) as f64 / times.median_decode().max(1e-9),
        speedup,
        speedup_range: (low, high),
        speedup_with_prompt: times.speedup_with_prompt(plain),
        speedup_over_baseline: times.speedup_over(baseline).0,
        mismatches: differences.len() - near_ties,
        near_ties,
    }
}

/// The prompt that the model continues with the fewest loops.
fn liveliest<'p>(prompts: &'p [Vec<u32>], continued: &[Generation]) -> &'p [u32] {
    let distinct = |(_, run): &(&Vec<u32>, &Generation)| distinct_8grams(&[&run.tokens]);
    let both = prompts.iter().zip(continued);
    both.max_by(|a, b| distinct(a).total_cmp(&distinct(b))).map_or(&[], |(prompt, _)| prompt)
}

/// A text with the head of each token, with all heads.
fn sample(
    name: &str,
    model: &MultiTokenModel,
    prompt: &[u32],
    texts: &Texts,
    recipe: &Recipe,
) -> anyhow::Result<Sample> {
    let heads_used = model.config().heads.count;
    let plan = &recipe.decoding;
    let options = options(plan, heads_used, plan.sample_tokens);
    let mut decoder = Decoder::new(model)?;
    let run = decoder.generate(prompt, &options, &mut |_, _| ControlFlow::Continue(()))?;
    Ok(Sample {
        model: name.to_owned(),
        heads_used,
        prompt: texts.tokenizer.decode(prompt)?,
        pieces: pieces(texts.tokenizer, &run)?,
        tokens: run.tokens.len(),
        forward_passes: run.forward_passes,
    })
}

/// Text and head of each token. A character of several tokens belongs to the one that ends it.
fn pieces(tokenizer: &Tokenizer, run: &Generation) -> anyhow::Result<Vec<(String, usize)>> {
    let mut stream = tokenizer.stream();
    let mut pieces = Vec::new();
    for (&token, &head) in run.tokens.iter().zip(&run.drafted_by) {
        if let Some(text) = stream.push(token)? {
            pieces.push((text, head));
        }
    }
    let rest = stream.finish()?;
    if !rest.is_empty() {
        pieces.push((rest, 0));
    }
    Ok(pieces)
}
