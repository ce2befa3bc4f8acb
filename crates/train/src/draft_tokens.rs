//! The tokens that heads which are trained alone choose their drafts among.

use std::collections::HashMap;

use foretoken_heads::MultiTokenModel;
use foretoken_kernels::linear;
use tch::{Kind, Tensor, no_grad};

use crate::Error;
use crate::corpus::Corpus;
use crate::progress::Word;
use crate::states::StateCache;

/// Tokens of a corpus that are read at a time.
const READ: usize = 1 << 20;

/// Batches by which [`expected`] goes: the first of the rounds, at most so many.
const BATCHES: u64 = 32;

/// Positions whose distributions over the whole vocabulary are in memory at once.
const POSITIONS: i64 = 256;

/// The most frequent tokens of the training text, each corpus by its weight.
pub(crate) fn frequent(corpus: &Corpus, most: usize) -> Result<Vec<u32>, Error> {
    let mut shares = HashMap::<u32, f64>::new();
    for (shard, weight) in corpus.train() {
        let mut counts = HashMap::<u32, u64>::new();
        for start in (0..shard.len()).step_by(READ) {
            for token in shard.tokens(start..(start + READ).min(shard.len()))? {
                *counts.entry(token).or_default() += 1;
            }
        }
        for (token, count) in counts {
            *shares.entry(token).or_default() += weight * count as f64 / shard.len() as f64;
        }
    }
    Ok(largest(shares.into_iter().collect(), most))
}

/// The tokens that `model` itself expects most in the text that its heads are trained on, some of
/// which it writes itself: those that they will have to predict, which the corpus's most frequent
/// are not. A distribution at each position says more than one token there: few batches are enough.
pub(crate) fn expected(
    model: &MultiTokenModel,
    cache: &StateCache,
    corpus: &impl Fn(u64) -> Result<Tensor, Error>,
    batches: u64,
    most: usize,
) -> Result<Vec<u32>, Error> {
    let vocab = model.config().architecture.vocab as i64;
    let mut sums = Tensor::f_zeros([vocab], (Kind::Double, model.device()))?;
    let batches = batches.min(BATCHES);
    tracing::info!("the draft vocabulary: the tokens that the model expects in {batches} batches");
    let mut word = Word::default();
    for index in 0..batches {
        if word.is_due() {
            tracing::info!("{index} of {batches} batches read");
        }
        let (_, states) = cache.batch(model, index, corpus)?;
        no_grad(|| {
            let rows = states.final_hidden.f_to_kind(model.kind())?.f_flatten(0, 1)?;
            for rows in rows.f_split(POSITIONS, 0)? {
                let logits = linear(&rows, model.unembedding())?;
                let shares = logits.f_softmax(-1, Kind::Float)?;
                sums = sums.f_add(&shares.f_sum_dim_intlist(0, false, Kind::Double)?)?;
            }
            Ok::<_, Error>(())
        })?;
    }
    let sums = Vec::<f64>::try_from(sums)?;
    Ok(largest((0..).zip(sums).collect(), most))
}

/// The tokens of the largest shares; among equal ones those of the lower ids.
fn largest(mut shares: Vec<(u32, f64)>, most: usize) -> Vec<u32> {
    shares.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    shares.into_iter().take(most).map(|(token, _)| token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TrainConfig;
    use crate::checkpoint::TrainingState;
    use foretoken_data::Tokenizer;
    use foretoken_heads::{HeadsConfig, ModelConfig};
    use foretoken_trunk::Architecture;
    use std::sync::Arc;
    use tch::Device;

    const RECIPE: &str = "[model]\ninit_from = \"m\"\n[heads]\ncount = 3\ntrain = \"alone\"\n[data]\n\
        corpus = \"code\"\n[train]\nsteps = 4\nbatch = 2\nsequence = 12\n";

    /// Against the model's distributions one by one.
    #[test]
    fn the_tokens_that_a_model_expects_most_are_those_of_its_distributions() {
        const VOCAB: usize = 90;
        let folder = tempfile::tempdir().unwrap();
        let architecture = Architecture {
            vocab: VOCAB,
            dim: 24,
            layers: 3,
            attention_heads: 4,
            kv_heads: 2,
            ffn: 30,
            context: 32,
            ..Architecture::default()
        };
        let heads = HeadsConfig::new("medusa", 3);
        let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
        let model = MultiTokenModel::new(&config, Kind::Double, Device::Cpu, 3).unwrap();
        no_grad(|| _ = model.unembedding().shallow_clone().g_mul_scalar_(40.0));
        let batch = |index: u64| {
            let tokens: Vec<i64> = (0..30).map(|i| (i * i + 7 * index as i64) % 90).collect();
            Ok(Tensor::from_slice(&tokens).view([2, 15]))
        };
        let recipe = TrainConfig::from_toml(RECIPE, &[]).unwrap();
        let tokenizer = Tokenizer::named(&recipe.data.tokenizer).unwrap();
        let states = folder.path().join("states");
        let state = TrainingState::new(&recipe, "corpus", &Tokenizer::bytes());
        let cache =
            StateCache::new(&state, &tokenizer, states, Device::Cpu, Arc::default()).unwrap();

        let mut sums = vec![0.0; VOCAB];
        for index in 0..3 {
            // The last column is a target only.
            let inputs = batch(index).unwrap().narrow(1, 0, 14);
            let logits = model.logits(0, &model.hidden(&inputs).unwrap()).unwrap().view([28, 90]);
            for logits in Vec::<Vec<f64>>::try_from(logits).unwrap() {
                let top = logits.iter().fold(f64::NEG_INFINITY, |top, &logit| top.max(logit));
                let total: f64 = logits.iter().map(|logit| (logit - top).exp()).sum();
                for (sum, logit) in sums.iter_mut().zip(logits) {
                    *sum += (logit - top).exp() / total;
                }
            }
        }
        let mut order: Vec<u32> = (0..VOCAB as u32).collect();
        order.sort_by(|&a, &b| sums[b as usize].total_cmp(&sums[a as usize]));
        for most in [1, 10, 40] {
            let tokens = expected(&model, &cache, &batch, 3, most).unwrap();
            assert_eq!(tokens, order[..most]);
        }
    }

    #[test]
    fn the_largest_shares_win_and_then_the_lower_ids() {
        let shares = vec![(7, 0.25), (3, 0.5), (5, 0.25), (1, 0.0)];
        assert_eq!(largest(shares.clone(), 2), [3, 5]);
        assert_eq!(largest(shares, 9), [3, 5, 7, 1]);
    }
}
