//! One buffer for all parameters and one for all gradients.

use std::collections::HashMap;
use std::ops::Range;

use foretoken_trunk::Parameter;
use tch::Tensor;

use super::layout::{Layout, Plan};
use crate::Error;

/// A parameter and where it lies.
#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    /// What gradients come to: the parameter itself, or its copy in fewer bits.
    leaf: Tensor,
    start: i64,
    /// From there to where the next one begins, or its region ends.
    room: Range<i64>,
    /// Whether this step's gradient is in the buffer already.
    collected: bool,
    /// Whether this step passes it over.
    rests: bool,
}

/// Copies of all parameters in fewer bits, which the model computes with.
#[derive(Debug)]
struct Copies {
    values: Tensor,
    gradients: Tensor,
}

/// A stock tensor and the elements that are its own.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) elements: Range<i64>,
}

/// The two flat buffers, in the order matrices, embeddings, vectors.
#[derive(Debug)]
pub(super) struct FlatParameters {
    pub(super) values: Tensor,
    pub(super) gradients: Tensor,
    pub(super) layout: Layout,
    copies: Option<Copies>,
    slots: Vec<Slot>,
    /// The slot whose leaf has this address.
    known: HashMap<usize, usize>,
}

impl FlatParameters {
    /// Moves the parameters' storage here. Every clone of a parameter's tensor shares its
    /// implementation object, so all of them follow.
    ///
    /// With `leaves`, gradients come to these, the same parameters in another kind, which follow
    /// the values at [`publish`](Self::publish).
    pub(super) fn new(
        parameters: Vec<Parameter>,
        leaves: Option<Vec<Parameter>>,
        plan: Plan,
    ) -> Result<Self, Error> {
        let copied = leaves.as_ref().and_then(|leaves| leaves.first()).map(|p| p.tensor.kind());
        let like = parameters
            .first()
            .map(|parameter| (parameter.tensor.kind(), parameter.tensor.device()))
            .ok_or_else(|| Error::State {
                name: "parameters".to_owned(),
                message: "the model has none".to_owned(),
            })?;
        let (layout, places) = Layout::new(parameters, plan);
        let buffer = |kind| Tensor::f_zeros([layout.len], (kind, like.1));
        let values = buffer(like.0)?;
        let copies = match copied {
            Some(kind) => Some(Copies { values: buffer(kind)?, gradients: buffer(kind)? }),
            None => None,
        };
        // Copies have the places of what they are copies of.
        let mut leaves = leaves.map(|leaves| Layout::new(leaves, plan).1.into_iter());
        let mut slots = Vec::with_capacity(places.len());
        for (parameter, start) in places {
            adopt(&parameter.tensor, &values, start)?;
            let leaf = match leaves.as_mut().and_then(Iterator::next) {
                Some((copy, _)) => copy.tensor,
                None => parameter.tensor.shallow_clone(),
            };
            if let Some(copies) = &copies {
                adopt(&leaf, &copies.values, start)?;
            }
            let (room, collected, rests) = (start..start, false, false);
            slots.push(Slot { parameter, leaf, start, room, collected, rests });
        }
        let mut end = layout.len;
        for slot in slots.iter_mut().rev() {
            if slot.start < layout.matrices_end {
                end = end.min(layout.matrices_end);
            }
            slot.room = slot.start..end;
            end = slot.start;
        }
        let known = slots.iter().enumerate().map(|(index, slot)| (address(&slot.leaf), index));
        let known = known.collect();
        let gradients = buffer(like.0)?;
        Ok(Self { values, gradients, layout, copies, slots, known })
    }

