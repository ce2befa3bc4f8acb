use std::fs;
use std::path::Path;

use foretoken_data::{
    CorpusSource, Error, Manifest, Split, Tokenizer, open_split, python_code_root,
};

use crate::fixtures::{bpe_json, folder, module, options, run, tokenizer_of, write};

/// The message of a preparation that fails, which has to be one line and leave no folder.
fn refused(source: CorpusSource) -> (Error, String) {
    let out = folder();
    let shards = out.path().join("shards");
    let error = run(&options(source, &shards)).unwrap_err();
    assert!(!shards.exists(), "a failed preparation left {}", shards.display());
    let message = error.to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    (error, message)
}

#[test]
fn a_missing_path_is_named() {
    let path = Path::new("/no/such/corpus");
    let (error, message) = refused(CorpusSource::Path(path.to_path_buf()));
    assert!(matches!(error, Error::MissingPath { .. }));
    assert!(message.starts_with("/no/such/corpus does not exist"), "{message}");
    let (error, _) = refused(CorpusSource::PythonCode { root: path.to_path_buf() });
    assert!(matches!(error, Error::MissingPath { .. }));
}

#[test]
fn an_empty_folder_an_empty_file_and_a_folder_without_python_are_empty_corpora() {
    let root = folder();
    let (error, message) = refused(CorpusSource::Path(root.path().to_path_buf()));
    assert!(matches!(error, Error::EmptyCorpus { .. }));
    assert!(message.ends_with("there are no files in it"), "{message}");

    let path = write(root.path(), "empty.txt", "");
    let (error, message) = refused(CorpusSource::Path(path));
    assert!(matches!(error, Error::EmptyCorpus { .. }));
    assert!(message.ends_with("(1 empty)"), "{message}");

    let path = write(root.path(), "empty.jsonl", "\n\n");
    let (_, message) = refused(CorpusSource::Path(path));
    assert!(message.ends_with("it is empty"), "{message}");

    let (_, message) = refused(CorpusSource::PythonCode { root: root.path().to_path_buf() });
    assert!(message.ends_with("there are no .py files in it"), "{message}");
}

#[test]
fn a_corpus_that_the_filters_empty_says_what_they_dropped() {
    let root = folder();
    write(root.path(), "short.py", "x = 1\n");
    write(root.path(), "test_a.py", module(1, 10));
    let (_, message) = refused(CorpusSource::PythonCode { root: root.path().to_path_buf() });
    assert!(
        message.ends_with("all 2 documents were left out (1 tests, 1 under 200 bytes)"),
        "{message}"
    );
}

#[test]
fn a_file_that_is_no_text_is_refused_with_the_place() {
    let root = folder();
    let mut content = "é".repeat(600_000).into_bytes();
    content.push(0xE9);
    content.push(b'\n');
    let path = write(root.path(), "latin.txt", &content);
    let (error, _) = refused(CorpusSource::Path(path.clone()));
    assert!(matches!(error, Error::NotText { offset: 1_200_000, .. }), "{error}");

    fs::write(&path, b"ends in the middle of \xC3").unwrap();
    let (error, _) = refused(CorpusSource::Path(path));
    assert!(matches!(error, Error::NotText { offset: 22, .. }), "{error}");
}

#[test]
fn a_bad_record_is_named_by_its_line() {
    let root = folder();
    let cases = [
        ("{\"text\": \"a\"}\n\n{\"text\": \n", 3, "is not a JSON object"),
        ("{\"text\": \"a\"}\n[1, 2]\n", 2, "fields are not as expected"),
        ("{\"text\": 7}\n", 1, "integer `7`, expected a string"),
        ("{\"id\": 1, \"body\": \"b\"}\n", 1, "it has `id`, `body`"),
        ("{}\n", 1, "it has no fields"),
        ("plain text\n", 1, "is not a JSON object"),
    ];
    for (content, line, part) in cases {
        let path = write(root.path(), "records.jsonl", content);
        let (error, message) = refused(CorpusSource::Path(path));
        assert!(matches!(error, Error::JsonLine { line: found, .. } if found == line), "{message}");
        assert!(message.contains(&format!("records.jsonl:{line}: ")), "{message}");
        assert!(message.contains(part), "{message}");
    }
    let path = write(root.path(), "records.jsonl", b"{\"text\": \"caf\xE9\"}\n");
    let (_, message) = refused(CorpusSource::Path(path));
    assert!(message.contains("records.jsonl:1: this line is not UTF-8"), "{message}");
}

#[test]
fn a_folder_without_shards_says_so() {
    let empty = folder();
    for dir in [empty.path(), Path::new("/no/such/folder")] {
        let error = open_split(dir, Split::Train).unwrap_err();
        assert!(matches!(error, Error::NotPrepared { .. }));
        assert!(error.to_string().contains("prepare it first"), "{error}");
    }
}

