//! What GGUF calls the tensors of a Llama, and what the stock names are.

/// Embedding, final norm and unembedding: the stock name, GGUF's name.
const ENDS: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// The parts of a layer: the stock name, GGUF's name.
const PARTS: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The stock Llama name of a GGUF tensor; a name that stands for none stays as it is, and so is
/// named when the reading ends.
pub(super) fn stock_name(name: &str) -> String {
    let end = ENDS.iter().find(|(_, gguf)| *gguf == name).map(|(stock, _)| (*stock).to_owned());
    let renamed = end.or_else(|| {
        let (layer, part, kind) = split(name.strip_prefix("blk.")?)?;
        let number = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
        let (stock, _) = PARTS.iter().find(|(_, gguf)| *gguf == part)?;
        Some(format!("model.layers.{number}.{stock}.{kind}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

/// GGUF's name of a stock Llama tensor; `None` where it has none.
pub fn gguf_name(stock: &str) -> Option<String> {
    if let Some((_, gguf)) = ENDS.iter().find(|(own, _)| *own == stock) {
        return Some((*gguf).to_owned());
    }
    let (layer, part, kind) = split(stock.strip_prefix("model.layers.")?)?;
    let (_, gguf) = PARTS.iter().find(|(own, _)| *own == part)?;
    Some(format!("blk.{layer}.{gguf}.{kind}"))
}

/// Layer, part and kind (`weight` or `bias`) of what follows a layer's prefix.
fn split(rest: &str) -> Option<(&str, &str, &str)> {
    let (layer, part) = rest.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    Some((layer, part, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_each_other_and_others_stay_as_they_are() {
        for (stock, _) in PARTS {
            for kind in ["weight", "bias"] {
                let name = format!("model.layers.12.{stock}.{kind}");
                assert_eq!(gguf_name(&name).map(|gguf| stock_name(&gguf)), Some(name));
            }
        }
        for (stock, gguf) in ENDS {
            assert_eq!(
                (stock_name(gguf).as_str(), gguf_name(stock).as_deref()),
                (stock, Some(gguf))
            );
        }
        for name in ["blk.01.attn_q.weight", "blk.0.attn_qq.weight", "rope_freqs.weight"] {
            assert_eq!(stock_name(name), name);
        }
        assert_eq!(gguf_name("heads.1.mlp.up_proj.weight"), None);
    }
}
