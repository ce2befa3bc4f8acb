use foretoken_data::{Error, Tokenizer, Vocabulary};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{
    bpe_json, byte_level_vocabulary, fallback_json, piece_vocabulary, tokenizer_of,
};

/// The tokenizer that the vocabulary of `tokenizer` makes.
fn again(tokenizer: &Tokenizer) -> Tokenizer {
    Tokenizer::from_vocabulary(&tokenizer.vocabulary().unwrap()).unwrap()
}

fn problem(file: &Value) -> String {
    match tokenizer_of(file).vocabulary() {
        Err(Error::NoVocabulary { problem }) => problem,
        other => panic!("{other:?}"),
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..40)
        .prop_map(|characters| characters.into_iter().collect::<String>())
}

proptest! {
    #[test]
    fn bytes_are_the_same_ids_as_a_byte_level_vocabulary(text in any_text()) {
        thread_local! {
            static MADE: Tokenizer = again(&Tokenizer::bytes());
        }
        let bytes = Tokenizer::bytes();
        let text = format!("{text}<|endoftext|> {text}<|reserved_7|>");
        MADE.with(|made| {
            assert_eq!(made.encode(&text).unwrap(), bytes.encode(&text).unwrap());
            let ids = bytes.encode_with_specials(&text).unwrap();
            assert_eq!(made.encode_with_specials(&text).unwrap(), ids);
            assert_eq!(made.decode(&ids).unwrap(), bytes.decode(&ids).unwrap());
        });
    }

    #[test]
    fn a_file_with_another_layout_has_the_same_ids(text in "[hello wé<mark>1 \\n日]{0,40}") {
        thread_local! {
            static BOTH: [Tokenizer; 2] = {
                let tokenizer = tokenizer_of(&bpe_json());
                let made = again(&tokenizer);
                [tokenizer, made]
            };
        }
        BOTH.with(|[tokenizer, made]| {
            assert_eq!(made.encode(&text).unwrap(), tokenizer.encode(&text).unwrap());
            let text = format!("{text}<mark>{text}");
            let ids = tokenizer.encode_with_specials(&text).unwrap();
            assert_eq!(made.encode_with_specials(&text).unwrap(), ids);
        });
    }
}

#[test]
fn the_byte_vocabulary_is_a_byte_level_one_without_merges() {
    let vocabulary = Tokenizer::bytes().vocabulary().unwrap();
    assert_eq!(vocabulary.model, "gpt2");
    assert_eq!(vocabulary.pre.as_deref(), Some("gpt-2"));
    assert_eq!(vocabulary.tokens.len(), 264);
    assert_eq!((vocabulary.tokens[0x41].as_str(), vocabulary.tokens[0x20].as_str()), ("A", "Ġ"));
    assert_eq!(vocabulary.token_types.unwrap()[254..258], [1, 1, 3, 3]);
    assert_eq!((vocabulary.bos, vocabulary.eos), (None, Some(256)));
    assert!(vocabulary.merges.is_empty() && vocabulary.scores.is_none());
    assert_eq!(again(&Tokenizer::bytes()).end_of_text(), Some(256));
}

#[test]
fn a_vocabulary_survives_the_tokenizer_that_it_makes() {
    let template = Some("{{ messages[0].content }}".to_owned());
    let mut all = vec![
        piece_vocabulary(),
        Vocabulary { add_space_prefix: Some(false), ..piece_vocabulary() },
        Vocabulary { merges: vec!["l l".to_owned()], scores: None, ..piece_vocabulary() },
        Vocabulary { add_bos: Some(true), add_eos: Some(true), ..byte_level_vocabulary() },
        Vocabulary { chat_template: template, ..byte_level_vocabulary() },
    ];
    let cuts = ["gpt-2", "smollm", "starcoder", "llama-bpe", "qwen2", "tekken", "deepseek-coder"];
    all.extend(cuts.map(|pre| Vocabulary { pre: Some(pre.to_owned()), ..byte_level_vocabulary() }));
    for vocabulary in all {
        let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        let described = tokenizer.vocabulary().unwrap();
        let made = Tokenizer::from_vocabulary(&described).unwrap();
        // The same `tokenizer.json`, so the same ids for any text.
        assert_eq!(made.info(), tokenizer.info(), "{vocabulary:?}");
        assert_eq!(made.vocabulary().unwrap(), described);
        assert_eq!(described.tokens, vocabulary.tokens);
        assert_eq!(described.token_types, vocabulary.token_types);
        assert_eq!(described.chat_template, vocabulary.chat_template);
        assert_eq!((described.bos, described.eos), (vocabulary.bos, vocabulary.eos));
    }
}