    /// Lets the copies follow the values.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        if let Some(copies) = &mut self.copies {
            copies.values.f_copy_(&self.values)?;
        }
        Ok(())
    }

    /// Brings the complete gradient of `leaf` into the buffer before the others', and returns the
    /// elements that nothing else will be added to in this step; `None` for what has no gradient
    /// or was brought before, or is no parameter of these.
    pub(super) fn collect(&mut self, leaf: &Tensor) -> Result<Option<Range<i64>>, Error> {
        let Some(&index) = self.known.get(&address(leaf)) else { return Ok(None) };
        let slot = &mut self.slots[index];
        let home = self.copies.as_ref().map_or(&self.gradients, |copies| &copies.gradients);
        if slot.collected || !move_in(slot, home)? {
            return Ok(None);
        }
        slot.collected = true;
        if let Some(copies) = &self.copies {
            let part = |buffer: &Tensor| buffer.f_narrow(0, slot.start, slot.leaf.numel() as i64);
            let mut rounded = part(&copies.gradients)?;
            let _ = part(&self.gradients)?.f_add_(&rounded)?;
            let _ = rounded.f_zero_()?;
        }
        Ok(Some(slot.room.clone()))
    }

    /// Makes every parameter's gradient a view of the flat buffer. It is one already unless the
    /// gradient is new (the first step) or was replaced from outside; then it moves in. Gradients
    /// of copies are added to the buffer and set to zero.
    pub(super) fn collect_gradients(&mut self) -> Result<(), Error> {
        if self.slots.iter().any(|slot| slot.collected) {
            for index in 0..self.slots.len() {
                let leaf = self.slots[index].leaf.shallow_clone();
                self.collect(&leaf)?;
            }
            self.slots.iter_mut().for_each(|slot| slot.collected = false);
            return Ok(());
        }
        if self.copies.is_some() {
            return self.collect_from_copies();
        }
        for slot in &self.slots {
            move_in(slot, &self.gradients)?;
        }
        Ok(())
    }

    /// Adds the copies' gradients, if there are copies, to the buffer and sets them to zero.
    pub(super) fn collect_from_copies(&mut self) -> Result<(), Error> {
        let Some(copies) = &mut self.copies else { return Ok(()) };
        for slot in &self.slots {
            move_in(slot, &copies.gradients)?;
        }
        let _ = self.gradients.f_add_(&copies.gradients)?;
        let _ = copies.gradients.f_zero_()?;
        Ok(())
    }

    /// Lets the parameter of `leaf` rest in this step.
    pub(super) fn rest(&mut self, leaf: &Tensor) {
        if let Some(&index) = self.known.get(&address(leaf)) {
            self.slots[index].rests = true;
        }
    }

    /// The elements of what rests in this step; nothing rests in the next.
    pub(super) fn take_resting(&mut self) -> Vec<Range<i64>> {
        let resting = self.slots.iter_mut().filter_map(|slot| {
            let elements = slot.start..slot.start + slot.leaf.numel() as i64;
            std::mem::take(&mut slot.rests).then_some(elements)
        });
        resting.collect()
    }

    /// The stock tensors that lie in `region`, in the order of their elements.
    pub(super) fn places(&self, region: &Range<i64>) -> Vec<Place> {
        let mut places = Vec::new();
        for slot in self.slots.iter().filter(|slot| region.contains(&slot.start)) {
            let shape = slot.parameter.tensor.size();
            let row: i64 = shape.iter().skip(1).product();
            let mut start = slot.start;
            for part in &slot.parameter.parts {
                let elements = start..start + part.rows * row;
                start = elements.end;
                let mut shape = shape.clone();
                if let Some(rows) = shape.first_mut() {
                    *rows = part.rows;
                }
                places.push(Place { name: part.name.clone(), shape, elements });
            }
        }
        places
    }
}

/// What tells a leaf from others: its data never moves once it is in the flat buffer.
fn address(leaf: &Tensor) -> usize {
    leaf.data_ptr().addr()
}

/// Makes a leaf's gradient a view of `home`, if it has one.
fn move_in(slot: &Slot, home: &Tensor) -> Result<bool, Error> {
    let mut gradient = slot.leaf.f_grad()?;
    if !gradient.defined() {
        return Ok(false);
    }
    let mut view = view(home, slot.start, &slot.leaf.size())?;
    if gradient.data_ptr() != view.data_ptr() {
        view.f_copy_(&gradient)?;
        gradient.f_set_data(&view)?;
    }
    Ok(true)
}

/// Copies a parameter's value into the flat buffer and makes it a view of that place.
fn adopt(parameter: &Tensor, values: &Tensor, start: i64) -> Result<(), Error> {
    let mut tensor = parameter.shallow_clone();
    let mut view = view(values, start, &tensor.size())?;
    view.f_copy_(&tensor)?;
    tensor.f_set_data(&view)?;
    Ok(())
}

/// A view of `buffer` from `start` on.
fn view(buffer: &Tensor, start: i64, shape: &[i64]) -> Result<Tensor, Error> {
    let size = shape.iter().product();
    Ok(buffer.f_narrow(0, start, size)?.f_view(shape)?)
}
