//! Weights handed out by name, each exactly once.

use crate::{Architecture, Error, Parameter, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tch::Tensor;

/// Files that hold tensors, under the stock Llama names where they are a model's.
///
/// A new file format is an implementation of this.
pub trait WeightSource {
    /// The names of all tensors.
    fn names(&self) -> Vec<String>;

    /// The file that holds a tensor, or the first one; what errors name.
    fn path(&self, name: &str) -> PathBuf;

    /// Numbers of all tensors together.
    fn numbers(&self) -> usize;

    /// Refuses files that together hold less than half of the numbers that the model needs, or of
    /// the tensors that they are in, before memory is taken for it. Where a tensor or two are missing,
    /// the one who looks for them names them.
    ///
    /// # Errors
    /// When the files are too small.
    fn check_size(&self, numbers: usize, tensors: usize) -> Result<()> {
        for (held, needed, what) in
            [(self.numbers(), numbers, "numbers"), (self.names().len(), tensors, "tensors")]
        {
            if held < needed / 2 {
                let problem = format!(
                    "holds {held} {what}, but the model that its config describes has {needed}"
                );
                return Err(Error::format(&self.path(""), problem));
            }
        }
        Ok(())
    }

    /// Refuses a context that is out of all proportion to the weights: caches and tables can become as
    /// long.
    ///
    /// # Errors
    /// When a text of the whole context had more than 2²⁸ numbers and more than 64 times as many as
    /// the files hold: four times what the longest published contexts come to.
    fn check_context(&self, sizes: &Architecture) -> Result<()> {
        let (needed, numbers) = (sizes.context_numbers(), self.numbers());
        if needed > (numbers.saturating_mul(64)).max(1 << 28) {
            let problem = format!(
                "holds {numbers} numbers, but a text of {} positions, the context that its config \
                 describes, would have {needed}",
                sizes.context
            );
            return Err(Error::format(&self.path(""), problem));
        }
        Ok(())
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// When there is no such tensor.
    fn shape(&self, name: &str) -> Result<Vec<i64>>;

    /// What the file itself calls a tensor; what errors say.
    fn own_name(&self, name: &str) -> String {
        name.to_owned()
    }

    /// Looks whether all tensors of `parameters` are there and in their shapes, and no others but those
    /// that `besides` says, before any is read.
    ///
    /// # Errors
    /// Names the first that is missing, has another shape or no place in the model.
    fn check(&self, parameters: &[Parameter], besides: &dyn Fn(&str) -> bool) -> Result<()> {
        let names: BTreeSet<String> = self.names().into_iter().collect();
        let mut known = BTreeSet::new();
        for parameter in parameters {
            for (name, view) in parameter.named()? {
                if !names.contains(&name) {
                    return Err(error(self, &name, MISSING));
                }
                check_shape(self, &name, &view)?;
                known.insert(name);
            }
        }
        refuse(self, names.difference(&known).filter(|name| !besides(name)))
    }

    /// Fills `view`, which has the tensor's shape, converting the number format.
    ///
    /// # Errors
    /// When there is no such tensor or its number format is not supported.
    fn copy_to(&self, name: &str, view: &mut Tensor) -> Result<()>;
}

const MISSING: &str = "is missing";

fn error<S: WeightSource + ?Sized>(source: &S, name: &str, problem: &str) -> Error {
    Error::tensor(&source.path(name), &source.own_name(name), problem)
}

fn check_shape<S: WeightSource + ?Sized>(source: &S, name: &str, view: &Tensor) -> Result<()> {
    let shape = source.shape(name)?;
    if shape == view.size() {
        return Ok(());
    }
    let problem = format!("expected the shape {:?}, found {shape:?}", view.size());
    Err(error(source, name, &problem))
}

fn refuse<'n, S: WeightSource + ?Sized>(
    source: &S,
    mut superfluous: impl Iterator<Item = &'n String>,
) -> Result<()> {
    let Some(name) = superfluous.next() else { return Ok(()) };
    let problem = format!(
        "the model that its config describes has no place for it ({} such in all)",
        1 + superfluous.count()
    );
    Err(error(source, name, &problem))
}

/// A source of which every tensor has to be used, and used once.
pub struct WeightReader {
    source: Box<dyn WeightSource>,
    /// What has not been taken yet.
    left: BTreeSet<String>,
}

impl WeightReader {
    /// Reads from `source`.
    pub fn new(source: Box<dyn WeightSource>) -> Self {
        let left = source.names().into_iter().collect();
        Self { source, left }
    }

    /// As [`WeightSource::check_size`].
    ///
    /// # Errors
    /// When the files are too small.
    pub fn check_size(&self, numbers: usize, tensors: usize) -> Result<()> {
        self.source.check_size(numbers, tensors)
    }

    /// As [`WeightSource::check_context`].
    ///
    /// # Errors
    /// When the context is out of all proportion to the files.
    pub fn check_context(&self, sizes: &Architecture) -> Result<()> {
        self.source.check_context(sizes)
    }

    /// As [`WeightSource::check`], of what has not been taken or passed over.
    ///
    /// # Errors
    /// Names the first that is missing, has another shape or no place in the model.
    pub fn check(&self, parameters: &[Parameter], besides: impl Fn(&str) -> bool) -> Result<()> {
        self.source.check(parameters, &|name| besides(name) || !self.has(name))
    }

    /// Whether a tensor is there and was not taken.
    pub fn has(&self, name: &str) -> bool {
        self.left.contains(name)
    }

    /// Passes over tensors that are no weights, such as stored rotary frequencies.
    pub fn pass_over(&mut self, what: impl Fn(&str) -> bool) {
        self.left.retain(|name| !what(name));
    }

    /// Fills a parameter's parts from the tensors of their names, converting the number format.
    ///
    /// # Errors
    /// When a tensor is missing or its shape differs.
    pub fn fill(&mut self, parameter: &Parameter) -> Result<()> {
        for (name, mut view) in parameter.named()? {
            self.fill_view(&name, &mut view)?;
        }
        Ok(())
    }

    /// Fills several parameters.
    ///
    /// # Errors
    /// As [`WeightReader::fill`].
    pub fn fill_all(&mut self, parameters: &[Parameter]) -> Result<()> {
        parameters.iter().try_for_each(|parameter| self.fill(parameter))
    }

    /// Fills `view` from the tensor `name`.
    ///
    /// # Errors
    /// When the tensor is missing, was taken before, or its shape differs.
    pub fn fill_view(&mut self, name: &str, view: &mut Tensor) -> Result<()> {
        if !self.left.remove(name) {
            return Err(error(self.source.as_ref(), name, MISSING));
        }
        self.copy_to(name, view)
    }

    /// Fills `view` from the tensor `name`, whether it was taken or not, and leaves it so.
    ///
    /// # Errors
    /// When there is no such tensor, or its shape differs.
    pub fn copy_to(&self, name: &str, view: &mut Tensor) -> Result<()> {
        check_shape(self.source.as_ref(), name, view)?;
        self.source.copy_to(name, view)
    }

    /// As [`WeightSource::path`].
    pub fn path(&self, name: &str) -> PathBuf {
        self.source.path(name)
    }

    /// At the end of a reading: every tensor must have been taken.
    ///
    /// # Errors
    /// Names a tensor that the model has no place for.
    pub fn check_all_taken(&self) -> Result<()> {
        refuse(self.source.as_ref(), self.left.iter())
    }
}
