use std::fs;

use foretoken_data::{Error, StreamDecoder, Tokenizer};
use proptest::prelude::*;

use crate::fixtures::{bpe_json, fallback_json, folder, tokenizer_of, write};

fn streamed(mut stream: StreamDecoder, ids: &[u32]) -> String {
    let mut text = String::new();
    for &id in ids {
        if let Some(piece) = stream.push(id).unwrap() {
            assert!(!piece.is_empty());
            text.push_str(&piece);
        }
    }
    text + &stream.finish().unwrap()
}

proptest! {
    #[test]
    fn bytes_decode_to_what_was_encoded(text in ".*") {
        let tokenizer = Tokenizer::bytes();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert!(ids.iter().map(|&id| id as u8).eq(text.bytes()));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }

    #[test]
    fn a_byte_stream_gives_what_decoding_at_once_gives(ids in prop::collection::vec(0_u32..264, 0..60)) {
        let bytes: Vec<u8> = ids.iter().filter(|&&id| id < 256).map(|&id| id as u8).collect();
        let whole = String::from_utf8_lossy(&bytes);
        prop_assert_eq!(&Tokenizer::bytes().decode(&ids).unwrap(), &whole);
        prop_assert_eq!(streamed(Tokenizer::bytes().stream(), &ids), whole);
    }

    #[test]
    fn a_stream_of_text_never_holds_a_replacement_character(text in "[a-c é日🙂]{0,20}") {
        let tokenizers = [Tokenizer::bytes(), tokenizer_of(&bpe_json()), tokenizer_of(&fallback_json())];
        for tokenizer in tokenizers {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(streamed(tokenizer.stream(), &ids), text.clone(), "{:?}", tokenizer.info().kind);
        }
    }

    #[test]
    fn a_file_stream_gives_what_decoding_at_once_gives(ids in prop::collection::vec(0_u32..264, 0..40)) {
        let tokenizer = tokenizer_of(&bpe_json());
        prop_assert_eq!(streamed(tokenizer.stream(), &ids), tokenizer.decode(&ids).unwrap());
    }

    #[test]
    fn the_tokenizers_library_gives_byte_values_for_our_file(text in "[ -~é日🙂\\n\\t]{0,40}") {
        let folder = folder();
        let path = folder.path().join("tokenizer.json");
        Tokenizer::bytes().save(&path).unwrap();
        let other = tokenizers::Tokenizer::from_file(&path).unwrap();
        let encoding = other.encode(text.as_str(), true).unwrap();
        let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
        prop_assert_eq!(encoding.get_ids(), bytes.as_slice());
        prop_assert_eq!(other.decode(&bytes, false).unwrap(), text);
    }
}

#[test]
fn the_byte_vocabulary_is_264_ids_with_the_end_of_text_at_256() {
    let folder = folder();
    let path = folder.path().join("tokenizer.json");
    Tokenizer::bytes().save(&path).unwrap();
    let other = tokenizers::Tokenizer::from_file(&path).unwrap();
    assert_eq!(other.token_to_id("<|endoftext|>"), Some(256));
    assert_eq!(other.get_vocab_size(true), 264);
    assert_eq!(Tokenizer::bytes().vocab_size(), 264);
    assert_eq!(Tokenizer::bytes().end_of_text(), Some(256));
}

#[test]
fn a_saved_byte_tokenizer_is_recognised_even_when_another_tool_wrote_it_again() {
    let folder = folder();
    let path = folder.path().join("tokenizer.json");
    Tokenizer::bytes().save(&path).unwrap();
    let bytes = Tokenizer::bytes().info();
    assert_eq!(Tokenizer::from_file(&path).unwrap().info(), bytes);

    let again = folder.path().join("again.json");
    let other = tokenizers::Tokenizer::from_file(&path).unwrap();
    other.save(&again, false).unwrap();
    assert_ne!(fs::read(&again).unwrap(), fs::read(&path).unwrap());
    assert_eq!(Tokenizer::from_file(&again).unwrap().info(), bytes);

    // What `transformers` adds when it saves the file.
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    });
    assert_eq!(tokenizer_of(&json).info(), bytes);
}

