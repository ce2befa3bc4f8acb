//! A backward pass that goes block by block gives the gradients of one in a piece.

use foretoken_kernels::backward_from;
use foretoken_trunk::{Architecture, Initialiser, Trunk, TrunkPart};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};

fn trunk(layers: usize, kind: Kind, seed: i64) -> Trunk {
    let sizes = Architecture {
        vocab: 40,
        dim: 24,
        layers: layers.max(1),
        attention_heads: 4,
        kv_heads: 2,
        ffn: 40,
        context: 32,
        ..Architecture::default()
    };
    Trunk::new(&sizes, layers, &Initialiser::new(&sizes, kind, Device::Cpu, seed)).unwrap()
}

fn take_gradients(trunk: &Trunk) -> Vec<Option<Tensor>> {
    let take = |tensor: &Tensor| {
        let mut gradient = tensor.grad();
        gradient.defined().then(|| {
            let copy = gradient.copy();
            let _ = gradient.zero_();
            copy
        })
    };
    trunk.parameters().iter().map(|parameter| take(&parameter.tensor)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn gradients_are_the_same_bits_and_parts_are_told_from_the_last(
        layers in 0usize..5, rows in 1i64..4, seq in 1i64..12, seed in 0i64..1000,
        double: bool, recompute: bool,
    ) {
        let kind = if double { Kind::Double } else { Kind::Float };
        let trunk = trunk(layers, kind, seed);
        let tokens = Tensor::randint(40, [rows, seq], (Kind::Int64, Device::Cpu));
        let gradient = Tensor::randn([rows, seq, 24], (kind, Device::Cpu));
        let whole = trunk.forward(&tokens, None).unwrap();
        backward_from(&whole, &gradient).unwrap();
        let expected = take_gradients(&trunk);

        let segments = trunk.segments(&tokens, &trunk.rotary, recompute).unwrap();
        prop_assert_eq!(segments.output(), &whole.detach());
        let mut told = Vec::new();
        segments.backward(&gradient, |part| told.push(part)).unwrap();
        let found = take_gradients(&trunk);
        prop_assert_eq!(found, expected);
        let blocks = (0..layers).rev().map(TrunkPart::Block);
        prop_assert_eq!(told, blocks.chain([TrunkPart::Embedding]).collect::<Vec<_>>());
    }
}

#[test]
fn what_does_not_learn_is_passed_over() {
    let trunk = trunk(4, Kind::Double, 3);
    for part in [TrunkPart::Embedding, TrunkPart::Block(0), TrunkPart::Block(1)] {
        for parameter in trunk.part_parameters(part) {
            let _ = parameter.tensor.set_requires_grad(false);
        }
    }
    let tokens = Tensor::randint(40, [2, 7], (Kind::Int64, Device::Cpu));
    for recompute in [false, true] {
        let mut told = Vec::new();
        let segments = trunk.segments(&tokens, &trunk.rotary, recompute).unwrap();
        let gradient = segments.output().ones_like();
        segments.backward(&gradient, |part| told.push(part)).unwrap();
        assert_eq!(told, [TrunkPart::Block(3), TrunkPart::Block(2)]);
        let gradients = take_gradients(&trunk);
        let learned = |part| trunk.part_parameters(part).len();
        let last = learned(TrunkPart::Block(2)) + learned(TrunkPart::Block(3));
        assert_eq!(gradients.iter().filter(|gradient| gradient.is_some()).count(), last);
    }
}
