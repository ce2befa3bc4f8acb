//! Heads that are not blocks: decoded on tensors, and as exactly.

use std::ops::ControlFlow;

use foretoken_decode::{Decoder, Decoding, GenerateOptions, Generation};
use foretoken_heads::{
    Head, HeadContext, HeadsConfig, ModelConfig, MultiTokenModel, Registry, Result, Tap,
};
use foretoken_kernels::KvCache;
use foretoken_trunk::{Architecture, Block, Initialiser, Parameter, Role};
use tch::{Device, Kind, Tensor};

/// x + silu(W x) over the final hidden state, as Medusa's.
#[derive(Debug)]
struct Residual {
    weight: Tensor,
}

impl Head for Residual {
    fn kind(&self) -> &'static str {
        "residual"
    }

    fn tap(&self) -> Tap {
        Tap::FinalHidden
    }

    fn forward(
        &self,
        hidden: &Tensor,
        _context: HeadContext<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        assert!(cache.is_none());
        Ok(hidden + hidden.f_linear::<&Tensor>(&self.weight, None)?.f_silu()?)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        vec![Parameter::whole(&self.weight, Role::Matrix, format!("{prefix}weight"))]
    }
}

/// A block behind a door: with a cache, but not to be looked into.
#[derive(Debug)]
struct Opaque(Block);

impl Head for Opaque {
    fn kind(&self) -> &'static str {
        "opaque"
    }

    fn tap(&self) -> Tap {
        Tap::TrunkOutput
    }

    fn forward(
        &self,
        hidden: &Tensor,
        context: HeadContext<'_>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        assert!(cache.is_some());
        Ok(self.0.forward(hidden, context.rotary, cache)?)
    }

    fn parameters(&self, prefix: &str) -> Vec<Parameter> {
        self.0.parameters(prefix)
    }

    fn cache(&self, batch: i64, capacity: i64) -> Result<Option<KvCache>> {
        let shape = self.0.attention;
        let (kind, device) = (self.0.qkv_proj.kind(), self.0.qkv_proj.device());
        let (heads, width) = (shape.kv_heads, shape.head_dim);
        Ok(Some(KvCache::new(batch, heads, capacity, width, kind, device)?))
    }
}

fn model(kind: &'static str) -> MultiTokenModel {
    tch::set_num_threads(1);
    let registry = Registry::stock()
        .with("residual", 1, |sizes: &Architecture, init: &Initialiser| {
            let dim = sizes.dim as i64;
            Ok(Box::new(Residual { weight: init.matrix(dim, dim)? }))
        })
        .with("opaque", 1, |sizes: &Architecture, init: &Initialiser| {
            Ok(Box::new(Opaque(Block::new(sizes, init)?)))
        });
    let architecture = Architecture {
        vocab: 20,
        dim: 24,
        layers: 6,
        attention_heads: 4,
        kv_heads: 2,
        ffn: 30,
        context: 100,
        ..Architecture::default()
    };
    let heads = HeadsConfig::new(kind, 4);
    let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    MultiTokenModel::with_registry(&config, &registry, Kind::Double, Device::Cpu, 1).unwrap()
}

fn generate(decoder: &mut Decoder<'_>, decoding: Decoding, alternatives: usize) -> Generation {
    let options = GenerateOptions {
        max_new_tokens: 80,
        decoding,
        alternatives,
        ..GenerateOptions::default()
    };
    decoder.generate(&[3, 1, 4, 1, 5], &options, &mut |_, _| ControlFlow::Continue(())).unwrap()
}

#[test]
fn heads_of_any_type_speculate_without_a_trace() {
    for kind in ["residual", "opaque"] {
        let model = model(kind);
        let mut decoder = Decoder::new(&model).unwrap();
        assert_eq!(decoder.engine(), "tensors");
        let plain = generate(&mut decoder, Decoding::Autoregressive, 0);
        assert_eq!(plain.forward_passes, 80);
        let mut accepted = 0;
        for heads in [4, 2, 3, 4] {
            let speculative = generate(&mut decoder, Decoding::Speculative { heads }, 0);
            assert_eq!(speculative.tokens, plain.tokens, "{heads} {kind} heads");
            accepted += speculative.accepted[1];
            let beside = generate(&mut decoder, Decoding::Speculative { heads }, 8);
            assert_eq!(beside.tokens, plain.tokens, "{heads} {kind} heads");
            assert!(beside.forward_passes <= speculative.forward_passes, "{heads} {kind} heads");
        }
        assert!(accepted > 0, "no draft of {kind} heads was ever accepted");
    }
}
