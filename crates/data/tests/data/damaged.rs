//! Files of tokenizers that are cut short, changed or made to do harm.

use std::fs;

use foretoken_data::{Message, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::fixtures::{bpe_json, fallback_json, folder, write};

/// The tokenizer of [`bpe_json`] with a normaliser, a template and a decoder of several parts.
fn whole() -> Value {
    let mut json = bpe_json();
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}]});
    json["post_processor"] = json!({"type": "Sequence", "processors": [{
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<mark>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<mark>": {"id": "<mark>", "ids": [263], "tokens": ["<mark>"]}}}]});
    let byte_level = json["decoder"].take();
    json["decoder"] = json!({"type": "Sequence", "decoders": [byte_level, {"type": "Fuse"}]});
    json
}

/// All that is done with a tokenizer.
fn used(json: &[u8]) -> foretoken_data::Result<Vec<u32>> {
    let folder = folder();
    let tokenizer = Tokenizer::from_file(&write(folder.path(), "tokenizer.json", json))?;
    let ids = tokenizer.encode_with_specials("hello  world")?;
    tokenizer.encode("hello")?;
    tokenizer.decode(&ids)?;
    let mut stream = tokenizer.stream();
    for &id in &ids {
        stream.push(id)?;
    }
    stream.finish()?;
    Ok(ids)
}

#[test]
fn what_the_library_would_stumble_over_is_named() {
    assert_eq!(used(whole().to_string().as_bytes()).unwrap().first(), Some(&263));
    let refused = |change: &dyn Fn(&mut Value), words: &str| {
        let mut json = whole();
        change(&mut json);
        let error = used(json.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("tokenizer.json"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    };
    let template = |json: &mut Value, name: &str| {
        json["post_processor"]["processors"][0]["single"][0]["SpecialToken"]["id"] = json!(name);
    };
    refused(&|json| template(json, "<m\nrk>"), "\"<m\\nrk>\"");
    // A table of no entries, of two thousand million, and one that ends before its length.
    for table in ["AAAAAA==", "/////wAA", "AAA", "", "EAAAAA=="] {
        let normalizer = json!({"type": "Precompiled", "precompiled_charsmap": table});
        refused(&|json| json["normalizer"] = normalizer.clone(), "normalizer");
        let sequence = json!({"type": "Sequence", "normalizers": [normalizer]});
        refused(&|json| json["normalizer"] = sequence.clone(), "normalizer");
    }
    let error = used(br#"{"version":"1.0","decoder":{"#).unwrap_err().to_string();
    assert!(error.contains("EOF"), "{error}");
}

/// One without a rule: a table of 256 entries of zeros.
#[test]
fn a_whole_table_of_a_normalizer_is_read() {
    let mut json = whole();
    json["normalizer"] = Value::Null;
    let without = used(json.to_string().as_bytes()).unwrap();
    let table = format!("AAQA{}AAA=", "AAAA".repeat(341));
    json["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": table});
    assert_eq!(used(json.to_string().as_bytes()).unwrap(), without);
}

#[test]
fn damaged_files_beside_a_tokenizer_are_named() {
    for (name, bytes) in [
        ("tokenizer_config.json", b"{\"eos_token\": \"<ma".as_slice()),
        ("tokenizer_config.json", b"[]"),
        ("chat_template.jinja", b"{{ messages }} \xff"),
    ] {
        let folder = folder();
        let path = write(folder.path(), "tokenizer.json", bpe_json().to_string());
        write(folder.path(), name, bytes);
        let error = Tokenizer::from_file(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("{name} cannot be used")), "{error}");
    }
}

#[test]
fn a_template_fills_no_text_up_without_end() {
    let rendered = |template: &str| {
        let folder = folder();
        let path = write(folder.path(), "tokenizer.json", bpe_json().to_string());
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let template = Tokenizer::from_file(&path).unwrap().chat_template().unwrap().unwrap();
        template.render(&[Message::new("user", "a\nb")], true).map_err(|error| error.to_string())
    };
    assert_eq!(rendered("{{ messages[0].content|indent(2) }}").unwrap(), "a\n  b");
    assert_eq!(
        rendered("{{ messages[0].content|indent(width=2, first=true) }}").unwrap(),
        "  a\n  b"
    );
    assert_eq!(
        rendered("{{ '%03d'|format(2026) }}{{ '{:>6}'.format(20260) }}").unwrap(),
        "2026 20260"
    );
    let years =
        "{{ 'Until: 2023. {}'.format(2) }}{{ '%s of 2024'|format(1) }}{{ [1, 2]|batch(2) }}";
    assert_eq!(rendered(years).unwrap(), "Until: 2023. 21 of 2024[[1, 2]]");
    assert!(rendered("{{ 'a'.count('') }}").unwrap_err().contains("empty text"));
    let escaped = "{{ '100%%2024 %s'|format(1) }}{{ '{{\"n\": 2048, {}}}'.format(2) }}";
    assert_eq!(rendered(escaped).unwrap(), "100%2024 1{\"n\": 2048, 2}");
    // The engine slices within a character.
    assert!(rendered("{{ '{0[\u{e9}]}'.format({'\u{e9}': 1}) }}").is_err());
    for template in [
        "{{ 'a'|indent(18446744073709551615) }}",
        "{{ 'a'|indent(width=1000) }}",
        "{{ '%1000000000000d'|format(1) }}",
        "{{ '%(a)1000d'|format({'a': 1}) }}",
        "{{ '%(a%)1000000000000d'|format({'a%': 1}) }}",
        "{{ '{:}>1000000000000}'.format('a') }}",
        "{{ '{:{>1000000000000}'.format('a') }}",
        "{{ '{0[}]:>1000000000000}'.format({'}': 1}) }}",
        "{{ [1]|batch(1000000000000) }}",
        "{{ [1]|slice(18446744073709551615) }}",
        "{{ '{:>1000000000000}'.format('a') }}",
    ] {
        let error = rendered(template).unwrap_err();
        assert!(error.contains("999"), "{template}: {error}");
    }
}

/// A tokenizer's text with a word where its vocabulary is, and the vocabulary: most of a file is
/// that, and little of what can go wrong is in there.
fn apart(mut json: Value) -> (Vec<u8>, String) {
    let vocabulary = json["model"]["vocab"].take().to_string();
    json["model"]["vocab"] = json!("VOCABULARY");
    (json.to_string().into_bytes(), vocabulary)
}

proptest! {
    // `PROPTEST_CASES=100000 cargo test -p foretoken-data --test data damaged` for a long run.
    #[test]
    fn a_damaged_tokenizer_ends_in_an_error_or_is_used(
        fallback: bool,
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..128_u8), 0..4),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        thread_local! {
            static WHOLE: [(Vec<u8>, String); 2] = [whole(), fallback_json()].map(apart);
        }
        WHOLE.with(|whole| {
            let (text, vocabulary) = &whole[usize::from(fallback)];
            let damaged = !changes.is_empty() || cut.is_some();
            let mut bytes = text.clone();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let text = String::from_utf8_lossy(&bytes).replace("\"VOCABULARY\"", vocabulary);
            if let Err(error) = used(text.as_bytes()) {
                assert!(damaged, "{error}");
                assert_eq!(error.to_string().lines().count(), 1, "{error}");
            }
        });
    }
}
