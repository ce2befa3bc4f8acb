use std::fs;

use foretoken_data::{Error, Tokenizer, Vocabulary, VocabularyProblem};
use proptest::prelude::*;
use serde_json::Value;

use crate::fixtures::{byte_level_vocabulary, folder, piece_vocabulary};

fn made(vocabulary: &Vocabulary) -> Tokenizer {
    Tokenizer::from_vocabulary(vocabulary).unwrap()
}

fn problem(vocabulary: &Vocabulary) -> VocabularyProblem {
    match Tokenizer::from_vocabulary(vocabulary) {
        Err(Error::Vocabulary(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

/// The files that a tokenizer is saved as: `tokenizer.json` and `tokenizer_config.json`.
fn saved(tokenizer: &Tokenizer) -> (Value, Value) {
    let folder = folder();
    let path = folder.path().join("tokenizer.json");
    tokenizer.save(&path).unwrap();
    let read =
        |name: &str| serde_json::from_slice(&fs::read(folder.path().join(name)).unwrap()).unwrap();
    (read("tokenizer.json"), read("tokenizer_config.json"))
}

proptest! {
    #[test]
    fn a_byte_level_vocabulary_gives_back_any_text(
        text in prop::collection::vec(any::<char>(), 0..40)
            .prop_map(|characters| characters.into_iter().collect::<String>()),
        pre in prop::sample::select(vec![
            "gpt-2", "smollm", "starcoder", "llama-bpe", "tekken", "deepseek-coder",
        ]),
    ) {
        let pre = Some(pre.to_owned());
        let tokenizer = made(&Vocabulary { pre, ..byte_level_vocabulary() });
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn a_piece_vocabulary_gives_back_any_text(text in "[helo é日🙂\\n]{0,30}") {
        let tokenizer = made(&piece_vocabulary());
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn no_vocabulary_makes_it_panic(
        model in prop::sample::select(vec!["gpt2", "llama"]),
        tokens in prop::collection::vec("[ab ▁<>]{0,3}", 0..8),
        types in prop::option::of(prop::collection::vec(0..8_i32, 0..8)),
        scores in prop::option::of(prop::collection::vec(any::<f32>(), 0..8)),
        merges in prop::collection::vec("[ab ]{0,4}", 0..3),
        ids in prop::collection::vec(prop::option::of(0..9_u32), 3),
    ) {
        let vocabulary = Vocabulary {
            model: model.to_owned(),
            tokens,
            token_types: types,
            scores,
            merges,
            bos: ids[0],
            eos: ids[1],
            unknown: ids[2],
            add_bos: Some(true),
            add_eos: Some(true),
            ..Vocabulary::default()
        };
        if let Ok(tokenizer) = Tokenizer::from_vocabulary(&vocabulary) {
            let _ = tokenizer.encode_with_specials("ab <a> b");
        }
    }
}

#[test]
fn a_byte_level_vocabulary_merges_and_knows_its_special_tokens() {
    let tokenizer = made(&byte_level_vocabulary());
    assert_eq!(tokenizer.vocab_size(), 266);
    assert_eq!(tokenizer.end_of_text(), Some(264));
    assert_eq!(tokenizer.encode("hello").unwrap(), [259]);

    let marked = "<|im_start|>hello<|im_end|>";
    assert_eq!(tokenizer.encode_with_specials(marked).unwrap(), [263, 259, 264]);
    assert_eq!(tokenizer.decode(&[263, 259, 264]).unwrap(), "hello");
    let plain = tokenizer.encode(marked).unwrap();
    assert!(plain.iter().all(|&id| id < 262));
    assert_eq!(tokenizer.decode(&plain).unwrap(), marked);
}

#[test]
fn a_user_defined_token_is_found_in_any_text_and_has_a_text() {
    let tokenizer = made(&byte_level_vocabulary());
    assert_eq!(tokenizer.encode("hello<mark>").unwrap(), [259, 265]);
    assert_eq!(tokenizer.decode(&[259, 265]).unwrap(), "hello<mark>");
}

#[test]
fn only_what_the_vocabulary_asks_for_goes_around_a_prompt() {
    let around = |add_bos: Option<bool>, add_eos: Option<bool>| {
        let tokenizer = made(&Vocabulary { add_bos, add_eos, ..byte_level_vocabulary() });
        tokenizer.encode_with_specials("hello").unwrap()
    };
    assert_eq!(around(None, None), [259]);
    assert_eq!(around(Some(false), Some(false)), [259]);
    assert_eq!(around(Some(true), None), [263, 259]);
    assert_eq!(around(Some(true), Some(true)), [263, 259, 264]);

    // As llama.cpp has it.
    for (pre, begins) in [("llama-bpe", true), ("tekken", true), ("qwen2", false)] {
        let around = |add_bos| {
            let pre = Some(pre.to_owned());
            let tokenizer = made(&Vocabulary { pre, add_bos, ..byte_level_vocabulary() });
            tokenizer.encode_with_specials("hello").unwrap().len() == 2
        };
        assert_eq!([None, Some(false), Some(true)].map(around), [begins, false, true], "{pre}");
    }

    let pieces = made(&piece_vocabulary());
    assert_eq!(pieces.encode_with_specials("hello").unwrap(), [1, 268]);
    assert_eq!(pieces.encode("hello").unwrap(), [268]);
    assert_eq!(pieces.encode_chat("<s>hello").unwrap(), [1, 268]);
}

#[test]
fn the_saved_files_are_as_transformers_lays_them_out() {
    let tokenizer = made(&byte_level_vocabulary());
    let (file, config) = saved(&tokenizer);
    assert_eq!(file["pre_tokenizer"]["type"], "ByteLevel");
    assert_eq!(file["pre_tokenizer"]["add_prefix_space"], false);
    assert_eq!(file["post_processor"]["type"], "TemplateProcessing");
    assert_eq!(file["post_processor"]["special_tokens"], serde_json::json!({}));
    assert_eq!(file["model"]["merges"][0], serde_json::json!(["h", "e"]));
    let specials: Vec<(u64, bool)> = file["added_tokens"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| (token["id"].as_u64().unwrap(), token["special"] == true))
        .collect();
    assert_eq!(specials, [(262, true), (263, true), (264, true), (265, false)]);

    assert_eq!(config["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(config["bos_token"], "<|im_start|>");
    assert_eq!(config["eos_token"], "<|im_end|>");
    assert_eq!(config["clean_up_tokenization_spaces"], false);
    assert!(config.get("chat_template").is_none());
}

#[test]
fn a_saved_vocabulary_is_read_back_as_the_same_tokenizer() {
    for vocabulary in [byte_level_vocabulary(), piece_vocabulary()] {
        let tokenizer = made(&vocabulary);
        let folder = folder();
        let path = folder.path().join("tokenizer.json");
        tokenizer.save(&path).unwrap();
        assert_eq!(Tokenizer::from_file(&path).unwrap().info(), tokenizer.info());
    }
}

#[test]
fn digits_stand_alone_where_the_vocabulary_says_so() {
    let pre = |name: &str| {
        let mut vocabulary = byte_level_vocabulary();
        vocabulary.pre = Some(name.to_owned());
        vocabulary.tokens.push("12".to_owned());
        vocabulary.token_types.as_mut().unwrap().push(1);
        vocabulary.merges.push("1 2".to_owned());
        made(&vocabulary).encode("12").unwrap().len()
    };
    assert_eq!(pre("gpt-2"), 1);
    assert_eq!(pre("llama-bpe"), 1);
    assert_eq!(pre("starcoder"), 2);
    assert_eq!(pre("qwen2"), 2);
    assert_eq!(pre("tekken"), 2);
    assert_eq!(pre("deepseek-coder"), 2);
}

#[test]
fn qwen2_composes_characters() {
    let pre = Some("qwen2".to_owned());
    let tokenizer = made(&Vocabulary { pre, ..byte_level_vocabulary() });
    assert_eq!(tokenizer.encode("e\u{301}").unwrap(), tokenizer.encode("é").unwrap());
}

#[test]
fn pieces_are_merged_by_score_and_bytes_stand_in_for_the_rest() {
    let tokenizer = made(&piece_vocabulary());
    assert_eq!(tokenizer.encode("hello").unwrap(), [268]);
    assert_eq!(tokenizer.decode(&[268]).unwrap(), "hello");
    assert_eq!(tokenizer.encode("é").unwrap(), [259, 3 + 0xC3, 3 + 0xA9]);
    assert_eq!(tokenizer.decode(&[259, 3 + 0xC3, 3 + 0xA9]).unwrap(), "é");

    let add_space_prefix = Some(false);
    let bare = made(&Vocabulary { add_space_prefix, ..piece_vocabulary() });
    assert_eq!(bare.encode("hello").unwrap(), [267]);
    assert_eq!(bare.decode(&[268]).unwrap(), " hello");
}

#[test]
fn pieces_never_merge_into_a_control_token() {
    let tokenizer = made(&piece_vocabulary());
    let plain = tokenizer.encode("</s>").unwrap();
    assert!(!plain.contains(&2));
    assert_eq!(tokenizer.decode(&plain).unwrap(), "</s>");
    assert_eq!(tokenizer.encode_with_specials("</s>").unwrap(), [1, 2]);
}

#[test]
fn merges_of_a_piece_vocabulary_are_used_where_the_file_lists_them() {
    let merges = vec!["l l".to_owned()];
    let tokenizer = made(&Vocabulary { merges, scores: None, ..piece_vocabulary() });
    assert_eq!(tokenizer.encode("ll").unwrap(), [259, 265]);
}

#[test]
fn an_unknown_kind_or_pre_tokenizer_is_refused_with_the_known_ones() {
    made(&Vocabulary { pre: None, ..byte_level_vocabulary() });
    for pre in ["llama-v3", "falcon3", "pixtral"] {
        let vocabulary = Vocabulary { pre: Some(pre.to_owned()), ..byte_level_vocabulary() };
        assert_eq!(made(&vocabulary).vocabulary().unwrap().pre.as_deref(), Some("llama-bpe"));
    }
    let model = "rwkv".to_owned();
    let error = problem(&Vocabulary { model, ..byte_level_vocabulary() });
    assert!(error.to_string().contains("`rwkv`"));

    let pre = Some("default".to_owned());
    let error = problem(&Vocabulary { pre, ..byte_level_vocabulary() });
    assert!(
        matches!(&error, VocabularyProblem::UnknownPreTokenizer { name, .. } if name == "default")
    );
    assert!(error.to_string().contains("`smollm`"));
}

#[test]
fn a_vocabulary_that_contradicts_itself_is_refused() {
    let changed = |change: fn(&mut Vocabulary)| {
        let mut vocabulary = byte_level_vocabulary();
        change(&mut vocabulary);
        problem(&vocabulary)
    };
    let nothing = Vocabulary { model: "gpt2".to_owned(), ..Vocabulary::default() };
    assert_eq!(problem(&nothing), VocabularyProblem::Empty);
    assert_eq!(
        changed(|vocabulary| vocabulary.tokens[265] = "hello".to_owned()),
        VocabularyProblem::DuplicateToken { token: "hello".to_owned(), first: 259, second: 265 }
    );
    assert_eq!(
        changed(|vocabulary| vocabulary.token_types = Some(vec![1; 3])),
        VocabularyProblem::OtherLength { what: "token types", found: 3, tokens: 266 }
    );
    assert_eq!(
        changed(|vocabulary| vocabulary.scores = Some(vec![0.0; 3])),
        VocabularyProblem::OtherLength { what: "scores", found: 3, tokens: 266 }
    );
    assert_eq!(
        changed(|vocabulary| vocabulary.token_types.as_mut().unwrap()[5] = -1),
        VocabularyProblem::UnknownType { id: 5, found: -1 }
    );
    assert_eq!(
        changed(|vocabulary| vocabulary.eos = Some(266)),
        VocabularyProblem::IdOutOfRange { what: "end-of-text", id: 266, tokens: 266 }
    );
    assert_eq!(
        changed(|vocabulary| vocabulary.merges[1] = "ll".to_owned()),
        VocabularyProblem::MalformedMerge { index: 1, merge: "ll".to_owned() }
    );
    assert_eq!(
        changed(|vocabulary| vocabulary.merges[0] = "h x".to_owned()),
        VocabularyProblem::MergeOfUnknown { index: 0, token: "hx".to_owned() }
    );
    assert_eq!(
        changed(|vocabulary| vocabulary.merges[0] = "none e".to_owned()),
        VocabularyProblem::MergeOfUnknown { index: 0, token: "none".to_owned() }
    );
}

#[test]
fn a_vocabulary_that_would_cost_too_much_is_refused() {
    let mut long = byte_level_vocabulary();
    long.tokens[0] = "a".repeat(5000);
    assert_eq!(problem(&long), VocabularyProblem::LongToken { id: 0, bytes: 5000, most: 1024 });
    let mut long = byte_level_vocabulary();
    long.tokens[265] = "a".repeat(300);
    assert_eq!(problem(&long), VocabularyProblem::LongToken { id: 265, bytes: 300, most: 256 });
    let mut long = piece_vocabulary();
    long.tokens[259] = "a".repeat(300);
    assert_eq!(problem(&long), VocabularyProblem::LongToken { id: 259, bytes: 300, most: 256 });

    let tokens: Vec<String> = (0..70_000).map(|id| format!("<{id}>")).collect();
    let controls = Vocabulary {
        model: "gpt2".to_owned(),
        token_types: Some(vec![3; tokens.len()]),
        tokens,
        ..Vocabulary::default()
    };
    let expected = VocabularyProblem::TooManyAdded { found: 70_000, most: 1 << 16 };
    assert_eq!(problem(&controls), expected);
}

#[test]
fn pieces_without_scores_or_merges_are_refused() {
    let vocabulary = Vocabulary { scores: None, ..piece_vocabulary() };
    assert_eq!(problem(&vocabulary), VocabularyProblem::NoScores);
}
