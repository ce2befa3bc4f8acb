//! Rows that a model writes at once are what it writes one by one.

use std::ops::ControlFlow;

use foretoken_decode::{
    Decoder, Error, GenerateOptions, RowsOptions, write_rows, write_rows_while,
};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_trunk::Architecture;
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

const VOCAB: i64 = 30;

fn model(kv_heads: usize, end: &[u32], seed: i64) -> MultiTokenModel {
    tch::set_num_threads(1);
    let architecture = Architecture {
        vocab: VOCAB as usize,
        dim: 24,
        layers: 3,
        attention_heads: 4,
        kv_heads,
        ffn: 30,
        context: 60,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", 1);
    let config = ModelConfig { architecture, heads, end_of_text: end.to_vec() };
    let model = MultiTokenModel::new(&config, Kind::Double, Device::Cpu, seed).unwrap();
    for parameter in model.parameters().iter().filter(|p| p.tensor.dim() == 2) {
        // Weights so large that the text wanders.
        tch::no_grad(|| _ = parameter.tensor.shallow_clone().g_mul_scalar_(3.0));
    }
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn each_row_is_the_decoders_up_to_the_end_and_the_texts_behind_it(
        kv_heads in prop::sample::select(vec![1usize, 2, 4]), seed in 0i64..1000,
        texts in prop::collection::vec(prop::collection::vec(0..VOCAB, 40), 1..5),
        prompt in 1usize..40, end in prop::collection::vec(0u32..VOCAB as u32, 0..3),
    ) {
        let model = model(kv_heads, &end, seed);
        let flat: Vec<i64> = texts.concat();
        let rows = Tensor::from_slice(&flat).view([texts.len() as i64, 40]);
        let options = RowsOptions { prompt, temperature: 0.0, seed: 0 };
        let written = write_rows(&model, &rows, options).unwrap();
        let read = written.tokens.narrow(1, 0, 39);
        let hidden = model.hidden(&read).unwrap();
        let state = model.head_hidden(0, &hidden).unwrap();
        for (ours, whole) in [(&written.trunk_output, hidden), (&written.final_hidden, state)] {
            prop_assert!((ours - whole).abs().max().double_value(&[]) < 1e-9);
        }
        let mut decoder = Decoder::new(&model).unwrap();
        for (row, text) in (0..).zip(&texts) {
            let written = Vec::<i64>::try_from(written.tokens.get(row)).unwrap();
            prop_assert_eq!(&written[..prompt], &text[..prompt]);
            let start: Vec<u32> = text[..prompt].iter().map(|&token| token as u32).collect();
            let options = GenerateOptions {
                max_new_tokens: 40 - prompt,
                end_of_text: end.clone(),
                ..Default::default()
            };
            let own = decoder
                .generate(&start, &options, &mut |_, _| ControlFlow::Continue(()))
                .unwrap();
            let own: Vec<i64> = own.tokens.iter().map(|&token| i64::from(token)).collect();
            prop_assert_eq!(&written[prompt..prompt + own.len()], &own[..]);
            prop_assert_eq!(&written[prompt + own.len()..], &text[prompt + own.len()..]);
        }
    }
}

#[test]
fn writing_ends_where_its_caller_wants_no_more() {
    let model = model(2, &[], 1);
    let text = Tensor::zeros([2, 20], (Kind::Int64, Device::Cpu));
    let options = RowsOptions { prompt: 4, temperature: 0.0, seed: 0 };
    let mut asked = Vec::new();
    let mut write = |last| {
        asked.clear();
        let written = write_rows_while(&model, &text, options, &mut |column| {
            asked.push(column);
            column < last
        });
        (written, asked.clone())
    };
    let (written, asked) = write(9);
    assert!(matches!(written, Err(Error::Stopped)));
    assert_eq!(asked, [4, 5, 6, 7, 8, 9]);
    let (written, asked) = write(20);
    assert_eq!(written.unwrap().tokens, write_rows(&model, &text, options).unwrap().tokens);
    assert_eq!(asked.len(), 16);
}

#[test]
fn no_prompt_and_too_long_a_row_are_refused() {
    let model = model(2, &[], 1);
    let rows = |columns: i64| Tensor::zeros([2, columns], (Kind::Int64, Device::Cpu));
    let refused = |columns, prompt, temperature| {
        let options = RowsOptions { prompt, temperature, seed: 0 };
        write_rows(&model, &rows(columns), options).unwrap_err().to_string()
    };
    assert!(refused(20, 0, 0.0).contains("empty"));
    assert!(refused(62, 4, 0.0).contains("61 tokens"));
    // The last token of 61 goes through no pass.
    let options = RowsOptions { prompt: 4, temperature: 0.0, seed: 0 };
    assert_eq!(write_rows(&model, &rows(61), options).unwrap().final_hidden.size()[1], 60);
    assert!(refused(5, 5, 0.0).contains('5'));
    for temperature in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(refused(20, 4, temperature).contains("temperature"));
    }
}

#[test]
fn drawn_tokens_are_as_frequent_as_the_model_says() {
    let model = model(2, &[], 5);
    let (rows, temperature) = (4000, 1.5);
    let text = Tensor::from_slice(&[3i64, 7, 1]).view([1, 3]).repeat([rows, 1]);
    let write = |seed| {
        write_rows(&model, &text, RowsOptions { prompt: 2, temperature, seed }).unwrap().tokens
    };
    let drawn = write(1);
    assert_eq!(drawn, write(1));
    assert_ne!(drawn, write(2));
    let counts = drawn.select(1, 2).bincount(None::<&Tensor>, VOCAB);
    let hidden = model.hidden(&text.narrow(0, 0, 1).narrow(1, 0, 2)).unwrap();
    let logits = model.logits(0, &hidden).unwrap().get(0).get(1) / temperature;
    let expected = logits.softmax(-1, Kind::Double);
    // Five standard deviations of a count.
    let variance: Tensor = &expected * (1.0 - &expected) / rows as f64;
    let spread = variance.sqrt() * 5.0 + 1e-4;
    let off = (counts.to_kind(Kind::Double) / rows as f64 - &expected).abs();
    assert!(bool::try_from(off.less_equal_tensor(&spread).all()).unwrap());
    assert!(expected.max().double_value(&[]) < 0.99);
}
