//! Text that the pretrained model writes itself, for its heads to learn from (self-distillation).

use std::sync::atomic::{AtomicBool, Ordering};

use foretoken_data::Tokenizer;
use foretoken_decode::{RowsOptions, write_rows_while};
use foretoken_heads::MultiTokenModel;
use foretoken_loss::FrozenStates;
use tch::{Device, Tensor};

use crate::Error;
use crate::config::DataSection;
use crate::progress::Word;

/// Rows that are written at once: a pass costs little more for so many than for one.
fn rows_at_once(device: Device) -> usize {
    if device.is_cuda() { 1024 } else { 128 }
}

/// Which batches of the rounds of a training are in the model's own words.
#[derive(Debug)]
pub(crate) struct WrittenText {
    share: f64,
    prompt: usize,
    /// Where prompts begin, if not where rows do.
    begins: Option<Begins>,
    temperature: f64,
    seed: u64,
    batches: u64,
    /// Batches that are written at once, counted in all batches.
    group: u64,
}

/// A batch's tokens and what the model makes of them.
pub(crate) type Read = (Tensor, FrozenStates);

impl WrittenText {
    /// None where all text is the corpus's.
    pub(crate) fn new(
        data: &DataSection,
        tokenizer: &Tokenizer,
        batch: usize,
        seed: u64,
        device: Device,
    ) -> Option<Self> {
        let rows = batch.max(1) as f64 * data.generated;
        (data.generated > 0.0).then(|| Self {
            share: data.generated,
            prompt: data.prompt_tokens,
            begins: (!data.prompt_at.is_empty())
                .then(|| Begins { text: data.prompt_at.clone(), tokenizer: tokenizer.clone() }),
            temperature: data.temperature,
            seed,
            batches: data.batches,
            group: (rows_at_once(device) as f64 / rows).floor().max(1.0) as u64,
        })
    }

    /// Whether a batch is one of those in the model's own words.
    pub(crate) fn is_written(&self, index: u64) -> bool {
        is_written(index, self.share)
    }

    /// Writes the batches of `index`'s group, `corpus` being what they begin with, unless it is to
    /// `stop` on the way.
    pub(crate) fn write(
        &self,
        model: &MultiTokenModel,
        index: u64,
        corpus: &impl Fn(u64) -> Result<Tensor, Error>,
        stop: &AtomicBool,
    ) -> Result<Vec<(u64, Read)>, Error> {
        let group = self.group_of(index);
        tracing::info!("the model writes {} of the batches itself", group.len());
        let rows = group.iter().map(|&index| match &self.begins {
            Some(begins) => begins.cut(&corpus(index)?, self.prompt),
            None => corpus(index),
        });
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        let options = RowsOptions {
            prompt: self.prompt,
            temperature: self.temperature,
            // Of the group: a run that goes on draws what it would have drawn.
            seed: self.seed.wrapping_add(group.first().copied().unwrap_or(0) << 32),
        };
        let text = Tensor::f_cat(&rows, 0)?;
        let columns = text.size2()?.1;
        let mut word = Word::default();
        let written = write_rows_while(model, &text, options, &mut |column| {
            if word.is_due() {
                tracing::info!("token {column} of {columns} in each of their rows");
            }
            !stop.load(Ordering::Relaxed)
        });
        let written = written.map_err(|error| match error {
            foretoken_decode::Error::Stopped => Error::Stopped,
            other => other.into(),
        })?;
        let mut start = 0;
        let mut batches = Vec::with_capacity(group.len());
        for (index, rows) in group.into_iter().zip(&rows) {
            let count = rows.size2()?.0;
            let part = |of: &Tensor| of.f_narrow(0, start, count);
            let states = FrozenStates {
                trunk_output: part(&written.trunk_output)?,
                final_hidden: part(&written.final_hidden)?,
                told: written.told.as_ref().map(part).transpose()?,
            };
            batches.push((index, (part(&written.tokens)?.f_to_device(rows.device())?, states)));
            start += count;
        }
        Ok(batches)
    }

