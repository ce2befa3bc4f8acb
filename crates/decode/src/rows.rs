//! Many rows of text at once, for training on what a model writes itself.

use foretoken_heads::{HeadContext, MultiTokenModel};
use foretoken_kernels::linear;
use tch::{Kind, Tensor, no_grad};

use crate::{Error, Result};

/// What a model wrote, and what it made of it on the way.
#[derive(Debug)]
pub struct WrittenRows {
    /// `[rows, columns]`, int64.
    pub tokens: Tensor,
    /// The trunk output of all columns but the last, which nothing was read of:
    /// `[rows, columns − 1, dim]`.
    pub trunk_output: Tensor,
    /// The same after head 0 and the final norm: `[rows, columns − 1, dim]`.
    pub final_hidden: Tensor,
}

/// Lets head 0 of `model` write the rows of `text` `[rows, columns]` (int64) itself, greedily, from
/// column `prompt` on. A row in which it ends the text goes on with what stood there, so that rows
/// stay whole.
///
/// One pass serves a column of all rows: with 32 of them far more tokens a second than
/// [`Decoder`](crate::Decoder) has for one. It runs in libtorch's operators, and in a bfloat16 model
/// another token may win where two are near each other.
///
/// # Errors
/// When there is no prompt, nothing to write, a row is longer than the model's context, or a token
/// is outside the vocabulary.
///
/// ```
/// use foretoken_decode::write_rows;
/// use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
/// use foretoken_trunk::Architecture;
/// use tch::{Device, Kind, Tensor};
///
/// let architecture = Architecture { dim: 32, layers: 2, ffn: 64, context: 64, ..Default::default() };
/// let heads = HeadsConfig { kind: "block".into(), count: 1 };
/// let config = ModelConfig { architecture, heads, end_of_text: None };
/// let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
/// let text = Tensor::randint(256, [4, 20], (Kind::Int64, Device::Cpu));
/// let written = write_rows(&model, &text, 8)?;
/// assert_eq!(written.tokens.narrow(1, 0, 8), text.narrow(1, 0, 8));
/// assert_eq!(written.final_hidden.size(), [4, 19, 32]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_rows(model: &MultiTokenModel, text: &Tensor, prompt: usize) -> Result<WrittenRows> {
    let (rows, columns) = text.size2()?;
    let context = model.config().architecture.context;
    if prompt == 0 {
        return Err(Error::EmptyPrompt);
    }
    if columns as usize > context {
        return Err(Error::PromptTooLong { tokens: columns as usize, context });
    }
    if prompt as i64 >= columns {
        return Err(Error::NothingToWrite { prompt, columns: columns as usize });
    }
    let prompt = prompt as i64;
    no_grad(|| {
        let text = text.f_to_device(model.device())?;
        let head = model.head(0)?;
        let mut trunk_cache = model.trunk().cache(rows, columns)?;
        let mut head_cache = head.cache(rows, columns)?;
        let mut ended = Tensor::f_zeros([rows, 1], (Kind::Bool, model.device()))?;
        let mut input = text.f_narrow(1, 0, prompt)?.contiguous();
        let mut written = vec![input.shallow_clone()];
        let (mut trunk_outputs, mut final_hidden) = (Vec::new(), Vec::new());
        for column in prompt..columns {
            let hidden = model.trunk().forward(&input, Some(&mut trunk_cache))?;
            let context = HeadContext { rotary: &model.trunk().rotary, next: None };
            let state = head.forward(&hidden, context, head_cache.as_mut())?;
            let state = model.normed(&state)?;
            let last = state.f_narrow(1, state.size()[1] - 1, 1)?;
            let logits = linear(&last, model.unembedding())?;
            trunk_outputs.push(hidden);
            final_hidden.push(state);
            let choice = logits.f_argmax(-1, false)?;
            input = text.f_narrow(1, column, 1)?.f_where_self(&ended, &choice)?;
            if let Some(end) = model.config().end_of_text {
                ended = ended.f_logical_or(&choice.f_eq(i64::from(end))?)?;
            }
            written.push(input.shallow_clone());
        }
        Ok(WrittenRows {
            tokens: Tensor::f_cat(&written, 1)?,
            trunk_output: Tensor::f_cat(&trunk_outputs, 1)?,
            final_hidden: Tensor::f_cat(&final_hidden, 1)?,
        })
    })
}
