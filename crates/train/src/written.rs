//! Text that the pretrained model writes itself, for its heads to learn from (self-distillation).

use std::path::{Path, PathBuf};

use foretoken_decode::write_rows;
use foretoken_heads::MultiTokenModel;
use foretoken_trunk::io::{read_safetensors, write_safetensors};
use tch::Tensor;

use crate::Error;
use crate::config::DataSection;

const TOKENS: &str = "tokens";

/// Rows that are written at once: a pass costs little more for so many than for one.
const ROWS: usize = 32;

/// The batches of the rounds of a training, some of them in the model's own words, kept in files.
#[derive(Debug)]
pub(crate) struct WrittenText {
    folder: PathBuf,
    share: f64,
    prompt: usize,
    batches: u64,
    /// Batches that are written at once.
    group: u64,
}

impl WrittenText {
    /// None where all text is the corpus's.
    pub(crate) fn new(data: &DataSection, batch: usize, folder: &Path) -> Option<Self> {
        (data.generated > 0.0).then(|| Self {
            folder: folder.to_owned(),
            share: data.generated,
            prompt: data.prompt_tokens,
            batches: data.batches,
            group: (ROWS / batch.max(1)).max(1) as u64,
        })
    }

    /// The tokens of batch `index`; `corpus` reads those of the corpus.
    pub(crate) fn tokens(
        &self,
        model: &MultiTokenModel,
        index: u64,
        corpus: &impl Fn(u64) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        if !self.is_written(index) {
            return corpus(index);
        }
        if let Some(tokens) = read(&self.path(index)) {
            return Ok(tokens);
        }
        let first = index - index % self.group;
        let group = first..(first + self.group).min(self.batches);
        let group: Vec<u64> = group.filter(|&index| self.is_written(index)).collect();
        let rows = group.iter().map(|&index| corpus(index)).collect::<Result<Vec<_>, _>>()?;
        let written = write_rows(model, &Tensor::f_cat(&rows, 0)?, self.prompt)?;
        let (mut start, mut wanted) = (0, None);
        for (&batch, rows) in group.iter().zip(&rows) {
            let count = rows.size2()?.0;
            let tokens = written.f_narrow(0, start, count)?.f_to_device(rows.device())?;
            start += count;
            write_safetensors(&self.path(batch), &[(TOKENS.to_owned(), tokens.shallow_clone())])?;
            if batch == index {
                wanted = Some(tokens);
            }
        }
        // Its own group has the batch.
        wanted.map_or_else(|| corpus(index), Ok)
    }

    /// Whether a batch is one of those in the model's own words: they are spread evenly.
    fn is_written(&self, index: u64) -> bool {
        let before = |index: u64| (index as f64 * self.share).floor();
        before(index + 1) > before(index)
    }

    fn path(&self, index: u64) -> PathBuf {
        self.folder.join(format!("text-{index}.safetensors"))
    }
}

/// A file that is there and whole; one that is not is made again.
fn read(path: &Path) -> Option<Tensor> {
    if !path.exists() {
        return None;
    }
    let tensors = read_safetensors(path).ok()?;
    tensors.into_iter().find(|(name, _)| name == TOKENS).map(|(_, tokens)| tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_written_batches_is_that_of_the_recipe() {
        for share in [0.25, 0.5, 0.7, 1.0] {
            let data = DataSection { generated: share, batches: 100, ..DataSection::default() };
            let text = WrittenText::new(&data, 8, Path::new("")).unwrap();
            let written = (0..100).filter(|&index| text.is_written(index)).count();
            assert_eq!(written, (100.0 * share).round() as usize);
        }
        assert!(WrittenText::new(&DataSection::default(), 8, Path::new("")).is_none());
    }
}