#[test]
fn a_file_with_one_byte_elsewhere_is_not_taken_for_the_byte_tokenizer() {
    let folder = folder();
    let path = folder.path().join("tokenizer.json");
    Tokenizer::bytes().save(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["model"]["vocab"]["a"] = 98.into();
    json["model"]["vocab"]["b"] = 97.into();
    let tokenizer = tokenizer_of(&json);
    assert_eq!(tokenizer.info().kind, "file");
    assert_eq!(tokenizer.encode("ab").unwrap(), [98, 97]);
}

#[test]
fn special_tokens_in_plain_text_stay_text() {
    for tokenizer in [Tokenizer::bytes(), tokenizer_of(&bpe_json())] {
        let end = tokenizer.end_of_text().unwrap();
        let text = "a<|endoftext|>b";
        let plain = tokenizer.encode(text).unwrap();
        assert!(!plain.contains(&end));
        assert_eq!(tokenizer.decode(&plain).unwrap(), text);

        let marked = tokenizer.encode_with_specials(text).unwrap();
        assert_eq!(marked.len(), 3);
        assert_eq!(marked[1], end);
        assert_eq!(tokenizer.decode(&marked).unwrap(), "ab");
    }
}

#[test]
fn a_file_tokenizer_merges_and_ignores_the_files_truncation() {
    let tokenizer = tokenizer_of(&bpe_json());
    let hello = 256 + 3;
    assert_eq!(tokenizer.encode("hello").unwrap(), [hello]);
    assert_eq!(tokenizer.encode("hellohellohellohellohello").unwrap(), [hello; 5]);
    assert_eq!(tokenizer.vocab_size(), 264);
    assert_eq!(tokenizer.end_of_text(), Some(262));
}

#[test]
fn the_end_of_text_is_the_one_that_the_tokenizers_config_names() {
    let folder = folder();
    let path = write(folder.path(), "tokenizer.json", bpe_json().to_string());
    write(folder.path(), "tokenizer_config.json", r#"{"eos_token": {"content": "<mark>"}}"#);
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.end_of_text(), Some(263));

    let copy = folder.path().join("model/tokenizer.json");
    fs::create_dir(copy.parent().unwrap()).unwrap();
    tokenizer.save(&copy).unwrap();
    assert_eq!(Tokenizer::from_file(&copy).unwrap().info(), tokenizer.info());
}

#[test]
fn bytes_that_make_no_character_are_given_up_on_without_losing_any() {
    let tokenizer = tokenizer_of(&bpe_json());
    let continuation = tokenizer.encode("é").unwrap()[0];
    let bad = tokenizers::Tokenizer::from_bytes(bpe_json().to_string())
        .unwrap()
        .token_to_id("Ģ")
        .unwrap();
    assert_ne!(continuation, bad);
    let mut stream = tokenizer.stream();
    let mut text = String::new();
    for _ in 0..200 {
        text += &stream.push(bad).unwrap().unwrap_or_default();
    }
    assert!(text.chars().count() > 100, "held back too long");
    text += &stream.finish().unwrap();
    assert_eq!(text, "\u{FFFD}".repeat(200));
}

#[test]
fn a_stream_behind_a_text_keeps_the_space_before_its_first_word() {
    let tokenizer = tokenizer_of(&fallback_json());
    let text = tokenizer.encode("c a").unwrap();
    let more = [260, 259];
    assert_eq!(tokenizer.decode(&more).unwrap(), "ac");
    assert_eq!(streamed(tokenizer.stream_after(&text).unwrap(), &more), " ac");
    assert_eq!(streamed(tokenizer.stream_after(&[]).unwrap(), &more), "ac");
    // Behind a byte it is not known whether a character is at its end.
    let emoji = tokenizer.encode("🙂").unwrap();
    assert_eq!(streamed(tokenizer.stream_after(&emoji).unwrap(), &[257, 258]), "ab");
    assert!(tokenizer.stream_after(&[261]).is_err());
    let tokenizer = tokenizer_of(&bpe_json());
    let (text, more) = (tokenizer.encode("é").unwrap(), tokenizer.encode("日 w").unwrap());
    assert_eq!(streamed(tokenizer.stream_after(&text).unwrap(), &more), "日 w");
    assert!(Tokenizer::bytes().stream_after(&[65]).is_ok());
}

#[test]
fn a_byte_stream_replaces_a_bad_byte_as_soon_as_it_is_known_to_be_bad() {
    let mut stream = Tokenizer::bytes().stream();
    assert_eq!(stream.push(0xE6).unwrap(), None);
    assert_eq!(stream.push(0x97).unwrap(), None);
    assert_eq!(stream.push(u32::from(b'a')).unwrap().as_deref(), Some("\u{FFFD}a"));
    assert_eq!(stream.push(256).unwrap(), None);
    assert_eq!(stream.push(0xE6).unwrap(), None);
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
}

#[test]
fn rows_of_the_model_behind_the_vocabulary_have_no_text() {
    for tokenizer in [Tokenizer::bytes(), tokenizer_of(&bpe_json())] {
        let text = "né日";
        let mut ids = tokenizer.encode(text).unwrap();
        // Between the bytes of a character too.
        ids.insert(2, 264);
        ids.push(299);
        let padded = tokenizer.clone().with_rows(300);
        assert_eq!(padded.decode(&ids).unwrap(), text);
        assert_eq!(streamed(padded.stream(), &ids), text);
        assert_eq!(padded.info(), tokenizer.info());
        assert!(padded.decode(&[300]).is_err() && padded.stream().push(300).is_err());
        assert!(tokenizer.clone().with_rows(10).decode(&[263]).is_ok());
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_refused_by_its_number() {
    for tokenizer in [Tokenizer::bytes(), tokenizer_of(&bpe_json())] {
        let error = tokenizer.decode(&[65, 264]).unwrap_err();
        assert!(matches!(error, Error::UnknownToken { id: 264, vocab_size: 264 }));
        assert!(tokenizer.stream().push(264).is_err());
        assert_eq!(error.to_string(), "there is no token 264: the vocabulary has 264 (0 to 263)");
    }
}
