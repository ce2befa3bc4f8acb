//! Documents within rows: their numbers, and rows that are packed with whole ones.

use std::ops::Range;
use std::sync::Arc;

use foretoken_data::{
    BatchSampler, Batches, Packing, SamplerOptions, TokenBatch, TokenShard, Tokenizer,
};
use proptest::prelude::*;

use crate::fixtures::{TELLING, counted, fallback_json, places, shard_of, tokenizer_of};

/// The end-of-text token of bytes.
const END: i64 = 256;

fn lengths(most: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..most, 1..40)
}

/// The tokens of a whole shard.
fn tokens(shard: &TokenShard) -> Vec<i64> {
    let mut tokens = Vec::new();
    shard.extend_indices(0..shard.len(), &mut tokens).unwrap();
    tokens
}

/// Checks a sampler's numbers of documents against `owners`, the document of each token of the
/// shard.
fn check_numbers(sampler: &BatchSampler, owners: &[usize], steps: u64) {
    let columns = sampler.options().columns;
    let places = places(sampler.shard(), columns);
    for step in 0..steps {
        let batch = sampler.batch(step).unwrap();
        let numbers = batch.documents.unwrap();
        for (row, numbers) in batch.tokens.chunks(columns).zip(numbers.chunks(columns)) {
            let start = places[row];
            let owners = &owners[start..start + columns];
            let expected: Vec<u32> =
                owners.iter().map(|owner| (owner - owners[0]) as u32).collect();
            assert_eq!(numbers, expected, "at {start}");
        }
    }
}

/// The rows of the first `epochs` epochs, each as its pieces and the number of tokens behind them.
fn packed_epochs(sampler: &BatchSampler, epochs: u64) -> Vec<Vec<(Vec<Vec<i64>>, usize)>> {
    let mut found = vec![Vec::new(); epochs as usize];
    for step in 0.. {
        let batch = sampler.batch(step).unwrap();
        assert_eq!(vec![batch.epoch], sampler.epochs(step));
        if batch.epoch >= epochs {
            break;
        }
        let numbers = batch.documents.unwrap();
        let mut pieces: Vec<Vec<i64>> = Vec::new();
        let mut padding = 0;
        for (&token, &number) in batch.tokens.iter().zip(&numbers) {
            if number == TokenBatch::PADDING {
                assert_eq!(token, END);
                padding += 1;
                continue;
            }
            assert_eq!(padding, 0, "a document behind the padding");
            if number as usize == pieces.len() {
                pieces.push(Vec::new());
            }
            assert_eq!(number as usize + 1, pieces.len(), "numbers are not in order");
            pieces[number as usize].push(token);
        }
        found[batch.epoch as usize].push((pieces, padding));
    }
    found
}