#[test]
fn a_shard_that_does_not_match_its_manifest_is_refused() {
    let (root, out) = (folder(), folder());
    let path = write(root.path(), "a.txt", module(1, 50));
    let manifest = run(&options(CorpusSource::Path(path), out.path())).unwrap();
    let shard = out.path().join(&manifest.splits.train.file);
    let good = fs::read(&shard).unwrap();

    fs::write(&shard, &good[..good.len() - 2]).unwrap();
    let error = open_split(out.path(), Split::Train).unwrap_err();
    assert!(matches!(error, Error::ShardLength { .. }));
    let message = error.to_string();
    assert!(message.contains(&manifest.splits.train.file), "{message}");
    assert!(message.contains(&format!("{} bytes instead of {}", good.len() - 2, good.len())));

    let mut changed = good.clone();
    changed[10] ^= 1;
    fs::write(&shard, &changed).unwrap();
    let opened = open_split(out.path(), Split::Train).unwrap();
    assert!(matches!(opened.verify(), Err(Error::ShardChecksum { .. })));

    fs::write(&shard, &good).unwrap();
    let documents = out.path().join(&manifest.splits.train.documents_file);
    fs::write(&documents, u64::MAX.to_le_bytes()).unwrap();
    let opened = open_split(out.path(), Split::Train).unwrap();
    assert!(opened.document(0).is_err());
    assert!(matches!(opened.verify(), Err(Error::ShardChecksum { .. })));

    fs::remove_file(&shard).unwrap();
    let message = open_split(out.path(), Split::Train).unwrap_err().to_string();
    assert!(message.contains(&manifest.splits.train.file), "{message}");
}

#[test]
fn a_manifest_that_is_broken_foreign_or_points_elsewhere_is_refused() {
    let (root, out) = (folder(), folder());
    let path = write(root.path(), "a.txt", module(1, 50));
    run(&options(CorpusSource::Path(path), out.path())).unwrap();
    let file = out.path().join("manifest.json");
    let good = fs::read_to_string(&file).unwrap();
    let cases = [
        (good[..good.len() / 2].to_owned(), "EOF"),
        ("{}".to_owned(), "missing field `format`"),
        (good.replace("\"format\": 1", "\"format\": 99"), "it has format 99"),
        (good.replace("\"token_bytes\": 2", "\"token_bytes\": 0"), "`token_bytes` is 0"),
        (good.replace("\"file\": \"train-", "\"file\": \"../train-"), "is not a file name"),
    ];
    for (content, part) in cases {
        assert_ne!(content, good);
        fs::write(&file, content).unwrap();
        let error = Manifest::read(out.path()).unwrap_err();
        assert!(matches!(error, Error::Manifest { .. }));
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn a_shard_of_another_vocabulary_is_refused() {
    let (root, out) = (folder(), folder());
    let path = write(root.path(), "a.txt", module(1, 50));
    run(&options(CorpusSource::Path(path), out.path())).unwrap();
    let shard = open_split(out.path(), Split::Test).unwrap();
    shard.check_tokenizer(&Tokenizer::bytes()).unwrap();
    let error = shard.check_tokenizer(&tokenizer_of(&bpe_json())).unwrap_err();
    assert!(matches!(error, Error::OtherVocabulary { .. }));
    assert!(error.to_string().contains("was prepared with the `bytes` tokenizer"), "{error}");
}

#[test]
fn tokens_and_documents_outside_of_a_shard_are_refused() {
    let (root, out) = (folder(), folder());
    let path = write(root.path(), "a.txt", module(1, 50));
    run(&options(CorpusSource::Path(path), out.path())).unwrap();
    let shard = open_split(out.path(), Split::Test).unwrap();
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..shard.len() + 1, 5..4, usize::MAX..usize::MAX] {
        assert!(matches!(shard.tokens(range), Err(Error::OutOfRange { .. })));
    }
    assert!(matches!(shard.document(shard.documents()), Err(Error::OutOfRange { .. })));
}

#[test]
fn a_file_that_is_no_tokenizer_is_refused_in_one_line() {
    let root = folder();
    for content in ["", "{}", "not json", "{\"model\": {\"type\": \"BPE\"}}"] {
        let path = write(root.path(), "tokenizer.json", content);
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert!(matches!(error, Error::TokenizerFile { .. }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
    let error = Tokenizer::named("/no/such/tokenizer.json").unwrap_err();
    assert!(error.to_string().starts_with("cannot read /no/such/tokenizer.json"), "{error}");
}

#[test]
fn an_unknown_corpus_and_a_missing_root_are_named() {
    let error = CorpusSource::named("pile", None).unwrap_err();
    assert!(error.to_string().starts_with("there is no corpus named `pile`"), "{error}");
    let error = python_code_root(Some(Path::new("/no/such/root"))).unwrap_err();
    assert!(matches!(error, Error::MissingPath { .. }));
}

#[test]
fn a_shard_folder_that_cannot_be_made_is_named() {
    let root = folder();
    let path = write(root.path(), "a.txt", module(1, 50));
    let taken = write(root.path(), "taken", "a file");
    let error = run(&options(CorpusSource::Path(path), &taken)).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("cannot create {}", taken.display())),
        "{error}"
    );
    assert_eq!(fs::read_to_string(taken).unwrap(), "a file");
}
