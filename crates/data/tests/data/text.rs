use std::fs;
use std::os::unix::fs::symlink;

use foretoken_data::{
    CorpusSource, DropReason, PrepareOptions, Split, SplitFractions, Tokenizer, open_split,
};
use proptest::prelude::*;
use serde_json::json;

use crate::fixtures::{bpe_json, document, documents, folder, options, run, tokenizer_of, write};

fn everything(path: &std::path::Path, out: &std::path::Path) -> PrepareOptions {
    PrepareOptions {
        split: SplitFractions::all_train(),
        ..options(CorpusSource::Path(path.to_path_buf()), out)
    }
}

#[test]
fn a_folder_gives_its_text_files_in_path_order_and_leaves_out_the_rest() {
    let root = folder();
    write(root.path(), "b/c.md", "third");
    write(root.path(), "a.txt", "first");
    write(root.path(), "b.jsonl", "{\"text\": \"second\"}\n");
    write(root.path(), "d", "fourth, without an ending");
    write(root.path(), "picture.png", b"\x89PNG\r\n\x1a\n\0\0");
    write(root.path(), "latin.txt", b"caf\xE9");
    write(root.path(), "nothing.txt", " \n");
    write(root.path(), ".hidden", "hidden");
    write(root.path(), ".git/config", "hidden");
    let out = folder();
    let manifest = run(&everything(root.path(), out.path())).unwrap();
    assert_eq!(
        documents(out.path(), Split::Train, &Tokenizer::bytes()),
        ["first", "second", "third", "fourth, without an ending"]
    );
    assert_eq!(manifest.filters.dropped[&DropReason::NotText].documents, 2);
    assert_eq!(manifest.filters.dropped[&DropReason::Empty].documents, 1);
    assert_eq!(manifest.source.files, 7);
}

#[test]
fn links_to_files_are_followed_and_links_in_a_circle_are_not() {
    let root = folder();
    let elsewhere = folder();
    let target = write(elsewhere.path(), "blob", "linked");
    write(root.path(), "sub/a.txt", "plain");
    symlink(target, root.path().join("b.txt")).unwrap();
    symlink(root.path(), root.path().join("sub/circle")).unwrap();
    symlink("nowhere", root.path().join("dangling")).unwrap();
    let out = folder();
    run(&everything(root.path(), out.path())).unwrap();
    assert_eq!(documents(out.path(), Split::Train, &Tokenizer::bytes()), ["linked", "plain"]);
}

#[test]
fn a_shard_folder_inside_the_corpus_is_not_part_of_it() {
    let root = folder();
    write(root.path(), "a.txt", "text");
    let out = root.path().join("shards");
    let first = run(&everything(root.path(), &out)).unwrap();
    let second = run(&everything(root.path(), &out)).unwrap();
    assert_eq!(first, second);
    assert_eq!(second.source.files, 1);
}

#[test]
fn a_records_text_comes_from_the_fields_that_data_sets_use() {
    let root = folder();
    let records = [
        json!({"text": "a", "content": "not this"}),
        json!({"text": null, "content": "b"}),
        json!({"prompt": "c", "completion": "d"}),
        json!({"prompt": "e ", "response": "f"}),
        json!({"instruction": "g", "input": "", "output": "h"}),
        json!({"instruction": "i", "input": "j", "output": "k", "id": 7}),
        json!({"prompt": "l"}),
        json!({"text": ""}),
    ];
    let lines = records.map(|record| record.to_string()).join("\n\n");
    let path = write(root.path(), "records.jsonl", lines);
    let out = folder();
    let manifest = run(&everything(&path, out.path())).unwrap();
    assert_eq!(
        documents(out.path(), Split::Train, &Tokenizer::bytes()),
        ["a", "b", "c\nd", "e f", "g\nh", "i\nj\nk", "l"]
    );
    assert_eq!(manifest.filters.kept.documents, 7);
    assert_eq!(manifest.filters.dropped[&DropReason::Empty].documents, 1);
}

