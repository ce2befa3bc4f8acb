//! Heads on a pretrained model: drafts of every form, from a part of the vocabulary, at the pace
//! that pays, from a model that is read as it is packed; and the text is that of plain decoding.

use std::ops::ControlFlow;

use foretoken_decode::{Decoder, DecoderOptions, Decoding, GenerateOptions, Generation};
use foretoken_heads::{HeadsConfig, ModelConfig, ModelSource, MultiTokenModel, Registry};
use foretoken_trunk::{Architecture, RopeScaling};
use proptest::prelude::*;
use tch::{Device, Kind, no_grad};

/// What is tried of a model.
#[derive(Clone, Debug)]
struct Shape {
    head: &'static str,
    heads: usize,
    tied: bool,
    bias: bool,
    scaled: bool,
    drafts: Option<usize>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let head = prop::sample::select(vec!["block", "informed", "medusa", "linear"]);
    let drafts = prop::option::of(1usize..40);
    (head, 2usize..5, any::<bool>(), any::<bool>(), any::<bool>(), drafts).prop_map(
        |(head, heads, tied, bias, scaled, drafts)| Shape {
            head,
            heads,
            tied,
            bias,
            scaled,
            drafts,
        },
    )
}

/// A decoder that reads the model from a folder.
fn reading(model: &MultiTokenModel) -> Decoder<'static> {
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    let unread = ModelSource::open(folder.path()).unwrap().unread(model.kind(), Device::Cpu);
    Decoder::reading(unread.unwrap(), DecoderOptions::default()).unwrap()
}

/// A model with weights so large that its text wanders.
fn model(shape: &Shape, kind: Kind, seed: i64) -> MultiTokenModel {
    tch::set_num_threads(1);
    let architecture = Architecture {
        vocab: 40,
        dim: 24,
        layers: 3,
        attention_heads: 4,
        kv_heads: 2,
        ffn: 40,
        context: 96,
        tied: shape.tied,
        qkv_bias: shape.bias,
        rope_scaling: match shape.scaled {
            true => RopeScaling::Linear { factor: 3.0 },
            false => RopeScaling::None,
        },
        ..Architecture::default()
    };
    let stock = HeadsConfig::new("block", 1);
    let config = ModelConfig { architecture, heads: stock, end_of_text: Vec::new() };
    let model = MultiTokenModel::new(&config, kind, Device::Cpu, seed).unwrap();
    for parameter in model.parameters() {
        no_grad(|| {
            let mut tensor = parameter.tensor.shallow_clone();
            if tensor.dim() == 2 {
                _ = tensor.g_mul_scalar_(3.0);
            } else {
                let noise = tensor.randn_like() * 0.3;
                _ = tensor.g_add_(&noise);
            }
        });
    }
    let heads = HeadsConfig::new(shape.head, shape.heads);
    let mut model = model.grow(&heads, &Registry::stock(), seed).unwrap();
    for parameter in model.head_parameters() {
        no_grad(|| {
            let noise = parameter.tensor.randn_like() * 0.2;
            _ = parameter.tensor.shallow_clone().g_add_(&noise);
        });
    }
    let tokens = shape.drafts.map(|count| (0..40).step_by(40 / count).collect());
    model.set_draft_vocabulary(tokens).unwrap();
    model
}

fn generate(decoder: &mut Decoder, prompt: &[u32], decoding: Decoding) -> Generation {
    generate_with(decoder, prompt, decoding, 0)
}