#[test]
fn scores_follow_the_order_of_the_merges() {
    let tokenizer = Tokenizer::from_vocabulary(&piece_vocabulary()).unwrap();
    let described = tokenizer.vocabulary().unwrap();
    let scores = described.scores.clone().unwrap();
    let score = |piece: &str| {
        let id = described.tokens.iter().position(|token| token == piece).unwrap();
        scores[id]
    };
    for pair in ["he", "ll", "hell", "hello", "▁hello", "h"].windows(2) {
        assert!(score(pair[0]) > score(pair[1]), "{pair:?}");
    }
    // What reads scores alone merges as the listed merges do.
    let by_score = Vocabulary { merges: Vec::new(), ..described };
    let by_score = Tokenizer::from_vocabulary(&by_score).unwrap();
    for text in ["hello", "hell o", "ello hello", "</s>"] {
        assert_eq!(by_score.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
}

#[test]
fn a_vocabulary_can_be_filled_up_to_the_rows_of_an_embedding() {
    for vocabulary in [byte_level_vocabulary(), piece_vocabulary()] {
        let tokenizer = Tokenizer::from_vocabulary(&vocabulary).unwrap();
        let mut padded = tokenizer.vocabulary().unwrap();
        padded.pad_to(300);
        let made = Tokenizer::from_vocabulary(&padded).unwrap();
        assert_eq!(made.vocab_size(), 300);
        for text in ["hello [PAD299] l", "[PAD270]"] {
            assert_eq!(made.encode(text).unwrap(), tokenizer.encode(text).unwrap());
        }
        padded.pad_to(10);
        assert_eq!(padded.tokens.len(), 300);
    }
}

#[test]
fn pieces_read_from_a_file_are_described() {
    let file = fallback_json();
    let tokenizer = tokenizer_of(&file);
    let vocabulary = tokenizer.vocabulary().unwrap();
    assert_eq!((vocabulary.model.as_str(), vocabulary.add_space_prefix), ("llama", Some(true)));
    assert_eq!(vocabulary.token_types.as_ref().unwrap()[250..257], [6, 6, 6, 6, 6, 6, 1]);
    assert_eq!((vocabulary.unknown, vocabulary.add_bos), (None, Some(false)));
    for text in ["a bc", " é", "cab"] {
        assert_eq!(again(&tokenizer).encode(text).unwrap(), tokenizer.encode(text).unwrap());
    }
}

#[test]
fn what_a_vocabulary_cannot_say_is_named() {
    let changed = |change: fn(&mut Value)| {
        let mut file = bpe_json();
        change(&mut file);
        problem(&file)
    };
    let pre = changed(|file| file["pre_tokenizer"] = json!({"type": "Whitespace"}));
    assert!(pre.contains("pre_tokenizer"), "{pre}");
    let normalizer = changed(|file| file["normalizer"] = json!({"type": "Lowercase"}));
    assert!(normalizer.contains("normalizer"), "{normalizer}");
    let added = changed(|file| file["added_tokens"][1]["lstrip"] = json!(true));
    assert!(added.contains("<mark>"), "{added}");
    let model = changed(|file| file["model"]["ignore_merges"] = json!(true));
    assert!(model.contains("ignore_merges true"), "{model}");
    let around = changed(|file| {
        file["post_processor"] =
            json!({"type": "BertProcessing", "sep": ["<mark>", 263], "cls": ["<mark>", 263]});
    });
    assert!(around.contains("post_processor"), "{around}");
    let words = changed(|file| {
        file["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
    });
    assert!(words.contains("WordLevel"), "{words}");

    let mut bytes = fallback_json();
    let vocab = bytes["model"]["vocab"].as_object_mut().unwrap();
    vocab.remove("<0x41>");
    assert!(problem(&bytes).contains("<0x41>"));
}