    /// The written batches beside which a batch is written, itself among them.
    fn group_of(&self, index: u64) -> Vec<u64> {
        let first = index - index % self.group;
        let group = first..(first + self.group).min(self.batches);
        group.filter(|&index| self.is_written(index)).collect()
    }
}

/// Whether batch `index` is in the model's own words where that `share` of all is: they are spread
/// evenly.
pub(crate) fn is_written(index: u64, share: f64) -> bool {
    let before = |index: u64| (index as f64 * share).floor();
    before(index + 1) > before(index)
}

/// A text at which prompts begin.
#[derive(Debug)]
struct Begins {
    text: String,
    tokenizer: Tokenizer,
}

impl Begins {
    /// Rows `[batch, columns]` from the text on, with what stood before it behind: a row goes on with
    /// that where the model ends its text early.
    fn cut(&self, rows: &Tensor, prompt: usize) -> Result<Tensor, Error> {
        let shape = rows.size();
        let columns = rows.size2()?.1 as usize;
        let mut tokens = Vec::<i64>::try_from(rows.f_reshape([-1])?)?;
        for row in tokens.chunks_exact_mut(columns) {
            let start = self.find(row)?.filter(|start| start + prompt <= columns).unwrap_or(0);
            row.rotate_left(start);
        }
        Ok(Tensor::f_from_slice(&tokens)?.f_view(shape.as_slice())?)
    }

    /// The token in which the text begins for the first time.
    fn find(&self, row: &[i64]) -> Result<Option<usize>, Error> {
        let mut stream = self.tokenizer.stream();
        let (mut text, mut ends) = (String::new(), Vec::with_capacity(row.len()));
        for &token in row {
            // The corpus has tokens of the vocabulary alone.
            text.extend(stream.push(u32::try_from(token).unwrap_or_default())?);
            ends.push(text.len());
        }
        let place = text.find(&self.text);
        Ok(place.map(|place| ends.partition_point(|&end| end <= place)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_begin_at_a_text_that_leaves_room_for_them() {
        let begins = Begins { text: "def ".to_owned(), tokenizer: Tokenizer::bytes() };
        let row = |text: &str| Tensor::from_slice(text.as_bytes()).to_kind(tch::Kind::Int64);
        let rows = ["é = 1; def f(x): def g", "nothing of that kind..", "a very long row def x:"];
        let rows = Tensor::stack(&rows.map(|text| row(text).narrow(0, 0, 22)), 0);
        let cut = begins.cut(&rows, 8).unwrap();
        let text = |index: i64| -> Vec<u8> {
            Vec::<i64>::try_from(cut.get(index)).unwrap().iter().map(|&id| id as u8).collect()
        };
        assert_eq!(text(0), "def f(x): def é = 1; ".as_bytes());
        // The second has none, and the third none with room for eight tokens.
        assert_eq!(text(1), b"nothing of that kind..");
        assert_eq!(text(2), b"a very long row def x:");
    }

    #[test]
    fn the_share_of_written_batches_is_that_of_the_recipe() {
        let most = rows_at_once(Device::Cpu);
        for share in [0.25, 0.5, 0.7, 1.0] {
            let data = DataSection { generated: share, batches: 100, ..DataSection::default() };
            let text = WrittenText::new(&data, &Tokenizer::bytes(), 8, 1, Device::Cpu).unwrap();
            let written: Vec<u64> = (0..100).filter(|&index| text.is_written(index)).collect();
            assert_eq!(written.len(), (100.0 * share).round() as usize);
            for index in written {
                let group = text.group_of(index);
                assert!(group.contains(&index) && group.len() * 8 <= most + 8, "{group:?}");
            }
        }
        let nothing = DataSection::default();
        assert!(WrittenText::new(&nothing, &Tokenizer::bytes(), 8, 1, Device::Cpu).is_none());
    }
}
