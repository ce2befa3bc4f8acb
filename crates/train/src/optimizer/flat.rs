//! One buffer for all parameters and one for all gradients.

use foretoken_trunk::{Parameter, Role};
use tch::Tensor;

use crate::Error;

/// Groups begin at multiples of as many elements: 64 bytes and more.
const ALIGNMENT: i64 = 16;

/// Parameters of one shape, cut into the same parts, that lie beside each other.
#[derive(Debug)]
pub(super) struct Group {
    /// First element of the first one.
    pub(super) start: i64,
    /// How many.
    pub(super) count: i64,
    /// Shape of each.
    pub(super) shape: Vec<i64>,
    /// Rows of each one's parts.
    pub(super) parts: Vec<i64>,
    role: Role,
}

/// A parameter and where it lies.
#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    /// What gradients come to: the parameter itself, or its copy in fewer bits.
    leaf: Tensor,
    start: i64,
}

/// Copies of all parameters in fewer bits, which the model computes with.
#[derive(Debug)]
struct Copies {
    values: Tensor,
    gradients: Tensor,
}

/// The two flat buffers, in the order matrices, embeddings, vectors.
#[derive(Debug)]
pub(super) struct FlatParameters {
    pub(super) values: Tensor,
    pub(super) gradients: Tensor,
    copies: Option<Copies>,
    pub(super) groups: Vec<Group>,
    /// End of the matrices, which come first.
    pub(super) matrices_end: i64,
    /// End of what weight decay moves: all but the vectors, which come last.
    pub(super) decayed_end: i64,
    slots: Vec<Slot>,
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
    ) -> Result<Self, Error> {
        let copied = leaves.as_ref().and_then(|leaves| leaves.first()).map(|p| p.tensor.kind());
        let like = parameters
            .first()
            .map(|parameter| (parameter.tensor.kind(), parameter.tensor.device()))
            .ok_or_else(|| Error::State {
                name: "parameters".to_owned(),
                message: "the model has none".to_owned(),
            })?;
        let (groups, members) = group(parameters);
        let end_of = |roles: &[Role]| {
            groups
                .iter()
                .filter(|group| roles.contains(&group.role))
                .map(group_end)
                .max()
                .unwrap_or(0)
        };
        let matrices_end = end_of(&[Role::Matrix]);
        let decayed_end =
            end_of(&[Role::Matrix, Role::Embedding, Role::Unembedding]).max(matrices_end);
        let total = groups.iter().map(group_end).max().unwrap_or(0);
        let buffer = |kind| Tensor::f_zeros([total], (kind, like.1));
        let values = buffer(like.0)?;
        let copies = match copied {
            Some(kind) => Some(Copies { values: buffer(kind)?, gradients: buffer(kind)? }),
            None => None,
        };
        // Copies are grouped as what they are copies of.
        let mut leaves = leaves.map(|leaves| group(leaves).1.into_iter().flatten());
        let mut slots = Vec::new();
        for (group, members) in groups.iter().zip(members) {
            let size: i64 = group.shape.iter().product();
            for (index, parameter) in (0..).zip(members) {
                let start = group.start + index * size;
                adopt(&parameter.tensor, &values, start)?;
                let leaf = match leaves.as_mut().and_then(Iterator::next) {
                    Some(copy) => copy.tensor,
                    None => parameter.tensor.shallow_clone(),
                };
                if let Some(copies) = &copies {
                    adopt(&leaf, &copies.values, start)?;
                }
                slots.push(Slot { parameter, leaf, start });
            }
        }
        let gradients = buffer(like.0)?;
        Ok(Self { values, gradients, copies, groups, matrices_end, decayed_end, slots })
    }

    /// Lets the copies follow the values.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        if let Some(copies) = &mut self.copies {
            copies.values.f_copy_(&self.values)?;
        }
        Ok(())
    }

    /// Elements of either buffer.
    pub(super) fn len(&self) -> i64 {
        self.values.numel() as i64
    }

    /// Makes every parameter's gradient a view of the flat buffer. It is one already unless the
    /// gradient is new (the first step) or was replaced from outside; then it moves in. Gradients
    /// of copies are added to the buffer and set to zero.
    pub(super) fn collect_gradients(&mut self) -> Result<(), Error> {
        let home = self.copies.as_ref().map_or(&self.gradients, |copies| &copies.gradients);
        for slot in &self.slots {
            let mut gradient = slot.leaf.f_grad()?;
            if !gradient.defined() {
                continue;
            }
            let mut view = view(home, slot.start, &slot.leaf.size())?;
            if gradient.data_ptr() != view.data_ptr() {
                view.f_copy_(&gradient)?;
                gradient.f_set_data(&view)?;
            }
        }
        if let Some(copies) = &mut self.copies {
            let _ = self.gradients.f_add_(&copies.gradients)?;
            let _ = copies.gradients.f_zero_()?;
        }
        Ok(())
    }

    /// Pushes the views of `buffer`, which covers `start..end` of the flat order, as
    /// `PREFIX.PART`.
    pub(super) fn named(
        &self,
        buffer: &Tensor,
        prefix: &str,
        start: i64,
        end: i64,
        into: &mut Vec<(String, Tensor)>,
    ) -> Result<(), Error> {
        for slot in &self.slots {
            if slot.start < start || slot.start >= end {
                continue;
            }
            let whole = view(buffer, slot.start - start, &slot.parameter.tensor.size())?;
            let mut row = 0;
            for part in &slot.parameter.parts {
                let part_view = whole.f_narrow(0, row, part.rows)?;
                into.push((format!("{prefix}.{}", part.name), part_view));
                row += part.rows;
            }
        }
        Ok(())
    }
}

fn group_end(group: &Group) -> i64 {
    let end = group.start + group.count * group.shape.iter().product::<i64>();
    (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// Sorts parameters into groups and gives each group its place.
fn group(mut parameters: Vec<Parameter>) -> (Vec<Group>, Vec<Vec<Parameter>>) {
    parameters.sort_by_key(|parameter| match parameter.role {
        Role::Matrix => 0,
        Role::Embedding | Role::Unembedding => 1,
        Role::Vector => 2,
    });
    let mut groups: Vec<Group> = Vec::new();
    let mut members: Vec<Vec<Parameter>> = Vec::new();
    for parameter in parameters {
        let role = parameter.role;
        let shape = parameter.tensor.size();
        let parts: Vec<i64> = parameter.parts.iter().map(|part| part.rows).collect();
        let known = groups
            .iter()
            .position(|group| group.role == role && group.shape == shape && group.parts == parts);
        if let Some(index) = known {
            groups[index].count += 1;
            members[index].push(parameter);
        } else {
            let (start, count) = (0, 1);
            groups.push(Group { start, count, shape, parts, role });
            members.push(vec![parameter]);
        }
    }
    let mut start = 0;
    for group in &mut groups {
        group.start = start;
        start = group_end(group);
    }
    (groups, members)
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
