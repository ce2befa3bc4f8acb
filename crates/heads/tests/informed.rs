//! Heads that are told the tokens before their targets.

use foretoken_heads::{HeadsConfig, InformedHead, ModelConfig, MultiTokenModel, Registry};
use foretoken_trunk::Architecture;
use std::sync::Mutex;
use tch::{Device, Kind, Tensor, no_grad};

/// First weights come from libtorch's one generator: models that are compared are made in turn.
static TURN: Mutex<()> = Mutex::new(());

fn stock(kind: Kind) -> MultiTokenModel {
    let architecture = Architecture {
        vocab: 30,
        dim: 24,
        layers: 3,
        attention_heads: 4,
        kv_heads: 2,
        ffn: 30,
        context: 32,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new("block", 1);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::new(&config, kind, Device::Cpu, 3).unwrap()
}

fn grown(kind: Kind) -> MultiTokenModel {
    let heads = HeadsConfig::new(InformedHead::KIND, 3);
    stock(kind).grow(&heads, &Registry::stock(), 1).unwrap()
}

fn informed(kind: Kind) -> MultiTokenModel {
    let model = grown(kind);
    for parameter in model.head_parameters() {
        let noise = parameter.tensor.randn_like() * 0.3;
        no_grad(|| _ = parameter.tensor.shallow_clone().g_add_(&noise));
    }
    model
}

fn tokens() -> Tensor {
    Tensor::randint(30, [2, 9], (Kind::Int64, Device::Cpu))
}

#[test]
fn a_fresh_head_is_the_models_last_layer_whatever_it_is_told() {
    let _turn = TURN.lock();
    let model = grown(Kind::Double);
    let hidden = model.hidden(&tokens()).unwrap();
    let own = model.head_hidden(0, &hidden).unwrap();
    for other in [tokens(), tokens()] {
        let told = model.told(&other).unwrap();
        let told = model.head_hidden_told(2, &hidden, told.as_ref()).unwrap();
        assert!((told - &own).abs().max().double_value(&[]) < 1e-12);
    }
}

#[test]
fn what_it_is_told_is_the_state_after_the_first_blocks() {
    let _turn = TURN.lock();
    let model = informed(Kind::Double);
    let text = tokens();
    let mut x = model.trunk().embed_tokens.index_select(0, &text.view([-1])).view([2, 9, 24]);
    for block in &model.trunk().blocks[..InformedHead::TOLD_BLOCKS] {
        x = block.forward(&x, &model.trunk().rotary, None).unwrap();
    }
    let told = model.told(&text).unwrap().unwrap();
    assert_eq!(told, x);
    assert!(!told.requires_grad());
    let (hidden, beside) = model.hidden_and_told(&text).unwrap();
    assert_eq!((hidden, beside.unwrap()), (model.hidden(&text).unwrap(), told));
    assert!(stock(Kind::Double).told(&text).unwrap().is_none());
}

#[test]
fn logits_of_a_text_go_on_with_what_is_drafted_behind_it() {
    let _turn = TURN.lock();
    let model = informed(Kind::Double);
    let (text, seq) = (tokens(), 9);
    let all = model.text_logits(&text).unwrap();
    assert_eq!(all.len(), 3);
    // A row in the middle is told the text: the same as the end of a text that stops there, where
    // the drafts happen to be the text's own tokens.
    let hidden = model.hidden(&text).unwrap();
    let mut long = text.shallow_clone();
    for (head, logits) in (0..).zip(&all) {
        let told = model.told(&long).unwrap().unwrap().narrow(1, head, seq);
        let state = model.head_hidden_told(head as usize, &hidden, Some(&told)).unwrap();
        let expected = state.matmul(&model.unembedding().transpose(0, 1));
        assert!((logits - &expected).abs().max().double_value(&[]) < 1e-12);
        let choice = expected.narrow(1, seq - 1, 1).argmax(-1, false);
        long = Tensor::cat(&[long, choice], 1);
    }
    let error = model.logits(1, &hidden).unwrap_err().to_string();
    assert!(error.contains("informed") && error.contains("told"), "{error}");
}

#[test]
fn a_head_looks_at_the_tokens_before_its_target_alone() {
    let _turn = TURN.lock();
    let model = informed(Kind::Double);
    let (text, next) = (tokens(), tokens());
    let hidden = model.hidden(&text).unwrap();
    let state = |next: &Tensor| {
        model.head_hidden_told(1, &hidden, model.told(next).unwrap().as_ref()).unwrap()
    };
    let before = state(&next);
    let other = (next.narrow(1, 5, 1) + 1).fmod(30);
    next.narrow(1, 5, 1).copy_(&other);
    let after = state(&next);
    let moved = (after - before).abs().amax(&[0i64, 2][..], false);
    let moved = Vec::<f64>::try_from(moved).unwrap();
    assert!(moved[..5].iter().all(|&moved| moved == 0.0), "{moved:?}");
    assert!(moved[5] > 1e-3, "{moved:?}");
}

#[test]
fn its_input_is_the_formula() {
    let _turn = TURN.lock();
    let model = informed(Kind::Double);
    let hidden = model.hidden(&tokens()).unwrap();
    let head = model.head(1).unwrap().as_informed().unwrap();
    let m = model.told(&tokens()).unwrap().unwrap();
    let eps = head.block.norm_eps;
    let mean = |x: &Tensor| (x * x).mean_dim(&[-1i64][..], true, Kind::Double) + eps;
    let product = |x: &Tensor, by: &Tensor| (x / mean(x).sqrt()).matmul(&by.transpose(0, 1));
    let added = product(&m, head.token_proj) + product(&hidden, head.hidden_proj);
    let x = &hidden + mean(&hidden).sqrt() * added;
    let y = head.block.forward(&x, &model.trunk().rotary, None).unwrap();
    let expected = model.normed(&y).unwrap();
    let ours = model.head_hidden_told(1, &hidden, Some(&m)).unwrap();
    assert!((ours - expected).abs().max().double_value(&[]) < 1e-12);
}

#[test]
fn they_are_saved_with_the_model_and_joined_to_it_again() {
    let _turn = TURN.lock();
    let dir = tempfile::tempdir().unwrap();
    let model = informed(Kind::Float);
    model.save(&dir.path().join("model")).unwrap();
    let same = |other: &MultiTokenModel| {
        let text = tokens();
        let state = |model: &MultiTokenModel| {
            let (hidden, told) = model.hidden_and_told(&text).unwrap();
            model.head_hidden_told(2, &hidden, told.as_ref()).unwrap()
        };
        state(&model) == state(other)
    };
    let loaded = MultiTokenModel::load(&dir.path().join("model"), Kind::Float, Device::Cpu);
    assert!(same(&loaded.unwrap()));
    let joined = stock(Kind::Float).with_heads(&dir.path().join("model"), &Registry::stock());
    assert!(same(&joined.unwrap()));
}

#[test]
fn a_copy_in_another_kind_is_the_rounded_model() {
    let _turn = TURN.lock();
    let mut model = informed(Kind::Float);
    model.set_draft_vocabulary(Some(vec![1, 5, 7])).unwrap();
    model.freeze_stock(true);
    let copy = model.in_kind(Kind::BFloat16, &Registry::stock()).unwrap();
    assert_eq!(copy.kind(), Kind::BFloat16);
    assert_eq!(copy.draft_vocabulary().unwrap().tokens(), [1, 5, 7]);
    for (a, b) in model.parameters().iter().zip(copy.parameters()) {
        assert_eq!(a.tensor.to_kind(Kind::BFloat16), b.tensor);
        assert_eq!((a.tensor.requires_grad(), &a.parts), (b.tensor.requires_grad(), &b.parts));
    }
}
