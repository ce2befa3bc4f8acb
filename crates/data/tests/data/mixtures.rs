use std::sync::{Arc, LazyLock};

use foretoken_data::{
    BatchSampler, Batches, Error, Mixture, SamplerOptions, TokenShard, Tokenizer,
};
use proptest::prelude::*;

use crate::fixtures::{TELLING, bpe_json, counted, places, shard_of, tokenizer_of};

/// What the texts of each corpus are marked with.
const MARKS: [char; 4] = ['a', 'b', 'c', 'd'];

static SHARDS: LazyLock<Vec<Arc<TokenShard>>> = LazyLock::new(|| {
    let sizes = [3000, 700, 1500, 260];
    let texts = MARKS.iter().zip(sizes).map(|(&mark, size)| counted(mark, &[size]));
    texts.map(|texts| shard_of(&texts, Tokenizer::bytes())).collect()
});

fn sampler(corpus: usize, options: SamplerOptions) -> BatchSampler {
    BatchSampler::new(Arc::clone(&SHARDS[corpus]), options).unwrap()
}

fn mixture(weights: &[f64], options: SamplerOptions) -> Mixture {
    let corpora = weights.iter().enumerate();
    Mixture::new(corpora.map(|(corpus, &weight)| (sampler(corpus, options), weight)).collect())
        .unwrap()
}

/// The corpus of a row, by its marks.
fn corpus_of(row: &[i64]) -> usize {
    let is_of = |mark: &char| row.contains(&i64::from(u32::from(*mark)));
    let found: Vec<usize> = (0..4).filter(|&corpus| is_of(&MARKS[corpus])).collect();
    assert_eq!(found.len(), 1, "a row of {found:?}");
    found[0]
}

fn shapes() -> impl Strategy<Value = SamplerOptions> {
    (1_usize..9, TELLING..200, any::<u64>()).prop_map(|(batch, columns, seed)| SamplerOptions {
        batch,
        columns,
        seed,
    })
}

fn weights() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(1_u32..40, 1..5)
}