fn generate_with(
    decoder: &mut Decoder,
    prompt: &[u32],
    decoding: Decoding,
    alternatives: usize,
) -> Generation {
    let options = GenerateOptions {
        max_new_tokens: 60,
        decoding,
        alternatives,
        record_gaps: true,
        ..Default::default()
    };
    decoder.generate(prompt, &options, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn drafts_of_every_form_leave_no_trace(
        shape in shapes(), double: bool, seed in 0i64..1000, alternatives in 1usize..20,
        prompt in prop::collection::vec(0u32..40, 1..30),
    ) {
        let kind = if double { Kind::Double } else { Kind::Float };
        let model = model(&shape, kind, seed);
        let mut decoder = Decoder::new(&model).unwrap();
        prop_assert_eq!(decoder.engine(), "cpu");
        let plain = generate(&mut decoder, &prompt, Decoding::Autoregressive);
        for heads in 2..=shape.heads {
            let fast = generate(&mut decoder, &prompt, Decoding::Speculative { heads });
            prop_assert_eq!(&fast.tokens, &plain.tokens);
            let paced = generate(&mut decoder, &prompt, Decoding::Adaptive { heads });
            prop_assert_eq!(&paced.tokens, &plain.tokens);
            for decoding in [Decoding::Speculative { heads }, Decoding::Adaptive { heads }] {
                let beside = generate_with(&mut decoder, &prompt, decoding, alternatives);
                prop_assert_eq!((&beside.tokens, &beside.gaps), (&plain.tokens, &plain.gaps));
                prop_assert_eq!(beside.accepted.iter().sum::<usize>(), beside.tokens.len());
                prop_assert_eq!(beside.accepted.len(), heads);
            }
        }
    }

    #[test]
    fn both_engines_draft_the_same_in_float64(
        shape in shapes(), seed in 0i64..1000, prompt in prop::collection::vec(0u32..40, 1..60),
        alternatives in 0usize..17,
    ) {
        let model = model(&shape, Kind::Double, seed);
        let decoding = Decoding::Speculative { heads: shape.heads };
        let mut ours = Decoder::new(&model).unwrap();
        let ours = generate_with(&mut ours, &prompt, decoding, alternatives);
        let mut theirs = Decoder::on_tensors(&model).unwrap();
        let theirs = generate_with(&mut theirs, &prompt, decoding, alternatives);
        prop_assert_eq!(&ours.tokens, &theirs.tokens);
        prop_assert_eq!(ours.drafted_by, theirs.drafted_by);
        let mut paced = Decoder::on_tensors(&model).unwrap();
        let decoding = Decoding::Adaptive { heads: shape.heads };
        let paced = generate_with(&mut paced, &prompt, decoding, alternatives);
        prop_assert_eq!(paced.tokens, ours.tokens);
    }

    #[test]
    fn a_model_that_is_read_in_turn_decodes_the_same(
        shape in shapes(), seed in 0i64..1000, prompt in prop::collection::vec(0u32..40, 1..20),
    ) {
        let model = model(&shape, Kind::Float, seed);
        let decoding = Decoding::Speculative { heads: shape.heads };
        let lent = generate(&mut Decoder::new(&model).unwrap(), &prompt, decoding);
        let mut read = reading(&model);
        prop_assert_eq!(read.engine(), "cpu");
        let read = generate(&mut read, &prompt, decoding);
        prop_assert_eq!((lent.tokens, lent.drafted_by), (read.tokens, read.drafted_by));
    }
}

/// Over 48 texts of models whose heads know little.
#[test]
fn alternatives_bring_more_tokens_a_pass() {
    let mut passes = [0, 0];
    for seed in 0..12 {
        for head in ["block", "medusa", "linear", "informed"] {
            let shape =
                Shape { head, heads: 3, tied: true, bias: false, scaled: false, drafts: Some(20) };
            let model = model(&shape, Kind::Float, seed);
            let mut decoder = Decoder::new(&model).unwrap();
            for (passes, alternatives) in passes.iter_mut().zip([0, 16]) {
                let decoding = Decoding::Speculative { heads: 3 };
                let prompt = [seed as u32, 3, 9];
                let text = generate_with(&mut decoder, &prompt, decoding, alternatives);
                *passes += text.forward_passes;
            }
        }
    }
    assert!(passes[1] * 20 < passes[0] * 19, "{passes:?}");
}

#[test]
fn a_model_in_bfloat16_is_read_for_the_tensors() {
    let shape = Shape {
        head: "medusa",
        heads: 3,
        tied: true,
        bias: false,
        scaled: false,
        drafts: Some(20),
    };
    let model = model(&shape, Kind::BFloat16, 1);
    let mut decoder = reading(&model);
    assert_eq!(decoder.engine(), "tensors");
    assert_eq!(generate(&mut decoder, &[1, 2], Decoding::Autoregressive).tokens.len(), 60);
    // Rows may round differently beside others in so few bits: the text need not be the same.
    let beside = generate_with(&mut decoder, &[1, 2], Decoding::Speculative { heads: 3 }, 8);
    assert_eq!(beside.tokens.len(), 60);
}
