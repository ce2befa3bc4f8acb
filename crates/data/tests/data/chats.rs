use std::fs;

use foretoken_data::{ChatTemplate, Message, Result, Tokenizer, Vocabulary};
use serde_json::{Value, json};

use crate::fixtures::{bpe_json, byte_level_vocabulary, folder, write};

/// The template of `SmolLM2-135M-Instruct`.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn with_template(template: &str) -> Tokenizer {
    let chat_template = Some(template.to_owned());
    Tokenizer::from_vocabulary(&Vocabulary { chat_template, ..byte_level_vocabulary() }).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    with_template(source).chat_template().unwrap().unwrap()
}

fn rendered(source: &str) -> Result<String> {
    template(source).render(&[Message::new("user", "Hi")], true)
}

/// The tokenizer of a folder with this `tokenizer_config.json` and maybe a `chat_template.jinja`.
fn beside(config: &Value, jinja: Option<&str>) -> Tokenizer {
    let folder = folder();
    let path = write(folder.path(), "tokenizer.json", bpe_json().to_string());
    write(folder.path(), "tokenizer_config.json", config.to_string());
    if let Some(jinja) = jinja {
        write(folder.path(), "chat_template.jinja", jinja);
    }
    Tokenizer::from_file(&path).unwrap()
}

fn first_words(tokenizer: &Tokenizer) -> String {
    tokenizer.chat_template().unwrap().unwrap().render(&[], false).unwrap()
}

#[test]
fn smollm2s_template_puts_its_own_system_message_first() {
    let expected = "<|im_start|>system\n\
        You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
        <|im_start|>user\n\
        Hi<|im_end|>\n\
        <|im_start|>assistant\n";
    assert_eq!(rendered(SMOLLM2).unwrap(), expected);
}

#[test]
fn a_chat_without_tools_has_none_as_transformers_says() {
    let source = "{% if tools is defined and tools is none and documents is none %}none{% endif %}";
    assert_eq!(rendered(source).unwrap(), "none");
}

#[test]
fn smollm2s_template_keeps_to_a_system_message_of_the_chat() {
    let chat = [
        Message::new("system", "Be brief."),
        Message::new("user", "Hi"),
        Message::new("assistant", "Hello"),
    ];
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n\
        <|im_start|>user\nHi<|im_end|>\n\
        <|im_start|>assistant\nHello<|im_end|>\n";
    assert_eq!(template(SMOLLM2).render(&chat, false).unwrap(), expected);
}

#[test]
fn a_rendered_chat_is_encoded_with_its_marks() {
    let tokenizer = with_template(SMOLLM2);
    let prompt = rendered(SMOLLM2).unwrap();
    let ids = tokenizer.encode_chat(&prompt).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 263).count(), 3);
    assert_eq!(ids.iter().filter(|&&id| id == 264).count(), 2);
}

#[test]
fn blocks_take_their_line_with_them() {
    let source = "{% for message in messages %}\n    {% if true %}\n{{ message.content }}\n    {% endif %}\n{% endfor %}\nend\n";
    assert_eq!(rendered(source).unwrap(), "Hi\nend");
}

#[test]
fn templates_have_the_special_tokens_and_pythons_methods() {
    let source = "{{ bos_token }}{{ messages[0]['content'].upper().strip() }}{{ eos_token }}";
    assert_eq!(rendered(source).unwrap(), "<|im_start|>HI<|im_end|>");

    let vocabulary = Vocabulary {
        bos: None,
        chat_template: Some("{% if bos_token is defined %}yes{% else %}no{% endif %}".to_owned()),
        ..byte_level_vocabulary()
    };
    assert_eq!(first_words(&Tokenizer::from_vocabulary(&vocabulary).unwrap()), "no");
}

#[test]
fn a_template_that_refuses_a_chat_says_why() {
    let error = rendered("{{ raise_exception('Roles must alternate') }}").unwrap_err().to_string();
    assert!(error.contains("Roles must alternate"), "{error}");
    assert!(!error.contains('\n'));
}

#[test]
fn a_template_with_a_mistake_is_refused_before_it_is_used() {
    for source in ["{% for %}", "{{ 'a", "{% endif %}"] {
        let error = with_template(source).chat_template().unwrap_err();
        assert!(error.to_string().starts_with("the chat template failed: "), "{error}");
    }
    assert!(with_template(&" ".repeat(2 << 20)).chat_template().is_err());
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let loops = "{% for a in range(9000) %}{% for b in range(9000) %}{% set c = b %}{% endfor %}{% endfor %}";
    assert!(rendered(loops).is_err());
    let recursion = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}";
    assert!(rendered(recursion).is_err());
    let flood = format!("{{% for a in range(9000) %}}{}{{% endfor %}}", "x".repeat(10_000));
    let error = rendered(&flood).unwrap_err().to_string();
    assert!(error.contains("writes more than"), "{error}");
}

#[test]
fn a_tokenizer_without_a_template_has_none() {
    assert!(Tokenizer::bytes().chat_template().unwrap().is_none());
    assert!(beside(&json!({"eos_token": "<mark>"}), None).chat_template().unwrap().is_none());
    let named = json!({"chat_template": [{"name": "tools", "template": "no"}]});
    assert!(beside(&named, None).chat_template().unwrap().is_none());
}

#[test]
fn the_default_one_of_several_templates_is_taken() {
    let config = json!({"chat_template": [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "{{ bos_token }}yes"},
    ], "bos_token": {"content": "<mark>"}});
    assert_eq!(first_words(&beside(&config, None)), "<mark>yes");
}

#[test]
fn a_template_file_goes_before_the_configs_and_is_saved_with_it() {
    let config = json!({"eos_token": "<mark>", "chat_template": "from the config"});
    let tokenizer = beside(&config, Some("from the file"));
    assert_eq!(first_words(&tokenizer), "from the file");

    let folder = folder();
    let path = folder.path().join("tokenizer.json");
    tokenizer.save(&path).unwrap();
    let again = Tokenizer::from_file(&path).unwrap();
    assert_eq!(first_words(&again), "from the file");
    assert_eq!(again.end_of_text(), tokenizer.end_of_text());

    let untouched = beside(&config, None);
    untouched.save(&path).unwrap();
    let written = fs::read_to_string(folder.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(written, config.to_string());
}
