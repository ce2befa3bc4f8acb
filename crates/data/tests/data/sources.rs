//! What holds for every source of batches.

use std::sync::{Arc, LazyLock};

use foretoken_data::{
    BatchSampler, Batches, Mixture, Packing, Prefetch, SamplerOptions, TokenBatch, TokenShard,
    Tokenizer,
};
use proptest::prelude::*;

use crate::fixtures::{counted, shard_of};

static SHARDS: LazyLock<[Arc<TokenShard>; 3]> = LazyLock::new(|| {
    let lengths = |seed: usize, count: usize| -> Vec<usize> {
        (0..count).map(|index| 7 + (index * seed) % 211).collect()
    };
    [
        shard_of(&counted('a', &lengths(37, 60)), Tokenizer::bytes()),
        shard_of(&counted('b', &lengths(53, 25)), Tokenizer::bytes()),
        shard_of(&counted('c', &[900, 14, 400]), Tokenizer::bytes()),
    ]
});

/// A source of each kind with these options.
fn sources(options: SamplerOptions) -> Vec<Arc<dyn Batches>> {
    let sampler = |index: usize| BatchSampler::new(Arc::clone(&SHARDS[index]), options).unwrap();
    let packed = |index: usize| sampler(index).with_packing(Packing::Documents).unwrap();
    let stride = options.columns - 3;
    vec![
        Arc::new(sampler(0)),
        Arc::new(sampler(1).with_stride(stride).with_documents()),
        Arc::new(packed(0)),
        Arc::new(packed(2).with_stride(stride)),
        Arc::new(
            Mixture::new(vec![(sampler(0), 5.0), (sampler(1), 2.0), (sampler(2), 1.0)]).unwrap(),
        ),
        Arc::new(
            Mixture::new(vec![(packed(0), 0.61), (sampler(1).with_stride(stride), 0.39)]).unwrap(),
        ),
    ]
}

fn options() -> impl Strategy<Value = SamplerOptions> {
    (1_usize..9, 8_usize..200, any::<u64>()).prop_map(|(batch, columns, seed)| SamplerOptions {
        batch,
        columns,
        seed,
    })
}

/// Steps near and far.
fn step() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..300, 0_u64..2_000_000, any::<u64>()]
}

fn together(parts: &[TokenBatch]) -> TokenBatch {
    let documents: Option<Vec<_>> = parts.iter().map(|part| part.documents.clone()).collect();
    TokenBatch {
        rows: parts.iter().map(|part| part.rows).sum(),
        columns: parts[0].columns,
        tokens: parts.iter().flat_map(|part| part.tokens.clone()).collect(),
        documents: documents.map(|documents| documents.concat()),
        epoch: parts[0].epoch,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_steps_batch_is_the_same_after_any_history(
        options in options(),
        steps in prop::collection::vec(step(), 1..12),
    ) {
        for (first, second) in sources(options).iter().zip(sources(options)) {
            let forwards: Vec<_> = steps.iter().map(|&step| first.batch(step).unwrap()).collect();
            let backwards: Vec<_> =
                steps.iter().rev().map(|&step| second.batch(step).unwrap()).collect();
            prop_assert!(forwards.iter().eq(backwards.iter().rev()));
            for batch in forwards {
                prop_assert_eq!((batch.rows, batch.columns), (options.batch, options.columns));
                prop_assert_eq!(batch.tokens.len(), options.batch * options.columns);
                let numbers = batch.documents.map(|numbers| numbers.len());
                prop_assert!(numbers.is_none_or(|numbers| numbers == batch.tokens.len()));
            }
        }
    }

    #[test]
    fn processes_see_together_what_one_would_see_alone(options in options(), step in step()) {
        for source in sources(options) {
            let alone = source.batch(step).unwrap();
            for processes in 1..=4 {
                let cut = |process: usize| options.batch * process / processes;
                let parts: Vec<_> = (0..processes)
                    .map(|rank| source.rows(step, cut(rank), cut(rank + 1) - cut(rank)).unwrap())
                    .collect();
                prop_assert_eq!(&together(&parts), &alone);
            }
            prop_assert!(source.rows(step, options.batch, 1).is_err());
        }
    }

    #[test]
    fn batches_read_ahead_are_the_ones_read_directly(
        options in options(),
        start in 0_u64..1_000_000,
        count in 0_u64..12,
        ahead in 0_usize..5,
        first in 0_usize..9,
    ) {
        let first = first.min(options.batch);
        for source in sources(options) {
            let steps = start..start + count;
            let rows = first..options.batch;
            let prefetch =
                Prefetch::new(Arc::clone(&source), steps.clone(), rows, ahead).unwrap();
            let ahead: Vec<_> = prefetch.map(Result::unwrap).collect();
            let direct: Vec<_> = steps
                .map(|step| source.rows(step, first, options.batch - first).unwrap())
                .collect();
            prop_assert_eq!(ahead, direct);
        }
    }

    #[test]
    fn epochs_never_go_back_and_a_batch_names_the_slowest_corpus_s(
        options in options(),
        start in 0_u64..100_000,
    ) {
        for source in sources(options) {
            let mut before = source.epochs(start);
            for step in start..start + 40 {
                let epochs = source.epochs(step);
                prop_assert!(before.iter().zip(&epochs).all(|(before, now)| before <= now));
                prop_assert_eq!(source.batch(step).unwrap().epoch, *epochs.iter().min().unwrap());
                before = epochs;
            }
        }
    }
}
