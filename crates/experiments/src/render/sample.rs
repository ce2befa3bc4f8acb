//! A generated text whose accepted drafts are coloured by head.

use std::fmt::Write;

use crate::results::Sample;

use super::text::escape;

/// Colours of drafts; heads beyond share them from the start.
const COLOURS: usize = 7;

/// The class of a piece from this head (counted from 0).
fn class(head: usize) -> usize {
    match head {
        0 => 0,
        draft => (draft - 1) % COLOURS + 1,
    }
}

/// The legend: the prompt, head 1 and each head that drafts.
pub(crate) fn legend(sample: &Sample) -> String {
    let mut html = String::from(
        "<ul class=\"legend\"><li><span class=\"chip p\">abc</span>prompt</li>\
         <li><i class=\"chip d0\"></i>head 1: the next token, one each pass</li>",
    );
    for head in 1..sample.heads_used {
        let _ = write!(html, "<li><i class=\"chip d{}\"></i>head {}</li>", class(head), head + 1);
    }
    html.push_str("</ul>");
    html
}

/// Prompt and text, each accepted draft in the colour of its head.
pub(crate) fn text(sample: &Sample) -> String {
    let mut html =
        format!("<pre class=\"sample\"><span class=\"prompt\">{}</span>", escape(&sample.prompt));
    for (piece, head) in &sample.pieces {
        match class(*head) {
            0 => html.push_str(&escape(piece)),
            class => {
                let _ = write!(html, "<span class=\"d d{class}\">{}</span>", escape(piece));
            }
        }
    }
    html.push_str("</pre>");
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Sample {
        Sample {
            model: "n4".to_owned(),
            heads_used: 4,
            prompt: "def ".to_owned(),
            pieces: vec![("f".to_owned(), 0), ("(x".to_owned(), 1), ("<".to_owned(), 3)],
            tokens: 4,
            forward_passes: 1,
        }
    }

    #[test]
    fn drafts_carry_the_class_of_their_head_and_verified_tokens_none() {
        let html = text(&sample());
        assert!(
            html.contains("</span>f<span class=\"d d1\">(x</span><span class=\"d d3\">&lt;</span>")
        );
    }

    #[test]
    fn the_legend_names_every_head_used_from_one() {
        let html = legend(&sample());
        assert!(html.contains("head 1") && html.contains("head 4") && !html.contains("head 5"));
    }
}
