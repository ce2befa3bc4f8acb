//! Tokens per forward on held-out text, for every number of heads from one forward pass.

use foretoken_heads::MultiTokenModel;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::{Error, Result, Walk, walk};

/// How [`held_out`] reads the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldOutOptions {
    /// Positions in a window; each window starts with an empty context. At most the model's own.
    pub window: usize,
    /// Positions at a window's start that are read but not walked, as the prompt of a generation
    /// is.
    pub prompt: usize,
    /// Windows in one forward pass; changes the memory needed, not the result.
    pub batch: usize,
}

impl HeldOutOptions {
    /// Windows as long as the model's context, a batch of about two thousand positions.
    pub fn for_model(model: &MultiTokenModel) -> Self {
        let window = model.config().architecture.context.max(1);
        Self { window, prompt: 0, batch: (2048 / window).max(1) }
    }
}

/// What decoding would be worth on a held-out text, for each number of heads used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldOut {
    /// The walks with k = 1, 2, … heads, in this order.
    walks: Vec<Walk>,
}

impl HeldOut {
    /// The walk with `heads_used` heads, if the model has as many.
    pub fn walk(&self, heads_used: usize) -> Option<&Walk> {
        self.walks.get(heads_used.checked_sub(1)?)
    }

    /// The walks with k = 1, 2, … heads, in this order.
    pub fn walks(&self) -> &[Walk] {
        &self.walks
    }
}

/// Walks `tokens` as if they were the model's output, with every number of its heads.
///
/// The text is cut into windows whose walked parts lie side by side. One teacher-forced pass over
/// each gives every head's best token at every position; those are the drafts that [`walk`] checks
/// against the text.
///
/// # Errors
///
/// When an option is 0, when the text is too short to check one draft of the farthest head, when
/// a token is outside of the vocabulary, or when the model fails.
pub fn held_out(
    model: &MultiTokenModel,
    tokens: &[u32],
    options: &HeldOutOptions,
) -> Result<HeldOut> {
    held_out_texts(model, &[tokens], options)
}

/// As [`held_out`], over several texts, each of which starts with an empty context.
///
/// # Errors
///
/// As [`held_out`].
pub fn held_out_texts<T: AsRef<[u32]>>(
    model: &MultiTokenModel,
    texts: &[T],
    options: &HeldOutOptions,
) -> Result<HeldOut> {
    let heads = model.config().heads.drafting();
    let mut all = Vec::new();
    for text in texts {
        check_vocabulary(text.as_ref(), model.config().architecture.vocab)?;
        all.extend(windows(text.as_ref(), heads, options)?);
    }
    let mut walks: Vec<Walk> = (1..=heads).map(Walk::new).collect();
    for equal in all.chunk_by(|a, b| a.len() == b.len()) {
        for batch in equal.chunks(options.batch) {
            for (text, mut drafts) in batch.iter().zip(drafts(model, batch)?) {
                for drafts in &mut drafts {
                    drafts.drain(..options.prompt);
                }
                for (sum, heads_used) in walks.iter_mut().zip(1..) {
                    sum.merge(&walk(&text[options.prompt..], &drafts, heads_used)?);
                }
            }
        }
    }
    Ok(HeldOut { walks })
}

/// Windows over a text, each starting with the prompt's length of the one before, the last one
/// shorter. Each is followed by the `heads` tokens that its last drafts are checked against.
fn windows<'t>(
    text: &'t [u32],
    heads: usize,
    options: &HeldOutOptions,
) -> Result<impl Iterator<Item = &'t [u32]> + use<'t>> {
    for (option, value) in [("window", options.window), ("batch", options.batch)] {
        if value == 0 {
            return Err(Error::Zero { option });
        }
    }
    let HeldOutOptions { window, prompt, .. } = *options;
    if prompt >= window {
        return Err(Error::PromptFillsWindow { prompt, window });
    }
    if text.len() <= prompt + heads {
        return Err(Error::TextTooShort { needed: prompt + heads + 1, found: text.len() });
    }
    let end = text.len() - heads;
    let starts = (0..end - prompt).step_by(window - prompt);
    Ok(starts.map(move |start| &text[start..end.min(start + window) + heads]))
}

/// Every head's best token at every position of windows of one length: `[row][head][position]`.
fn drafts(model: &MultiTokenModel, windows: &[&[u32]]) -> Result<Vec<Vec<Vec<u32>>>> {
    let heads = model.config().heads.drafting();
    let positions = windows[0].len() - heads;
    let tokens = windows.iter().flat_map(|window| &window[..positions + heads - 1]);
    let tokens: Vec<i64> = tokens.map(|&token| i64::from(token)).collect();
    let tokens = Tensor::f_from_slice(&tokens)?.f_view([windows.len() as i64, -1])?;
    let tokens = tokens.f_to_device(model.device())?;
    let seq = positions as i64;
    let mut drafts = vec![Vec::new(); windows.len()];
    tch::no_grad(|| {
        let hidden = model.hidden(&tokens.f_narrow(1, 0, seq)?.f_contiguous()?)?;
        // A head's draft counts where all before it are the text's own tokens: it is told those.
        let told = model.told(&tokens)?;
        for (head, ahead) in (0..heads).zip(0..) {
            let told = told.as_ref().map(|told| told.f_narrow(1, ahead, seq)).transpose()?;
            let best = model.best_tokens_told(head, &hidden, told.as_ref())?;
            let best = best.f_to_device(Device::Cpu)?.f_view([-1])?;
            let best = Vec::<i64>::try_from(best)?;
            for (row, best) in drafts.iter_mut().zip(best.chunks(positions)) {
                row.push(best.iter().map(|&token| token as u32).collect());
            }
        }
        Ok(drafts)
    })
}

fn check_vocabulary(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(&token) => Err(Error::OutsideVocabulary { token, vocab }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: HeldOutOptions = HeldOutOptions { window: 4, prompt: 0, batch: 2 };

    #[test]
    fn windows_cover_the_text_side_by_side_with_room_for_the_drafts() {
        let text: Vec<u32> = (0..12).collect();
        let windows: Vec<&[u32]> = windows(&text, 2, &OPTIONS).unwrap().collect();
        assert_eq!(windows, [&text[0..6], &text[4..10], &text[8..12]]);
    }

    #[test]
    fn what_a_prompt_leaves_of_the_windows_lies_side_by_side() {
        let text: Vec<u32> = (0..12).collect();
        let options = HeldOutOptions { prompt: 1, ..OPTIONS };
        let windows: Vec<&[u32]> = windows(&text, 2, &options).unwrap().collect();
        assert_eq!(windows, [&text[0..6], &text[3..9], &text[6..12]]);
        let full = HeldOutOptions { prompt: 4, ..OPTIONS };
        assert!(super::windows(&text, 2, &full).is_err());
    }

    #[test]
    fn a_text_without_room_for_a_draft_is_refused() {
        assert!(windows(&[1, 2], 2, &OPTIONS).is_err());
        assert_eq!(windows(&[1, 2, 3], 2, &OPTIONS).unwrap().count(), 1);
    }

    #[test]
    fn a_token_outside_of_the_vocabulary_is_named() {
        let error = check_vocabulary(&[1, 264, 2], 264).unwrap_err();
        assert!(error.to_string().contains("264"));
    }
}
