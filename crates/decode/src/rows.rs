//! Many rows of text at once, for training on what a model writes itself.

use foretoken_heads::{HeadContext, MultiTokenModel};
use foretoken_kernels::linear;
use tch::{Kind, Tensor, no_grad};

use crate::sampler::uniform;
use crate::{Error, Result};

/// How [`write_rows`] chooses tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowsOptions {
    /// Columns that are there already.
    pub prompt: usize,
    /// 0 for the most likely token; else tokens are drawn, with logits divided by this.
    pub temperature: f64,
    /// The same seed draws the same tokens.
    pub seed: u64,
}

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
    /// What heads are told of these columns ([`MultiTokenModel::told`]), where they are told any:
    /// `[rows, columns − 1, dim]`.
    pub told: Option<Tensor>,
}

/// Lets head 0 of `model` write the rows of `text` `[rows, columns]` (int64) itself, from column
/// `prompt` on. A row in which it ends the text goes on with what stood there, so that rows stay
/// whole.
///
/// One pass serves a column of all rows: with 32 of them far more tokens a second than
/// [`Decoder`](crate::Decoder) has for one. It runs in libtorch's operators, and in a bfloat16 model
/// another token may win where two are near each other.
///
/// # Errors
/// When there is no prompt, nothing to write, the temperature is negative or not finite, a row is
/// longer than the model's context, or a token is outside the vocabulary.
///
/// ```
/// use foretoken_decode::{RowsOptions, write_rows};
/// use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
/// use foretoken_trunk::Architecture;
/// use tch::{Device, Kind, Tensor};
///
/// let architecture = Architecture { dim: 32, layers: 2, ffn: 64, context: 64, ..Default::default() };
/// let heads = HeadsConfig::new("block", 1);
/// let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
/// let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
/// let text = Tensor::randint(256, [4, 20], (Kind::Int64, Device::Cpu));
/// let options = RowsOptions { prompt: 8, temperature: 0.8, seed: 1 };
/// let written = write_rows(&model, &text, options)?;
/// assert_eq!(written.tokens.narrow(1, 0, 8), text.narrow(1, 0, 8));
/// assert_eq!(written.final_hidden.size(), [4, 19, 32]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_rows(
    model: &MultiTokenModel,
    text: &Tensor,
    options: RowsOptions,
) -> Result<WrittenRows> {
    write_rows_while(model, text, options, &mut |_| true)
}

/// As [`write_rows`], asking before each column whether to go on: many rows take minutes.
///
/// # Errors
/// As [`write_rows`], and [`Error::Stopped`] as soon as `go_on` says no.
pub fn write_rows_while(
    model: &MultiTokenModel,
    text: &Tensor,
    options: RowsOptions,
    go_on: &mut dyn FnMut(usize) -> bool,
) -> Result<WrittenRows> {
    let RowsOptions { prompt, temperature, mut seed } = options;
    let (rows, columns) = text.size2()?;
    if !temperature.is_finite() || temperature < 0.0 {
        let expected = "0 (for the likeliest tokens) or above";
        return Err(Error::Sampling { option: "temperature", value: temperature, expected });
    }
    let context = model.config().architecture.context;
    if prompt == 0 {
        return Err(Error::EmptyPrompt);
    }
    // What is written last goes through no pass.
    if columns as usize > context + 1 {
        return Err(Error::PromptTooLong { tokens: columns as usize - 1, context });
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
        let told_blocks = model.told_blocks();
        let (mut trunk_outputs, mut final_hidden, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for column in prompt..columns {
            if !go_on(column as usize) {
                return Err(Error::Stopped);
            }
            let (early, hidden) = model.trunk().forward_noting(
                &input,
                Some(&mut trunk_cache),
                told_blocks.unwrap_or(0),
            )?;
            let context = HeadContext { rotary: &model.trunk().rotary, told: None };
            let state = head.forward(&hidden, context, head_cache.as_mut())?;
            let state = model.normed(&state)?;
            let last = state.f_narrow(1, state.size()[1] - 1, 1)?;
            let logits = linear(&last, model.unembedding())?;
            trunk_outputs.push(hidden);
            told.push(early);
            final_hidden.push(state);
            let choice = match temperature > 0.0 {
                true => draw(&logits, temperature, &mut seed)?,
                false => logits.f_argmax(-1, false)?,
            };
            input = text.f_narrow(1, column, 1)?.f_where_self(&ended, &choice)?;
            for &end in &model.config().end_of_text {
                ended = ended.f_logical_or(&choice.f_eq(i64::from(end))?)?;
            }
            written.push(input.shallow_clone());
        }
        Ok(WrittenRows {
            tokens: Tensor::f_cat(&written, 1)?,
            trunk_output: Tensor::f_cat(&trunk_outputs, 1)?,
            final_hidden: Tensor::f_cat(&final_hidden, 1)?,
            told: told_blocks.map(|_| Tensor::f_cat(&told, 1)).transpose()?,
        })
    })
}

/// A token for each row of `logits` `[rows, 1, vocab]`, with probability softmax(logits /
/// temperature): `[rows, 1]`.
fn draw(logits: &Tensor, temperature: f64, seed: &mut u64) -> Result<Tensor> {
    let (rows, _, vocab) = logits.size3()?;
    let scaled = logits.f_to_kind(Kind::Float)?.f_div_scalar(temperature)?;
    let sums = scaled.f_softmax(-1, Kind::Float)?.f_cumsum(-1, Kind::Double)?;
    let places: Vec<f64> = (0..rows).map(|_| uniform(seed)).collect();
    let places = Tensor::f_from_slice(&places)?.f_view([rows, 1, 1])?;
    // The sums end beside 1 rather than at it.
    let places = places.f_to_device(logits.device())?.f_mul(&sums.f_narrow(-1, vocab - 1, 1)?)?;
    let places = places.contiguous();
    let drawn = places.f_searchsorted(&sums, false, true, "right", None::<&Tensor>)?;
    Ok(drawn.f_clamp_max(vocab - 1)?.f_squeeze_dim(-1)?)
}
