//! The moments of an optimiser as named tensors, whoever holds them.

use std::collections::BTreeSet;
use std::ops::Range;

use foretoken_trunk::io::{SafetensorsFiles, TensorEntry, WeightSource};
use tch::Tensor;

use super::flat::Place;
use super::shared::part;
use super::{Optimizer, Shared};
use crate::Error;

/// Moments of one kind.
struct Moments<'o> {
    prefix: &'static str,
    /// The elements of the flat buffers that it is about.
    region: Range<i64>,
    /// Those of them that `tensor` is about: all, or this process's slice.
    held: Range<i64>,
    tensor: &'o Tensor,
}

impl Moments<'_> {
    fn name(&self, place: &Place) -> String {
        format!("{}.{}", self.prefix, place.name)
    }

    /// This process's elements of a place, and where they are in it.
    fn held_of(&self, place: &Place) -> Result<Option<(Tensor, Range<i64>)>, Error> {
        let start = place.elements.start.max(self.held.start);
        let end = place.elements.end.min(self.held.end);
        if start >= end {
            return Ok(None);
        }
        let own = part(self.tensor, &(start - self.held.start..end - self.held.start))?;
        Ok(Some((own, start - place.elements.start..end - place.elements.start)))
    }

    /// The moments of a whole place: a view, or put together from all processes.
    fn whole(&self, place: &Place, shared: Option<&Shared>) -> Result<Tensor, Error> {
        let shape = place.shape.as_slice();
        let (Some(shared), false) = (shared, self.held == self.region) else {
            let start = place.elements.start - self.held.start;
            let end = place.elements.end - self.held.start;
            return Ok(part(self.tensor, &(start..end))?.f_view(shape)?);
        };
        let length = place.elements.end - place.elements.start;
        let whole = Tensor::f_zeros([length], (self.tensor.kind(), self.tensor.device()))?;
        if let Some((own, at)) = self.held_of(place)? {
            part(&whole, &at)?.f_copy_(&own)?;
        }
        for rank in 0..shared.group.size() {
            let slice = shared.slice(&self.region, rank)?;
            let start = slice.start.max(place.elements.start) - place.elements.start;
            let end = slice.end.min(place.elements.end) - place.elements.start;
            if start < end {
                shared.group.broadcast(&part(&whole, &(start..end))?, rank)?;
            }
        }
        Ok(whole.f_view(shape)?)
    }
}

impl Optimizer {
    fn moments(&self) -> Vec<Moments<'_>> {
        let (matrices_end, len) = (self.flat.layout.matrices_end, self.flat.layout.len);
        let muon = self.muon.as_ref().map(|muon| Moments {
            prefix: "momentum",
            region: 0..matrices_end,
            held: muon.range.clone(),
            tensor: &muon.momentum,
        });
        let adamw = [("mean", &self.adamw.mean), ("square", &self.adamw.square)];
        let adamw = adamw.map(|(prefix, tensor)| Moments {
            prefix,
            region: matrices_end..len,
            held: self.adamw.range.clone(),
            tensor,
        });
        muon.into_iter().chain(adamw).collect()
    }

    /// The moments, named `STATE.PART` after the stock names of the parameters' parts: views, or
    /// copies where each process has only a slice. Then all have to call it, and each gets all.
    ///
    /// # Errors
    /// When libtorch refuses, or another process fails.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, Error> {
        let mut state = Vec::new();
        self.each_moment(&mut |name, tensor| {
            state.push((name, tensor));
            Ok(())
        })?;
        Ok(state)
    }

    /// Hands the tensors of [`state`](Self::state) to `each`, in an order that is the same in all
    /// processes, with memory for one at a time where they have to be put together.
    pub(crate) fn each_moment(
        &self,
        each: &mut dyn FnMut(String, Tensor) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        for moments in self.moments() {
            for place in self.flat.places(&moments.region) {
                each(moments.name(&place), moments.whole(&place, self.shared.as_ref())?)?;
            }
        }
        Ok(())
    }

    /// What [`each_moment`](Self::each_moment) will hand over, in its order.
    pub(crate) fn state_entries(&self) -> Vec<TensorEntry> {
        let mut entries = Vec::new();
        for moments in self.moments() {
            let kind = moments.tensor.kind();
            for place in self.flat.places(&moments.region) {
                entries.push((moments.name(&place), kind, place.shape));
            }
        }
        entries
    }

    /// Takes back what [`state`](Self::state) gave, after `updates` updates, however many processes
    /// there were and are.
    ///
    /// # Errors
    /// When a tensor is missing, superfluous or of another shape or type; nothing has moved then.
    pub fn restore(&mut self, saved: &[(String, Tensor)], updates: u64) -> Result<(), Error> {
        let find = |name: &str| saved.iter().find(|(known, _)| known == name);
        let names = saved.iter().map(|(name, _)| name.clone()).collect();
        self.take_back(names, updates, &|name, read| {
            find(name).map_or(Ok(()), |(_, tensor)| read(tensor))
        })
    }

    /// As [`restore`](Self::restore), from a file that stays on the disk but for what this process
    /// needs.
    pub(crate) fn restore_from(
        &mut self,
        saved: &SafetensorsFiles,
        updates: u64,
    ) -> Result<(), Error> {
        let names = saved.names().into_iter().collect();
        self.take_back(names, updates, &|name, read| saved.with(name, |tensor| Ok(read(tensor)))?)
    }

    fn take_back(
        &mut self,
        mut names: BTreeSet<String>,
        updates: u64,
        with: &Lender<'_>,
    ) -> Result<(), Error> {
        let _guard = tch::no_grad_guard();
        for (name, kind, shape) in self.state_entries() {
            if !names.remove(&name) {
                return Err(unfit(&name, "is missing".to_owned()));
            }
            with(&name, &mut |theirs| {
                let (found, found_kind) = (theirs.size(), theirs.kind());
                if found == shape && found_kind == kind {
                    return Ok(());
                }
                let message = format!(
                    "has shape {found:?} and type {found_kind:?} where the model needs {shape:?} \
                     and {kind:?}"
                );
                Err(unfit(&name, message))
            })?;
        }
        if let Some(name) = names.first() {
            return Err(unfit(name, "belongs to no parameter of the model".to_owned()));
        }
        for moments in self.moments() {
            for place in self.flat.places(&moments.region) {
                let Some((mut own, at)) = moments.held_of(&place)? else { continue };
                with(&moments.name(&place), &mut |theirs| {
                    own.f_copy_(&part(&theirs.f_reshape([-1])?, &at)?)?;
                    Ok(())
                })?;
            }
        }
        self.updates = updates;
        Ok(())
    }
}

/// Hands the saved tensor of a name to a function.
type Lender<'l> =
    dyn Fn(&str, &mut dyn FnMut(&Tensor) -> Result<(), Error>) -> Result<(), Error> + 'l;

fn unfit(name: &str, message: String) -> Error {
    Error::State { name: name.to_owned(), message }
}
