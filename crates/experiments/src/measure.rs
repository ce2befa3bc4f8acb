//! How a trained model decodes, and how well it predicts.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use foretoken_data::{TokenShard, Tokenizer};
use foretoken_decode::{
    Decoder, DecoderOptions, Decoding, GenerateOptions, Generation, WeightStorage,
};
use foretoken_eval::{
    Comparison, HeldOut, HeldOutOptions, LossOptions, compare, distinct_8grams, head_losses,
    held_out_texts,
};
use foretoken_heads::MultiTokenModel;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::agreement::agreement;
use crate::recipe::{DecodingPlan, Recipe};
use crate::results::{Agreement, Difference, Sample};
use crate::say::Countdown;
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
    /// The same with compact weights, where these are measured too.
    #[serde(default)]
    pub(crate) compact: Vec<WayMeasured>,
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

/// Decoding in one way.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct WayMeasured {
    pub(crate) heads_used: usize,
    /// Whether as many of them drafted as paid.
    #[serde(default)]
    pub(crate) adaptive: bool,
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
    // On a GPU a pass of many tokens takes as long as one of few.
    let walked_at_once = if model.device().is_cuda() { 16_384 } else { 2048 };
    let walk = HeldOutOptions {
        window: recipe.held_out.window,
        prompt: recipe.held_out.prompt,
        batch: (walked_at_once / recipe.held_out.window).max(1),
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
    let Decoded { ways, compact, differences, plain } =
        decode(name, model, baseline, texts.prompts, recipe, stop)?;
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
        compact,
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

/// What decoding every prompt in every way came to.
struct Decoded {
    ways: Vec<WayMeasured>,
    compact: Vec<WayMeasured>,
    differences: Vec<Difference>,
    /// What plain decoding wrote.
    plain: Vec<Generation>,
}

/// A way of decoding.
#[derive(Clone, Copy)]
struct Way {
    heads_used: usize,
    /// Whether as many of them draft as pay.
    adaptive: bool,
    alternatives: usize,
}

impl Way {
    const PLAIN: Self = Self { heads_used: 1, adaptive: false, alternatives: 0 };

    /// Decoding with 1 to `heads` heads.
    fn of_each(heads: usize, alternatives: usize) -> Vec<Self> {
        let way = |heads_used| Self { heads_used, adaptive: false, alternatives };
        (1..=heads).map(way).collect()
    }
}

/// A decoder, what it wrote in each of some ways, the first of which is plain decoding, and how long
/// that took.
struct Ways<'m> {
    decoder: Decoder<'m>,
    each: Vec<Way>,
    outputs: Vec<Vec<Generation>>,
    times: Vec<Times>,
}

impl<'m> Ways<'m> {
    fn new(
        model: &'m MultiTokenModel,
        weights: WeightStorage,
        each: Vec<Way>,
    ) -> anyhow::Result<Self> {
        let options = DecoderOptions { weights, ..DecoderOptions::default() };
        Ok(Self {
            decoder: Decoder::with_options(model, options)?,
            outputs: vec![Vec::new(); each.len()],
            times: vec![Times::default(); each.len()],
            each,
        })
    }

    fn run(&mut self, prompt: &[u32], way: usize, plan: &DecodingPlan) -> anyhow::Result<()> {
        let options = options(self.each[way], plan.new_tokens);
        let run = generate(&mut self.decoder, prompt, &options)?;
        self.times[way].add(&run);
        // Of the first repeat: the others write the same. (Adaptive decoding in fewer passes, once it
        // has learned; its figure is with what it learns by.)
        if self.times[way].is_first() {
            self.outputs[way].push(run);
        }
        Ok(())
    }

    /// What each way came to, against plain decoding by this decoder and by `baseline`.
    fn summary(
        &self,
        name: &str,
        plain: &[Generation],
        baseline: &Times,
        differences: &mut Vec<Difference>,
    ) -> Vec<WayMeasured> {
        let both = self.outputs.iter().zip(&self.times).zip(&self.each);
        let ways = both.map(|((outputs, times), way)| {
            let parted = compare_all(name, way.heads_used, plain, outputs);
            let against = (&self.times[0], baseline);
            let way = summarise(*way, outputs, &parted, times, against);
            differences.extend(parted);
            way
        });
        ways.collect()
    }
}

