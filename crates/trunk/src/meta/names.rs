//! What Meta calls the tensors of a Llama, and what the stock names are.

/// Embedding, final norm and unembedding: Meta's name, the stock name.
const ENDS: [(&str, &str); 3] = [
    ("tok_embeddings.weight", "model.embed_tokens.weight"),
    ("norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// The parts of a layer: Meta's name, the stock name.
const PARTS: [(&str, &str); 9] = [
    ("attention.wq", "self_attn.q_proj"),
    ("attention.wk", "self_attn.k_proj"),
    ("attention.wv", "self_attn.v_proj"),
    ("attention.wo", "self_attn.o_proj"),
    ("feed_forward.w1", "mlp.gate_proj"),
    ("feed_forward.w2", "mlp.down_proj"),
    ("feed_forward.w3", "mlp.up_proj"),
    ("attention_norm", "input_layernorm"),
    ("ffn_norm", "post_attention_layernorm"),
];

/// How many of [`PARTS`], from the first on, have rows for interleaved rotary pairs.
const INTERLEAVED: usize = 2;

/// A tensor's place in the model; numbers of parts index the tables above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// One of [`ENDS`].
    End(usize),
    /// Layer and part: the trunk's layers, then head 0.
    Layer(u32, usize),
    /// Extra head and part: extra head j is head j + 1.
    Extra(u32, usize),
}

impl Place {
    /// The place of Meta's name; `None` where a Llama has none.
    pub(super) fn parse(name: &str) -> Option<Self> {
        if let Some(end) = ENDS.iter().position(|(own, _)| *own == name) {
            return Some(Self::End(end));
        }
        let (extra, rest) = match name.strip_prefix("layers.") {
            Some(rest) => (false, rest),
            None => (true, name.strip_prefix("extra_heads.")?),
        };
        let (digits, part) = rest.split_once('.')?;
        let number = digits.parse::<u32>().ok().filter(|number| number.to_string() == digits)?;
        let part = part.strip_suffix(".weight")?;
        let part = PARTS.iter().position(|(own, _)| *own == part)?;
        Some(if extra { Self::Extra(number, part) } else { Self::Layer(number, part) })
    }

    /// Every place of a model with so many `layers.` and so many `extra_heads.`.
    pub(super) fn all(layers: u32, extra: u32) -> impl Iterator<Item = Self> {
        let parts = || 0..PARTS.len();
        let ends = (0..ENDS.len()).map(Self::End);
        let layers = (0..layers).flat_map(move |i| parts().map(move |part| Self::Layer(i, part)));
        let heads = (0..extra).flat_map(move |j| parts().map(move |part| Self::Extra(j, part)));
        ends.chain(layers).chain(heads)
    }

    /// Whether a model with so many `layers.` and so many `extra_heads.` has this place.
    pub(super) fn is_within(self, layers: u32, extra: u32) -> bool {
        match self {
            Self::End(_) => true,
            Self::Layer(layer, _) => layer < layers,
            Self::Extra(head, _) => head < extra,
        }
    }

    /// Whether the rows lie interleaved.
    pub(super) fn is_interleaved(self) -> bool {
        matches!(self, Self::Layer(_, part) | Self::Extra(_, part) if part < INTERLEAVED)
    }

    /// Meta's name.
    pub(super) fn own(self) -> String {
        match self {
            Self::End(end) => ENDS[end].0.to_owned(),
            Self::Layer(layer, part) => format!("layers.{layer}.{}.weight", PARTS[part].0),
            Self::Extra(head, part) => format!("extra_heads.{head}.{}.weight", PARTS[part].0),
        }
    }

    /// The stock name.
    pub(super) fn stock(self) -> String {
        match self {
            Self::End(end) => ENDS[end].1.to_owned(),
            Self::Layer(layer, part) => format!("model.layers.{layer}.{}.weight", PARTS[part].1),
            Self::Extra(head, part) => {
                format!("heads.{}.{}.weight", u64::from(head) + 1, PARTS[part].1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn every_place_has_names_of_its_own_that_lead_back_to_it() {
        let places: Vec<Place> = Place::all(3, 2).collect();
        assert_eq!(places.len(), 3 + 5 * 9);
        for &place in &places {
            assert_eq!(Place::parse(&place.own()), Some(place));
            assert_eq!(places.iter().filter(|other| other.stock() == place.stock()).count(), 1);
        }
        assert_eq!(
            Place::parse("extra_heads.0.attention.wk.weight").map(Place::stock).as_deref(),
            Some("heads.1.self_attn.k_proj.weight")
        );
        for name in ["layers.01.ffn_norm.weight", "layers.0.ffn_norm.bias", "model.norm.weight"] {
            assert_eq!(Place::parse(name), None);
        }
    }
}