#[test]
fn the_end_of_text_stands_before_the_first_document_and_behind_each() {
    let root = folder();
    write(root.path(), "a.txt", "ab");
    write(root.path(), "b.txt", "c");
    let out = folder();
    run(&everything(root.path(), out.path())).unwrap();
    let shard = open_split(out.path(), Split::Train).unwrap();
    assert_eq!(shard.tokens(0..shard.len()).unwrap(), [256, 97, 98, 256, 99, 256]);
    assert_eq!(shard.document(1).unwrap(), 4..5);
}

#[test]
fn a_long_file_of_lines_gives_the_tokens_of_the_whole() {
    // Longer than a piece and than the bytes that are in flight at a time.
    let root = folder();
    let text: String = (0..900_000).map(|line| format!("{line} hello world\n")).collect();
    assert!(text.len() > 16 << 20);
    let path = write(root.path(), "long.txt", &text);
    let out = folder();
    let manifest = run(&everything(&path, out.path())).unwrap();
    assert_eq!(manifest.splits.train.documents, 1);
    assert_eq!(manifest.splits.train.bytes, text.len() as u64);
    let shard = open_split(out.path(), Split::Train).unwrap();
    assert!(document(&shard, 0, &Tokenizer::bytes()) == text);
}

#[test]
fn a_file_tokenizers_pieces_give_the_tokens_of_the_whole() {
    let root = folder();
    let text: String = (0..60_000)
        .map(|line| {
            format!("{line} hello world,  hello\n\n  hello worlds, when all is said and done é\n")
        })
        .collect();
    assert!(text.len() > 4 << 20);
    let path = write(root.path(), "long.txt", &text);
    let out = folder();
    let mut options = everything(&path, out.path());
    options.tokenizer = tokenizer_of(&bpe_json());
    run(&options).unwrap();
    let shard = open_split(out.path(), Split::Train).unwrap();
    let tokens = shard.tokens(shard.document(0).unwrap()).unwrap();
    assert!(tokens == options.tokenizer.encode(&text).unwrap());
}

#[test]
fn a_large_vocabulary_takes_four_bytes_a_token() {
    let root = folder();
    let path = write(root.path(), "a.txt", "hello é");
    let out = folder();
    let mut json = bpe_json();
    json["added_tokens"][0]["id"] = 262.into();
    json["added_tokens"].as_array_mut().unwrap().clear();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    for id in vocab.len()..70_000 {
        vocab.insert(format!("filler{id}"), id.into());
    }
    vocab["hello"] = 70_000.into();
    let mut options = everything(&path, out.path());
    options.tokenizer = tokenizer_of(&json);
    let manifest = run(&options).unwrap();
    assert_eq!((manifest.token_bytes, manifest.vocab_size), (4, 70_001));
    let shard = open_split(out.path(), Split::Train).unwrap();
    let tokens = shard.tokens(0..shard.len()).unwrap();
    assert_eq!(tokens, options.tokenizer.encode("hello é").unwrap());
    assert_eq!(tokens[0], 70_000);
    // Without an end-of-text token nothing stands between documents.
    assert_eq!(shard.document(0).unwrap(), 0..tokens.len());
    shard.verify().unwrap();
    let file = fs::metadata(out.path().join(&manifest.splits.train.file)).unwrap();
    assert_eq!(file.len(), 4 * tokens.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn shards_give_back_the_documents_they_were_made_of(texts in prop::collection::vec(".{1,40}", 1..30)) {
        let root = folder();
        let lines: String = texts.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
        let path = write(root.path(), "a.jsonl", lines);
        for tokenizer in [Tokenizer::bytes(), tokenizer_of(&bpe_json())] {
            let out = folder();
            let mut options = everything(&path, out.path());
            options.tokenizer = tokenizer.clone();
            run(&options).unwrap();
            prop_assert_eq!(&documents(out.path(), Split::Train, &tokenizer), &texts);
            open_split(out.path(), Split::Train).unwrap().verify().unwrap();
        }
    }
}