/// Decodes every prompt in every way, all ways in turn, `repeats` times over.
fn decode(
    name: &str,
    model: &MultiTokenModel,
    baseline: Option<&MultiTokenModel>,
    prompts: &[Vec<u32>],
    recipe: &Recipe,
    stop: &AtomicBool,
) -> anyhow::Result<Decoded> {
    let heads = model.config().heads.count;
    let plan = &recipe.decoding;
    let full = WeightStorage::Full;
    let mut all = vec![Ways::new(model, full, Way::of_each(heads, plan.alternatives))?];
    if let Some(compact) = plan.compact.as_ref().filter(|_| model.device() == Device::Cpu) {
        let mut ways = Way::of_each(heads, compact.alternatives);
        if heads > 1 {
            let alternatives = GenerateOptions::USUAL_ALTERNATIVES;
            ways.push(Way { heads_used: heads, adaptive: true, alternatives });
        }
        all.push(Ways::new(model, WeightStorage::Compact, ways)?);
    }
    let compact = all.len() > 1;
    if let Some(baseline) = baseline {
        all.push(Ways::new(baseline, full, vec![Way::PLAIN])?);
    }
    // The first pass of each decoder is slower than all others.
    let once = options(Way::PLAIN, plan.new_tokens);
    for ways in &mut all {
        if let Some(prompt) = prompts.first() {
            _ = generate(&mut ways.decoder, prompt, &once)?;
        }
    }
    // Which decoder, and in which of its ways.
    let turns = all.iter().enumerate();
    let turns: Vec<(usize, usize)> =
        turns.flat_map(|(which, ways)| (0..ways.each.len()).map(move |way| (which, way))).collect();
    let mut countdown = Countdown::new("prompts decoded in all ways", plan.repeats * prompts.len());
    for repeat in 0..plan.repeats {
        all.iter_mut().flat_map(|ways| &mut ways.times).for_each(Times::open);
        for (index, prompt) in prompts.iter().enumerate() {
            check(stop)?;
            // One way after the other, starting elsewhere each time.
            for turn in 0..turns.len() {
                let (which, way) = turns[(turn + index + repeat) % turns.len()];
                all[which].run(prompt, way, plan)?;
            }
            countdown.tick();
        }
    }
    let plain = with_gaps(&mut all, compact, prompts, plan, stop)?;
    let own = all[0].times[0].clone();
    let baseline = if baseline.is_some() { all.pop() } else { None };
    let baseline = baseline.map_or_else(|| own.clone(), |ways| ways.times[0].clone());
    let mut differences = Vec::new();
    let ways = all[0].summary(name, &plain, &baseline, &mut differences);
    let compact = match all.get(1) {
        // Counted only: the list is of the other table.
        Some(compact) => compact.summary(name, &plain, &own, &mut Vec::new()),
        None => Vec::new(),
    };
    Ok(Decoded { ways, compact, differences, plain })
}

/// What plain decoding wrote; where another way of the model wrote something else, once more with the
/// gaps between the best logits, which say whether it may.
fn with_gaps(
    all: &mut [Ways],
    compact: bool,
    prompts: &[Vec<u32>],
    plan: &DecodingPlan,
    stop: &AtomicBool,
) -> anyhow::Result<Vec<Generation>> {
    let again = GenerateOptions { record_gaps: true, ..options(Way::PLAIN, plan.new_tokens) };
    let mut plain = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        check(stop)?;
        let written = all[0].outputs[0][index].clone();
        let of_model = &all[..=usize::from(compact)];
        let mut outputs = of_model.iter().flat_map(|ways| &ways.outputs);
        plain.push(match outputs.all(|way| way[index].tokens == written.tokens) {
            true => written,
            false => generate(&mut all[0].decoder, prompt, &again)?,
        });
    }
    Ok(plain)
}

fn generate(
    decoder: &mut Decoder,
    prompt: &[u32],
    options: &GenerateOptions,
) -> anyhow::Result<Generation> {
    Ok(decoder.generate(prompt, options, &mut |_, _| ControlFlow::Continue(()))?)
}

/// Decoding in a way; with one head it is autoregressive. There is no end of text, so that all ways
/// write the same number of tokens.
fn options(
    Way { heads_used: heads, adaptive, alternatives }: Way,
    new_tokens: usize,
) -> GenerateOptions {
    GenerateOptions {
        max_new_tokens: new_tokens,
        decoding: match heads {
            1 => Decoding::Autoregressive,
            _ if adaptive => Decoding::Adaptive { heads },
            _ => Decoding::Speculative { heads },
        },
        end_of_text: Vec::new(),
        sampling: None,
        alternatives,
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
    Way { heads_used, adaptive, .. }: Way,
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
        adaptive,
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
    let way = Way { heads_used, adaptive: false, alternatives: plan.alternatives };
    let options = options(way, plan.sample_tokens);
    let run = generate(&mut Decoder::new(model)?, prompt, &options)?;
    Ok(Sample {
        model: name.to_owned(),
        heads_used,
        prompt: texts.tokenizer.decode(prompt)?,
        pieces: pieces(texts.tokenizer, prompt, &run)?,
        tokens: run.tokens.len(),
        forward_passes: run.forward_passes,
    })
}

/// Text and head of each token. A character of several tokens belongs to the one that ends it.
fn pieces(
    tokenizer: &Tokenizer,
    prompt: &[u32],
    run: &Generation,
) -> anyhow::Result<Vec<(String, usize)>> {
    let mut stream = tokenizer.stream_after(prompt)?;
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
