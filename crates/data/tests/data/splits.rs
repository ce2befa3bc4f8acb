use std::fs;

use foretoken_data::{CorpusSource, Split, SplitFractions, SplitRule, Tokenizer};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::fixtures::{documents, folder, module, options, run, write};

#[test]
fn many_files_are_dealt_out_whole_by_the_hash_of_their_path() {
    let root = folder();
    let names: Vec<String> = (0..600).map(|index| format!("part_{index}.py")).collect();
    for (index, name) in names.iter().enumerate() {
        write(root.path(), name, module(index, 3));
    }
    let out = folder();
    let source = CorpusSource::PythonCode { root: root.path().to_path_buf() };
    let manifest = run(&options(source, out.path())).unwrap();
    assert_eq!(manifest.split.rule, SplitRule::Document);

    // The first 64 bits of SHA-256 as a number from 0 to 1.
    let place = |name: &str| {
        let digest = Sha256::digest(name);
        u64::from_be_bytes(digest[..8].try_into().unwrap()) as f64 / 2_f64.powi(64)
    };
    let mut sorted: Vec<(usize, &String)> = names.iter().enumerate().collect();
    sorted.sort_by_key(|(_, name)| *name);
    let expected = |from: f64, to: f64| -> Vec<String> {
        sorted
            .iter()
            .filter(|(_, name)| (from..to).contains(&place(name)))
            .map(|&(index, _)| module(index, 3))
            .collect()
    };
    let tokenizer = Tokenizer::bytes();
    assert_eq!(documents(out.path(), Split::Train, &tokenizer), expected(0.0, 0.98));
    assert_eq!(documents(out.path(), Split::Validation, &tokenizer), expected(0.98, 0.99));
    assert_eq!(documents(out.path(), Split::Test, &tokenizer), expected(0.99, 1.0));
    assert!(manifest.splits.test.documents > 0 && manifest.splits.validation.documents > 0);
}

#[test]
fn a_single_file_is_cut_into_three_spans_at_lines_and_the_manifest_says_so() {
    let root = folder();
    let text: String = (0..20_000).map(|line| format!("this is line {line}\n")).collect();
    let path = write(root.path(), "book.txt", &text);
    let out = folder();
    let manifest = run(&options(CorpusSource::Path(path), out.path())).unwrap();
    assert!(matches!(manifest.split.rule, SplitRule::Span { .. }));
    assert!(manifest.split.note.contains("1 documents are too few"), "{}", manifest.split.note);

    let parts: Vec<String> = Split::ALL
        .iter()
        .flat_map(|&split| documents(out.path(), split, &Tokenizer::bytes()))
        .collect();
    assert_eq!(parts.len(), 3);
    assert_eq!(parts.concat(), text);
    assert!(parts.iter().all(|part| part.ends_with('\n')));
    // 1% of 385 kB is less than 16 kB.
    assert!((16_000..24_000).contains(&parts[1].len()), "{}", parts[1].len());
    assert!((16_000..24_000).contains(&parts[2].len()), "{}", parts[2].len());
}

#[test]
fn all_test_puts_everything_into_the_test_split() {
    let root = folder();
    write(root.path(), "a.txt", "first");
    write(root.path(), "b.txt", "second");
    let out = folder();
    let mut options = options(CorpusSource::Path(root.path().to_path_buf()), out.path());
    options.split = SplitFractions::all_test();
    let manifest = run(&options).unwrap();
    assert_eq!(manifest.splits.train.tokens, 0);
    assert_eq!(manifest.splits.validation.tokens, 0);
    assert_eq!(documents(out.path(), Split::Test, &Tokenizer::bytes()), ["first", "second"]);
    assert!(documents(out.path(), Split::Train, &Tokenizer::bytes()).is_empty());
}

#[test]
fn equal_records_go_to_the_same_split() {
    let root = folder();
    let lines: String = (0..3000)
        .map(|index| format!("{{\"text\": \"record number {}\"}}\n", index % 1000))
        .collect();
    let path = write(root.path(), "records.jsonl", lines);
    let out = folder();
    run(&options(CorpusSource::Path(path), out.path())).unwrap();
    let mut held_out = documents(out.path(), Split::Test, &Tokenizer::bytes());
    held_out.extend(documents(out.path(), Split::Validation, &Tokenizer::bytes()));
    held_out.sort();
    assert!(held_out.len() >= 6);
    for three in held_out.chunks(3) {
        assert!(three.iter().all(|text| *text == three[0]), "{three:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn spans_keep_every_byte_in_order_and_leave_no_split_empty(
        texts in prop::collection::vec("[a-d é日\\n]{20,200}", 1..6),
    ) {
        let root = folder();
        for (index, text) in texts.iter().enumerate() {
            write(root.path(), &format!("{index}.txt"), text);
        }
        let visible: String = texts.iter().filter(|text| !text.trim().is_empty()).cloned().collect();
        prop_assume!(!visible.is_empty());
        let out = folder();
        run(&options(CorpusSource::Path(root.path().to_path_buf()), out.path())).unwrap();
        let parts = Split::ALL.map(|split| documents(out.path(), split, &Tokenizer::bytes()).concat());
        prop_assert_eq!(parts.concat(), visible);
        // A test span of one byte cannot hold a three-byte character.
        if parts.concat().len() >= 60 {
            prop_assert!(parts.iter().all(|part| !part.is_empty()), "{:?}", parts);
        }
    }
}

#[test]
fn shares_that_do_not_add_up_are_refused() {
    let root = folder();
    let path = write(root.path(), "a.txt", "text");
    for (train, validation, test) in [(0.5, 0.1, 0.1), (1.2, -0.1, -0.1), (f64::NAN, 0.5, 0.5)] {
        let mut options = options(CorpusSource::Path(path.clone()), &root.path().join("out"));
        options.split = SplitFractions { train, validation, test };
        let message = run(&options).unwrap_err().to_string();
        assert!(message.contains("must be 0 to 1 and add up to 1"), "{message}");
    }
    assert!(!fs::exists(root.path().join("out")).unwrap());
}
