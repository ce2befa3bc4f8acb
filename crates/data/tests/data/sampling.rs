use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use foretoken_data::{
    BatchSampler, CorpusSource, Error, SamplerOptions, Split, SplitFractions, TokenShard,
    open_split,
};
use proptest::prelude::*;

use crate::fixtures::{folder, options, run, write};

/// Shortest window that occurs once in [`SHARD`].
const TELLING: usize = 12;

/// Counted lines, so that a window tells where it comes from.
static SHARD: LazyLock<Arc<TokenShard>> = LazyLock::new(|| {
    let root = folder();
    let text: String = (0..400).map(|line| format!("{line:05}\n")).collect();
    Arc::new(shard_of(&text, root.path()))
});

/// The shard stays mapped when its folder is gone.
fn shard_of(text: &str, root: &std::path::Path) -> TokenShard {
    let path = write(root, "a.txt", text);
    let mut options = options(CorpusSource::Path(path), &root.join("shards"));
    options.split = SplitFractions::all_train();
    run(&options).unwrap();
    open_split(&root.join("shards"), Split::Train).unwrap()
}

fn sampler(options: SamplerOptions) -> BatchSampler {
    BatchSampler::new(Arc::clone(&SHARD), options).unwrap()
}

/// Where each window of `columns` tokens begins, found by looking.
fn places(columns: usize) -> HashMap<Vec<i64>, usize> {
    let tokens: Vec<i64> =
        SHARD.tokens(0..SHARD.len()).unwrap().into_iter().map(i64::from).collect();
    let places: HashMap<Vec<i64>, usize> = tokens
        .windows(columns)
        .enumerate()
        .map(|(start, window)| (window.to_vec(), start))
        .collect();
    assert_eq!(places.len(), tokens.len() - columns + 1, "windows repeat");
    places
}

fn shapes() -> impl Strategy<Value = SamplerOptions> {
    (1_usize..9, TELLING..300, any::<u64>()).prop_map(|(batch, columns, seed)| SamplerOptions {
        batch,
        columns,
        seed,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_steps_batch_is_the_same_in_any_order_of_calls(options in shapes(), steps in prop::collection::vec(0_u64..10_000, 1..20)) {
        let first = sampler(options);
        let forwards: Vec<_> = steps.iter().map(|&step| first.batch(step).unwrap()).collect();
        let second = sampler(options);
        let mut backwards: Vec<_> = steps.iter().rev().map(|&step| second.batch(step).unwrap()).collect();
        backwards.reverse();
        prop_assert_eq!(forwards, backwards);
    }

    #[test]
    fn an_epoch_visits_every_window_once_and_each_is_a_piece_of_the_shard(options in shapes(), stride in 1_usize..400, epoch in 0_u64..3) {
        let sampler = sampler(options).with_stride(stride);
        let places = places(options.columns);
        let windows = sampler.windows_per_epoch();
        let rows = epoch * windows..(epoch + 1) * windows;
        let mut starts: Vec<usize> = rows
            .map(|row| {
                let batch = options.batch as u64;
                let window = sampler.rows(row / batch, (row % batch) as usize, 1).unwrap();
                places[&window.tokens]
            })
            .collect();
        starts.sort_unstable();
        prop_assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == stride), "{:?}", starts);
        // No further window fits on both sides of the grid at every shift.
        let spare = SHARD.len() - options.columns;
        prop_assert!(starts[0] <= spare - stride * (windows as usize - 1));
        prop_assert!(spare - stride * (windows as usize - 1) < 2 * stride);
    }

    #[test]
    fn rows_of_several_processes_put_together_are_the_batch(options in shapes(), step in 0_u64..500, cut in 0_usize..9) {
        let sampler = sampler(options);
        let cut = cut.min(options.batch);
        let batch = sampler.batch(step).unwrap();
        let mut tokens = sampler.rows(step, 0, cut).unwrap().tokens;
        tokens.extend(sampler.rows(step, cut, options.batch - cut).unwrap().tokens);
        prop_assert_eq!(tokens, batch.tokens);
    }
}

#[test]
fn epochs_are_counted_and_differ_in_order_and_in_boundaries() {
    let options = SamplerOptions { batch: 1, columns: 40, seed: 3 };
    let sampler = sampler(options);
    let places = places(40);
    let windows = sampler.windows_per_epoch();
    let epoch = |epoch: u64| -> Vec<usize> {
        (epoch * windows..(epoch + 1) * windows)
            .map(|step| {
                let batch = sampler.batch(step).unwrap();
                assert_eq!(batch.epoch, epoch);
                places[&batch.tokens]
            })
            .collect()
    };
    let (first, second) = (epoch(0), epoch(1));
    assert_ne!(first, second);
    assert!(!first.is_sorted());
    let offsets: Vec<usize> = (0..30).map(|number| epoch(number)[0] % 40).collect();
    let distinct: std::collections::HashSet<_> = offsets.iter().collect();
    assert!(distinct.len() > 10, "{offsets:?}");
}

#[test]
fn seeds_give_different_orders() {
    let batches: Vec<_> = (0..20)
        .map(|seed| {
            sampler(SamplerOptions { batch: 4, columns: 30, seed }).batch(0).unwrap().tokens
        })
        .collect();
    let distinct: std::collections::HashSet<_> = batches.iter().collect();
    assert_eq!(distinct.len(), 20);
}

#[test]
fn a_batch_larger_than_an_epoch_goes_on_with_the_next() {
    let options = SamplerOptions { batch: 64, columns: 100, seed: 1 };
    let sampler = sampler(options);
    let windows = sampler.windows_per_epoch();
    assert!(windows < 64);
    assert_eq!(sampler.batches_per_epoch(), 1);
    assert_eq!(sampler.batch(0).unwrap().epoch, 0);
    assert_eq!(sampler.batch(1).unwrap().epoch, 64 / windows);
}

#[test]
fn a_shard_of_exactly_one_window_serves_it_and_one_token_less_is_refused() {
    let folder = folder();
    let shard = Arc::new(shard_of("0123456789", folder.path()));
    let of = |columns| {
        BatchSampler::new(Arc::clone(&shard), SamplerOptions { batch: 2, columns, seed: 1 })
    };
    let batch = of(12).unwrap().batch(5).unwrap();
    assert_eq!((batch.rows, batch.columns, batch.tokens.len()), (2, 12, 24));
    assert_eq!(batch.tokens[..12], batch.tokens[12..]);
    let error = of(13).unwrap_err();
    assert!(matches!(error, Error::TooSmall { tokens: 12, needed: 13, .. }));
    let message = error.to_string();
    assert!(message.contains("has 12 tokens and one window needs 13"), "{message}");
}

#[test]
fn an_empty_or_impossible_batch_is_refused() {
    for (batch, columns) in [(0, 8), (8, 0), (usize::MAX, 2), (usize::MAX / 2, 2)] {
        let result =
            BatchSampler::new(Arc::clone(&SHARD), SamplerOptions { batch, columns, seed: 0 });
        assert!(matches!(result, Err(Error::BatchShape { .. })));
    }
    let huge = sampler(SamplerOptions { batch: usize::MAX >> 12, columns: 100, seed: 0 });
    assert!(matches!(huge.batch(0), Err(Error::BatchShape { problem: "too large", .. })));
}
