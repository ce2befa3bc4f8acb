//! Speculative output is plain output, for models that guess well and models that guess badly.

use std::ops::ControlFlow;

use foretoken_decode::{
    Decoder, DecoderOptions, Decoding, DraftPrecision, Error, GenerateOptions, Generation,
    Sampling, StoppedBy, WeightStorage,
};
use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
use foretoken_kernels::cpu::{PackedLinear, WeightFormat};
use foretoken_trunk::{Architecture, Block};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

#[derive(Clone, Debug)]
struct Sizes {
    vocab: usize,
    head_dim: usize,
    kv_heads: usize,
    group: usize,
    ffn: usize,
    trunk: usize,
    heads: usize,
    context: usize,
}

fn model(sizes: &Sizes, kind: Kind, seed: i64) -> MultiTokenModel {
    tch::set_num_threads(1);
    let attention_heads = sizes.kv_heads * sizes.group;
    let architecture = Architecture {
        vocab: sizes.vocab,
        dim: attention_heads * sizes.head_dim,
        layers: sizes.trunk + sizes.heads,
        attention_heads,
        kv_heads: sizes.kv_heads,
        ffn: sizes.ffn,
        context: sizes.context,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", sizes.heads);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::new(&config, kind, Device::Cpu, seed).unwrap()
}

/// A model with weights so large that its text wanders instead of repeating one token.
fn restless(sizes: &Sizes, kind: Kind, seed: i64) -> MultiTokenModel {
    let model = model(sizes, kind, seed);
    for parameter in model.parameters().iter().filter(|parameter| parameter.tensor.dim() == 2) {
        no_grad(|| _ = parameter.tensor.shallow_clone().g_mul_scalar_(3.0));
    }
    model
}

fn set(tensor: &Tensor, value: &Tensor) {
    no_grad(|| tensor.shallow_clone().copy_(value));
}

/// A model whose next token is a function of the last one, x → 5x + 1 modulo the vocabulary, and
/// whose head i predicts that function applied i + 1 times, save for the tokens that the i-th of
/// `WRONG_AT` divides, where heads i > 0 are one off: every depth of acceptance occurs.
fn predictable(kind: Kind, heads: usize) -> MultiTokenModel {
    const VOCAB: usize = 32;
    const WRONG_AT: [usize; 5] = [1, 3, 4, 5, 7];
    let sizes = Sizes {
        vocab: VOCAB,
        head_dim: 8,
        kv_heads: 2,
        group: 2,
        ffn: VOCAB,
        trunk: 2,
        heads,
        context: 200,
    };
    let model = model(&sizes, kind, 3);
    let eye = Tensor::eye(VOCAB as i64, (kind, Device::Cpu));
    set(&model.trunk().embed_tokens, &eye);
    set(model.unembedding(), &eye);
    for block in &model.trunk().blocks {
        soften(block);
        set(&block.down_proj, &(&block.down_proj * 1e-3));
    }
    for (i, head) in model.heads().iter().enumerate() {
        let block = head.as_block().unwrap();
        soften(block);
        set(&block.gate_up_proj, &Tensor::cat(&[&eye, &eye], 0));
        let down = Tensor::zeros([VOCAB as i64, VOCAB as i64], (kind, Device::Cpu));
        for token in 0..VOCAB {
            let mut next = (0..=i).fold(token, |x, _| (5 * x + 1) % VOCAB);
            if i > 0 && token % WRONG_AT[i] == 0 {
                next = (next + 1) % VOCAB;
            }
            _ = down.get(next as i64).get(token as i64).fill_(10.0);
        }
        set(&block.down_proj, &down);
    }
    model
}

/// Leaves a block's attention next to nothing to say.
fn soften(block: &Block) {
    set(&block.o_proj, &(&block.o_proj * 1e-3));
}

fn options(max_new_tokens: usize, heads: Option<usize>) -> GenerateOptions {
    let decoding = heads.map_or(Decoding::Autoregressive, |heads| Decoding::Speculative { heads });
    GenerateOptions { max_new_tokens, decoding, record_gaps: true, ..Default::default() }
}

fn generate(decoder: &mut Decoder, prompt: &[u32], options: &GenerateOptions) -> Generation {
    let mut streamed = (Vec::new(), Vec::new());
    let generation = decoder
        .generate(prompt, options, &mut |tokens, heads| {
            streamed.0.extend_from_slice(tokens);
            streamed.1.extend_from_slice(heads);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(streamed.0, generation.tokens);
    assert_eq!(streamed.1, generation.drafted_by);
    assert_eq!(generation.accepted.iter().sum::<usize>(), generation.tokens.len());
    assert_eq!(generation.accepted[0], generation.forward_passes);
    generation
}

/// Compares all numbers of heads with plain decoding.
fn assert_identical(decoder: &mut Decoder, prompt: &[u32], length: usize, heads: usize) {
    let plain = generate(decoder, prompt, &options(length, None));
    assert_eq!(plain.forward_passes, plain.tokens.len());
    assert_eq!(plain.gaps.len(), plain.tokens.len());
    for k in 1..=heads {
        let speculative = generate(decoder, prompt, &options(length, Some(k)));
        assert_eq!(speculative.tokens, plain.tokens, "{k} heads");
        assert_eq!(speculative.gaps, plain.gaps, "{k} heads");
        assert_eq!(speculative.stopped_by, plain.stopped_by);
        assert!(speculative.forward_passes <= plain.forward_passes);
    }
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (5usize..70, 1usize..6, 1usize..3, 1usize..3, 3usize..40, 1usize..3, 1usize..5, 12usize..90)
        .prop_map(|(vocab, half, kv_heads, group, ffn, trunk, heads, context)| Sizes {
            vocab,
            head_dim: 2 * half,
            kv_heads,
            group,
            ffn,
            trunk,
            heads,
            context,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_cpu_engine_speculates_without_a_trace(
        sizes in sizes(), double: bool, full: bool, seed in 0i64..1000,
        prompt in proptest::collection::vec(0u32..1000, 1..60), length in 0usize..60,
    ) {
        let kind = if double { Kind::Double } else { Kind::Float };
        let model = restless(&sizes, kind, seed);
        let drafts = if full { DraftPrecision::Full } else { DraftPrecision::BFloat16 };
        let options =
            DecoderOptions { threads: Some(1), drafts, ..DecoderOptions::default() };
        let mut decoder = Decoder::with_options(&model, options).unwrap();
        prop_assert_eq!(decoder.engine(), "cpu");
        let prompt: Vec<u32> =
            prompt.iter().take(sizes.context).map(|t| t % sizes.vocab as u32).collect();
        assert_identical(&mut decoder, &prompt, length, sizes.heads);
    }

    #[test]
    fn both_engines_generate_the_same_text_in_float64(
        sizes in sizes(), seed in 0i64..1000,
        prompt in proptest::collection::vec(0u32..1000, 1..20), length in 0usize..30,
    ) {
        let model = restless(&sizes, Kind::Double, seed);
        let prompt: Vec<u32> =
            prompt.iter().take(sizes.context).map(|t| t % sizes.vocab as u32).collect();
        let ours = generate(&mut Decoder::new(&model).unwrap(), &prompt, &options(length, None));
        let mut tensors = Decoder::on_tensors(&model).unwrap();
        prop_assert_eq!(tensors.engine(), "tensors");
        for k in 1..=sizes.heads {
            let theirs = generate(&mut tensors, &prompt, &options(length, Some(k)));
            prop_assert_eq!(&theirs.tokens, &ours.tokens);
        }
    }
}

#[test]
fn every_depth_of_acceptance_gives_plain_output() {
    for kind in [Kind::Float, Kind::Double] {
        let model = predictable(kind, 5);
        for mut decoder in [Decoder::new(&model).unwrap(), Decoder::on_tensors(&model).unwrap()] {
            assert_identical(&mut decoder, &[7, 3, 2], 190, 5);
            let text = generate(&mut decoder, &[7, 3, 2], &options(190, Some(5)));
            let depths: Vec<usize> = text.accepted.windows(2).map(|w| w[0] - w[1]).collect();
            assert!(depths.iter().all(|&passes| passes > 0), "some depth is missing: {depths:?}");
            assert!(text.accepted[4] > 0);
            let next = text.tokens.windows(2).all(|w| (5 * w[0] + 1) % 32 == w[1]);
            assert!(next, "the model is not the one that was meant");
        }
    }
}

#[test]
fn drafts_in_bfloat16_are_accepted_like_exact_ones() {
    let model = predictable(Kind::Float, 4);
    let accepted = [DraftPrecision::Full, DraftPrecision::BFloat16].map(|drafts| {
        let setup = DecoderOptions { drafts, ..DecoderOptions::default() };
        let mut decoder = Decoder::with_options(&model, setup).unwrap();
        generate(&mut decoder, &[9], &options(120, Some(4))).accepted
    });
    assert_eq!(accepted[0], accepted[1]);
}

/// Weights like those of a published model: all of bfloat16, or in blocks of 32 of 16 levels each.
fn published(model: &MultiTokenModel, blocks: bool) {
    for parameter in model.parameters().iter().filter(|parameter| parameter.tensor.dim() == 2) {
        let tensor = &parameter.tensor;
        let value = if blocks {
            let flat = tensor.reshape([-1, 32]);
            let step = flat.abs().amax([1], true).divide_scalar(8.0).to_kind(Kind::Half);
            let step = step.to_kind(Kind::Float);
            ((flat / &step).round().clamp(-8.0, 7.0) * step).view_as(tensor)
        } else {
            tensor.to_kind(Kind::BFloat16)
        };
        set(tensor, &value);
    }
}

#[test]
fn compact_weights_write_the_same_text_with_the_same_gaps() {
    let sizes = Sizes {
        vocab: 70,
        head_dim: 16,
        kv_heads: 1,
        group: 2,
        ffn: 64,
        trunk: 2,
        heads: 3,
        context: 100,
    };
    for blocks in [false, true] {
        let model = restless(&sizes, Kind::Float, 5);
        published(&model, blocks);
        let weight = Vec::<f32>::try_from(model.trunk().blocks[0].o_proj.reshape([-1])).unwrap();
        let bytes = |format| PackedLinear::pack(&weight, 32, 32, format).bytes();
        assert!(2 * bytes(WeightFormat::Compact) <= bytes(WeightFormat::Full));
        let [full, compact] = [WeightStorage::Full, WeightStorage::Compact].map(|weights| {
            let setup = DecoderOptions { weights, ..DecoderOptions::default() };
            let mut decoder = Decoder::with_options(&model, setup).unwrap();
            assert_identical(&mut decoder, &[3, 1, 4], 90, 3);
            generate(&mut decoder, &[3, 1, 4], &options(90, None))
        });
        assert_eq!(full.tokens, compact.tokens);
        assert_eq!(full.gaps, compact.gaps);
        assert!(full.tokens.iter().collect::<std::collections::HashSet<_>>().len() > 5);
    }
}

#[test]
fn a_draft_is_credited_to_its_head() {
    let model = predictable(Kind::Float, 3);
    let mut decoder = Decoder::new(&model).unwrap();
    let text = generate(&mut decoder, &[1], &options(30, Some(3)));
    let drafts = |head| text.drafted_by.iter().filter(|&&by| by == head).count();
    assert_eq!(drafts(0), text.forward_passes);
    assert_eq!((drafts(1), drafts(2)), (text.accepted[1], text.accepted[2]));
    assert!(text.tokens_per_forward() > 1.5);
    assert!((text.acceptance().iter().sum::<f64>() - text.tokens_per_forward()).abs() < 1e-12);
}

#[test]
fn a_prompt_may_be_longer_than_a_chunk_of_the_prefill() {
    let sizes = Sizes {
        vocab: 40,
        head_dim: 6,
        kv_heads: 1,
        group: 2,
        ffn: 20,
        trunk: 1,
        heads: 3,
        context: 150,
    };
    let model = restless(&sizes, Kind::Double, 0);
    let prompt: Vec<u32> = (0..149).map(|i| i * i % 40).collect();
    let mut decoder = Decoder::new(&model).unwrap();
    let mut tensors = Decoder::on_tensors(&model).unwrap();
    for length in [1, 47, 48, 49, 96, 97, 140, 148, 149] {
        let ours = generate(&mut decoder, &prompt[..length], &options(2, Some(3)));
        let theirs = generate(&mut tensors, &prompt[..length], &options(2, None));
        assert_eq!(ours.tokens, theirs.tokens, "{length} tokens");
    }
}

#[test]
fn generation_stops_where_it_should() {
    let model = predictable(Kind::Float, 4);
    let mut decoder = Decoder::new(&model).unwrap();
    for decoding in [Decoding::Autoregressive, Decoding::Speculative { heads: 4 }] {
        let options = |max_new_tokens| GenerateOptions {
            max_new_tokens,
            decoding,
            ..GenerateOptions::default()
        };
        let none = generate(&mut decoder, &[1], &options(0));
        assert_eq!((none.tokens.len(), none.forward_passes), (0, 0));
        assert_eq!(none.stopped_by, StoppedBy::Limit);
        assert!(none.tokens_per_forward() == 0.0 && none.acceptance()[0] == 0.0);

        let limited = generate(&mut decoder, &[1], &options(17));
        assert_eq!((limited.tokens.len(), limited.stopped_by), (17, StoppedBy::Limit));

        // The last position still predicts a token: 200 − 150 + 1.
        let prompt: Vec<u32> = (0..150).map(|i| i % 32).collect();
        let full = generate(&mut decoder, &prompt, &options(1000));
        assert_eq!((full.tokens.len(), full.stopped_by), (51, StoppedBy::Context));

        let end = limited.tokens[9];
        let ending = GenerateOptions { end_of_text: vec![end], ..options(17) };
        let ended = generate(&mut decoder, &[1], &ending);
        assert_eq!(ended.tokens, limited.tokens[..10]);
        assert_eq!(ended.stopped_by, StoppedBy::EndOfText);

        let mut calls = 0;
        let broken = decoder.generate(&[1], &options(17), &mut |tokens, _| {
            calls += tokens.len();
            if calls == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let broken = broken.unwrap();
        assert_eq!(broken.tokens, limited.tokens[..6]);
        assert_eq!(broken.stopped_by, StoppedBy::StopText);
    }
}

#[test]
fn sampling_follows_its_seed_and_the_model() {
    let model = predictable(Kind::Float, 2);
    let mut decoder = Decoder::new(&model).unwrap();
    let sampled = |temperature, seed| GenerateOptions {
        max_new_tokens: 40,
        sampling: Some(Sampling { temperature, top_p: 0.95, seed }),
        ..GenerateOptions::default()
    };
    let greedy = generate(&mut decoder, &[4], &options(40, None)).tokens;
    assert_eq!(generate(&mut decoder, &[4], &sampled(1e-3, 0)).tokens, greedy);
    let hot = generate(&mut decoder, &[4], &sampled(5.0, 0));
    assert_ne!(hot.tokens, greedy);
    assert_eq!(generate(&mut decoder, &[4], &sampled(5.0, 0)).tokens, hot.tokens);
    assert_ne!(generate(&mut decoder, &[4], &sampled(5.0, 1)).tokens, hot.tokens);
}

#[test]
fn what_cannot_be_done_is_refused_with_the_numbers() {
    let model = predictable(Kind::Float, 2);
    let mut decoder = Decoder::new(&model).unwrap();
    let mut refusal = |prompt: &[u32], options: &GenerateOptions| {
        let mut ignore = |_: &[u32], _: &[usize]| ControlFlow::Continue(());
        decoder.generate(prompt, options, &mut ignore).unwrap_err()
    };
    let plain = GenerateOptions::default();
    assert!(matches!(refusal(&[], &plain), Error::EmptyPrompt));
    let long = refusal(&[0; 201], &plain).to_string();
    assert!(long.contains("201") && long.contains("200"), "{long}");
    let unknown = refusal(&[3, 32], &plain).to_string();
    assert!(unknown.contains("token 32") && unknown.contains("31"), "{unknown}");
    for heads in [0, 3] {
        let options =
            GenerateOptions { decoding: Decoding::Speculative { heads }, ..plain.clone() };
        assert!(matches!(refusal(&[1], &options), Error::Heads { available: 2, .. }));
    }
    let sampling = |temperature, top_p| Some(Sampling { temperature, top_p, seed: 0 });
    for (temperature, top_p) in [(0.0, 1.0), (-1.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0), (1.0, 1.1)] {
        let options = GenerateOptions { sampling: sampling(temperature, top_p), ..plain.clone() };
        assert!(matches!(refusal(&[1], &options), Error::Sampling { .. }));
    }
    let both = GenerateOptions {
        sampling: sampling(1.0, 1.0),
        decoding: Decoding::Speculative { heads: 2 },
        ..plain
    };
    assert!(matches!(refusal(&[1], &both), Error::NotBuilt { .. }));
}

#[test]
fn heads_that_leap_do_not_draft() {
    let config = predictable(Kind::Float, 4).config().clone();
    let heads = config.heads.clone().with_offsets(vec![0, 1, 3, 4]).unwrap();
    let config = ModelConfig { heads, ..config };
    let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 3).unwrap();
    let mut decoder = Decoder::new(&model).unwrap();
    assert_identical(&mut decoder, &[1, 2, 3], 12, 2);
    let error = decoder
        .generate(&[1], &options(4, Some(3)), &mut |_, _| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(matches!(error, Error::Heads { asked: 3, available: 2 }), "{error}");
}