fn as_floats(weights: &[u32], scale: f64) -> Vec<f64> {
    weights.iter().map(|&weight| f64::from(weight) * scale).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn shares_hold_within_a_row_over_any_prefix(
        options in shapes(),
        weights in weights(),
        scale in prop_oneof![Just(1.0), Just(0.1), Just(0.01)],
    ) {
        let mixture = mixture(&as_floats(&weights, scale), options);
        let sum: u32 = weights.iter().sum();
        let exact: Vec<f64> =
            weights.iter().map(|&weight| f64::from(weight) / f64::from(sum)).collect();
        prop_assert_eq!(mixture.shares(), exact.clone());
        let mut counts = vec![0_usize; weights.len()];
        let mut rows = 0;
        for step in 0..60 {
            let batch = mixture.batch(step).unwrap();
            for row in batch.tokens.chunks(options.columns) {
                counts[corpus_of(row)] += 1;
                rows += 1;
                for (&count, share) in counts.iter().zip(&exact) {
                    let away = (count as f64 - share * f64::from(rows)).abs();
                    prop_assert!(away < 1.0, "{:?} of {}", counts, rows);
                }
            }
        }
    }

    #[test]
    fn a_corpus_visits_its_windows_once_an_epoch_at_a_pace_of_its_own(
        options in shapes(),
        weights in weights(),
    ) {
        let mixture = mixture(&as_floats(&weights, 1.0), options);
        // The windows' places in each corpus, in the order in which they come.
        let mut visited: Vec<Vec<usize>> = vec![Vec::new(); weights.len()];
        let places: Vec<_> =
            SHARDS.iter().map(|shard| places(shard, options.columns)).collect();
        for step in 0..400 {
            let epochs: Vec<u64> = visited
                .iter()
                .zip(mixture.samplers())
                .map(|(rows, sampler)| rows.len() as u64 / sampler.windows_per_epoch())
                .collect();
            prop_assert_eq!(mixture.epochs(step), epochs);
            for row in mixture.batch(step).unwrap().tokens.chunks(options.columns) {
                let corpus = corpus_of(row);
                visited[corpus].push(places[corpus][row]);
            }
        }
        for (rows, sampler) in visited.iter().zip(mixture.samplers()) {
            for epoch in rows.chunks_exact(sampler.windows_per_epoch() as usize) {
                let mut epoch = epoch.to_vec();
                epoch.sort_unstable();
                prop_assert!(epoch.windows(2).all(|pair| pair[1] - pair[0] == options.columns));
            }
        }
    }

    #[test]
    fn a_far_step_continues_each_corpus_where_its_share_has_brought_it(
        options in shapes(),
        weights in weights(),
        step in 0_u64..u64::MAX >> 8,
    ) {
        let mixture = mixture(&as_floats(&weights, 1.0), options);
        let sum: u32 = weights.iter().sum();
        let mut next = mixture.rows_before(step);
        prop_assert_eq!(next.iter().sum::<u128>(), u128::from(step) * options.batch as u128);
        for (&count, &weight) in next.iter().zip(&weights) {
            let share = u128::from(step) * options.batch as u128 * u128::from(weight);
            prop_assert!((count * u128::from(sum)).abs_diff(share) < u128::from(sum));
        }
        let batch = mixture.batch(step).unwrap();
        for row in batch.tokens.chunks(options.columns) {
            let corpus = corpus_of(row);
            let size = options.batch as u128;
            let (step, place) = ((next[corpus] / size) as u64, (next[corpus] % size) as usize);
            let expected = mixture.samplers()[corpus].rows(step, place, 1).unwrap().tokens;
            prop_assert_eq!(row, &expected);
            next[corpus] += 1;
        }
        prop_assert_eq!(next, mixture.rows_before(step + 1));
    }

    #[test]
    fn a_mixture_of_one_is_its_sampler(options in shapes(), step in 0_u64..100_000) {
        let alone = sampler(0, options).batch(step).unwrap();
        prop_assert_eq!(mixture(&[0.3], options).batch(step).unwrap(), alone);
    }
}

#[test]
fn equal_corpora_come_in_different_orders() {
    let options = SamplerOptions { batch: 2, columns: 20, seed: 5 };
    let mixture =
        Mixture::new(vec![(sampler(0, options), 1.0), (sampler(0, options), 1.0)]).unwrap();
    let batches: Vec<_> = (0..50).map(|step| mixture.batch(step).unwrap().tokens).collect();
    let same = batches.iter().filter(|tokens| tokens[..20] == tokens[20..]).count();
    assert!(same < 5, "{same} of 50");
}

#[test]
fn corpora_of_other_shapes_seeds_or_tokenizers_are_refused() {
    let options = SamplerOptions { batch: 2, columns: 20, seed: 5 };
    let refused = |other: BatchSampler| {
        Mixture::new(vec![(sampler(0, options), 1.0), (other, 1.0)]).unwrap_err()
    };
    for other in [
        SamplerOptions { batch: 3, ..options },
        SamplerOptions { columns: 21, ..options },
        SamplerOptions { seed: 6, ..options },
    ] {
        let error = refused(sampler(1, other));
        assert!(matches!(error, Error::Mixture { .. }));
        let message = error.to_string();
        assert!(message.starts_with("these corpora cannot be mixed: corpus 2 has batches of"));
        assert!(message.ends_with("the first batches of 2 rows of 20 tokens with seed 5"));
    }
    let merged = shard_of(&counted('b', &[300]), tokenizer_of(&bpe_json()));
    let error = refused(BatchSampler::new(merged, options).unwrap());
    assert!(matches!(error, Error::OtherVocabulary { .. }), "{error}");
    let message = Mixture::new(Vec::new()).unwrap_err().to_string();
    assert_eq!(message, "these corpora cannot be mixed: there are none");
    let message = Mixture::new(vec![(sampler(0, options), -1.0)]).unwrap_err().to_string();
    assert!(message.contains("corpus 1 has the weight -1, not a positive one"), "{message}");
}