/// Where the documents of a shard lie with the end-of-text tokens around them, found by looking.
fn spans(tokens: &[i64]) -> Vec<Range<usize>> {
    let ends: Vec<usize> = (0..tokens.len()).filter(|&place| tokens[place] == END).collect();
    ends.windows(2).map(|pair| pair[0]..pair[1] + 1).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn documents_are_numbered_as_a_scan_for_end_of_text_numbers_them(
        lengths in lengths(120),
        columns in TELLING..300,
        stride in 1_usize..300,
        seed: u64,
    ) {
        let shard = shard_of(&counted('a', &lengths), Tokenizer::bytes());
        prop_assume!(shard.len() >= columns);
        // The end-of-text token is of the document that it ends; the first ends none.
        let mut owner = 0;
        let owners: Vec<usize> = tokens(&shard)
            .iter()
            .enumerate()
            .map(|(place, &token)| {
                let now = owner;
                owner += usize::from(token == END && place > 0);
                now
            })
            .collect();
        let options = SamplerOptions { batch: 3, columns, seed };
        let sampler = BatchSampler::new(shard, options).unwrap().with_stride(stride);
        prop_assert_eq!(sampler.batch(0).unwrap().documents, None);
        check_numbers(&sampler.with_documents(), &owners, 40);
    }

    #[test]
    fn documents_are_numbered_without_end_of_text_tokens_too(
        lengths in lengths(120),
        columns in TELLING..300,
        seed: u64,
    ) {
        let shard = shard_of(&counted('a', &lengths), tokenizer_of(&fallback_json()));
        prop_assume!(shard.manifest().tokenizer.end_of_text.is_none() && shard.len() >= columns);
        let owners: Vec<usize> = (0..shard.documents())
            .flat_map(|document| vec![document; shard.document(document).unwrap().len()])
            .collect();
        let options = SamplerOptions { batch: 3, columns, seed };
        check_numbers(&BatchSampler::new(shard, options).unwrap().with_documents(), &owners, 40);
    }

    #[test]
    fn an_epoch_of_packed_rows_has_every_document_once(
        lengths in lengths(400),
        columns in TELLING + 2..300,
        overlap in TELLING..40,
        seed: u64,
    ) {
        let overlap = overlap.min(columns - 1);
        let shard = shard_of(&counted('a', &lengths), Tokenizer::bytes());
        prop_assume!(shard.len() >= columns);
        let stream = tokens(&shard);
        let options = SamplerOptions { batch: 1, columns, seed };
        let sampler = BatchSampler::new(Arc::clone(&shard), options)
            .unwrap()
            .with_stride(columns - overlap)
            .with_packing(Packing::Documents)
            .unwrap();
        let epochs = packed_epochs(&sampler, 6);
        prop_assert_eq!(epochs[0].len() as u64, sampler.windows_per_epoch());
        let places = places(&shard, TELLING);
        for epoch in epochs {
            // Where each piece lies in the shard.
            let pieces = epoch.iter().flat_map(|(pieces, _)| pieces);
            let mut pieces: Vec<Range<usize>> = pieces
                .map(|piece| {
                    // Short ones are whole documents, which end-of-text tokens tell apart.
                    let telling = piece.len().min(TELLING);
                    let start = places.get(&piece[..telling]).copied().unwrap_or_else(|| {
                        stream.windows(piece.len()).position(|window| window == piece).unwrap()
                    });
                    start..start + piece.len()
                })
                .collect();
            pieces.sort_by_key(|piece| (piece.start, piece.end));
            for piece in &pieces {
                prop_assert!(piece.end <= stream.len());
            }
            let mut pieces = pieces.into_iter();
            for span in spans(&stream) {
                let mut reached = pieces.next().unwrap();
                prop_assert_eq!(reached.start, span.start);
                prop_assert!(span.len() > columns || reached == span);
                while reached.end < span.end {
                    let next = pieces.next().unwrap();
                    prop_assert_eq!(reached.end - next.start, overlap);
                    reached = next;
                }
                prop_assert_eq!(reached.end, span.end);
            }
            prop_assert_eq!(pieces.next(), None);
        }
    }
}

#[test]
fn little_is_padded_where_documents_are_short() {
    let lengths: Vec<usize> = (0..600).map(|index| 7 + index * 61 % 97).collect();
    let shard = shard_of(&counted('a', &lengths), Tokenizer::bytes());
    let options = SamplerOptions { batch: 1, columns: 256, seed: 1 };
    let sampler =
        BatchSampler::new(shard, options).unwrap().with_packing(Packing::Documents).unwrap();
    for epoch in packed_epochs(&sampler, 2) {
        let padding: usize = epoch.iter().map(|(_, padding)| padding).sum();
        assert!(padding * 20 < epoch.len() * 256, "{padding} of {} tokens", epoch.len() * 256);
    }
}

#[test]
fn epochs_pack_in_orders_of_their_own() {
    let shard = shard_of(&counted('a', &[50; 60]), Tokenizer::bytes());
    let options = SamplerOptions { batch: 1, columns: 200, seed: 1 };
    let sampler =
        BatchSampler::new(shard, options).unwrap().with_packing(Packing::Documents).unwrap();
    let epochs = packed_epochs(&sampler, 15);
    for (index, epoch) in epochs.iter().enumerate() {
        assert!(epochs[..index].iter().all(|earlier| earlier != epoch));
    }
    // Each has the rows of one of the first four, in another order.
    let sorted: Vec<_> = epochs
        .iter()
        .cloned()
        .map(|mut rows| {
            rows.sort();
            rows
        })
        .collect();
    for index in 4..15 {
        assert_eq!(sorted[index], sorted[index % 4]);
    }
    assert!(sorted[..3].iter().all(|rows| *rows != sorted[3]));
}

#[test]
fn a_packed_shard_without_end_of_text_tokens_is_padded_with_zeros() {
    let shard = shard_of(&counted('a', &[30, 40, 50]), tokenizer_of(&fallback_json()));
    assert_eq!(shard.manifest().tokenizer.end_of_text, None);
    let options = SamplerOptions { batch: 2, columns: 100, seed: 1 };
    let sampler =
        BatchSampler::new(shard, options).unwrap().with_packing(Packing::Documents).unwrap();
    let batch = sampler.batch(0).unwrap();
    let numbers = batch.documents.unwrap();
    let padded = numbers.iter().zip(&batch.tokens).filter(|(number, _)| **number == u32::MAX);
    let padded: Vec<i64> = padded.map(|(_, &token)| token).collect();
    assert!(!padded.is_empty() && padded.iter().all(|&token| token == 0), "{padded:?}");
}
