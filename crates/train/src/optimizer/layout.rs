//! Where each parameter lies in the flat buffers, and which of several processes looks after it.

use std::ops::Range;

use foretoken_trunk::{Parameter, Role};

/// Groups begin at multiples of as many elements: 64 bytes and more.
const ALIGNMENT: i64 = 16;

/// How a model's parameters are to be laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Whether matrices lie apart, each whole within the slice of one process: for Muon.
    pub(super) matrices_apart: bool,
    /// Processes that each look after a slice of the matrices and one of the rest.
    pub(super) owners: usize,
}

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

/// Two regions, matrices and the rest, each of as many equal slices as there are owners.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) groups: Vec<Group>,
    /// End of the matrices, which come first, if they lie apart.
    pub(super) matrices_end: i64,
    /// End of what weight decay moves in the rest: all but the vectors, which come last.
    pub(super) decayed_end: i64,
    /// Elements in all.
    pub(super) len: i64,
}

impl Layout {
    /// Gives every parameter a place, and returns them in the groups' order with their first
    /// elements. It depends only on the parameters' order, shapes and roles.
    pub(super) fn new(mut parameters: Vec<Parameter>, plan: Plan) -> (Self, Vec<(Parameter, i64)>) {
        let owners = plan.owners.max(1);
        parameters.sort_by_key(|parameter| match parameter.role {
            Role::Matrix => 0,
            Role::Embedding | Role::Unembedding => 1,
            Role::Vector => 2,
        });
        let apart = |parameter: &Parameter| plan.matrices_apart && parameter.role == Role::Matrix;
        let rest = parameters.split_off(parameters.partition_point(apart));
        let shares: Vec<Shelf> = share_out(parameters, owners).into_iter().map(grouped).collect();
        let slice = shares.iter().map(|share| share.len).max().unwrap_or(0);
        let matrices_end = slice * owners as i64;

        let rest = grouped(rest);
        let whole = ALIGNMENT * owners as i64;
        let len = matrices_end + (rest.len + whole - 1) / whole * whole;
        let mut layout = Self { groups: Vec::new(), matrices_end, decayed_end: matrices_end, len };
        let mut places = Vec::new();
        let starts = (0..).map(|owner| owner * slice);
        let all = starts.zip(shares).chain(std::iter::once((matrices_end, rest)));
        for (first, Shelf { groups, members, .. }) in all {
            for (mut group, members) in groups.into_iter().zip(members) {
                group.start += first;
                let size: i64 = group.shape.iter().product();
                let starts = (0..).map(|index| group.start + index * size);
                places.extend(members.into_iter().zip(starts));
                if group.role != Role::Vector && group.start >= matrices_end {
                    layout.decayed_end = group.end();
                }
                layout.groups.push(group);
            }
        }
        (layout, places)
    }

    /// The two regions, as far as there is anything in them.
    pub(super) fn regions(&self) -> impl Iterator<Item = Range<i64>> + use<> {
        let both = [0..self.matrices_end, self.matrices_end..self.len];
        both.into_iter().filter(|region| !region.is_empty())
    }
}

impl Group {
    /// Where the next one may begin.
    fn end(&self) -> i64 {
        let end = self.start + self.count * self.shape.iter().product::<i64>();
        (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
    }
}

/// Groups that follow each other from 0, with their members.
struct Shelf {
    groups: Vec<Group>,
    members: Vec<Vec<Parameter>>,
    len: i64,
}

/// Sorts parameters into groups.
fn grouped(parameters: Vec<Parameter>) -> Shelf {
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
    let mut len = 0;
    for group in &mut groups {
        group.start = len;
        len = group.end();
    }
    Shelf { groups, members, len }
}

/// Deals out whole parameters, the largest first, each to the owner who has the least so far.
fn share_out(parameters: Vec<Parameter>, owners: usize) -> Vec<Vec<Parameter>> {
    let mut order: Vec<usize> = (0..parameters.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(parameters[index].tensor.numel()));
    let mut loads = vec![0; owners];
    let mut owner_of = vec![0; parameters.len()];
    for index in order {
        let owner = (0..owners).min_by_key(|&owner| loads[owner]).unwrap_or(0);
        loads[owner] += parameters[index].tensor.numel();
        owner_of[index] = owner;
    }
    let mut shares: Vec<Vec<Parameter>> = (0..owners).map(|_| Vec::new()).collect();
    for (parameter, owner) in parameters.into_iter().zip(owner_of) {
        shares[owner].push(parameter);
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tch::{Device, Kind, Tensor};

    use super::*;

    fn parameter(index: usize, role: Role, rows: i64) -> Parameter {
        let shape = if role == Role::Vector { vec![rows] } else { vec![rows, 3] };
        let tensor = Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu));
        Parameter::whole(&tensor, role, index.to_string())
    }

    proptest! {
        #[test]
        fn every_parameter_has_a_place_of_its_own_and_every_matrix_one_owner(
            sizes in prop::collection::vec((0usize..3, 1i64..40), 1..30),
            owners in 1usize..5,
            matrices_apart: bool,
        ) {
            let roles = [Role::Matrix, Role::Embedding, Role::Vector];
            let parameters: Vec<Parameter> = sizes
                .iter()
                .enumerate()
                .map(|(index, &(role, rows))| parameter(index, roles[role], rows))
                .collect();
            let count = parameters.len();
            let (layout, places) = Layout::new(parameters, Plan { matrices_apart, owners });
            prop_assert_eq!(places.len(), count);
            let end = |(parameter, start): &(Parameter, i64)| start + parameter.tensor.numel() as i64;
            let mut by_start: Vec<&(Parameter, i64)> = places.iter().collect();
            by_start.sort_by_key(|(_, start)| *start);
            prop_assert!(by_start.windows(2).all(|pair| end(pair[0]) <= pair[1].1));
            prop_assert!(by_start.iter().all(|place| end(place) <= layout.len));
            let owners = owners as i64;
            prop_assert_eq!(layout.matrices_end % (owners * ALIGNMENT), 0);
            prop_assert_eq!((layout.len - layout.matrices_end) % (owners * ALIGNMENT), 0);
            for place in &places {
                let (parameter, start) = place;
                let apart = matrices_apart && parameter.role == Role::Matrix;
                prop_assert_eq!(*start < layout.matrices_end, apart);
                if apart {
                    let slice = layout.matrices_end / owners;
                    prop_assert_eq!(start / slice, (end(place) - 1) / slice);
                } else {
                    prop_assert_eq!(*start < layout.decayed_end, parameter.role != Role::Vector);
                }
            }
            // Nobody has more than a fair share and one matrix.
            if matrices_apart {
                let matrix = |(parameter, start): &&(Parameter, i64)| {
                    *start < layout.matrices_end && parameter.tensor.numel() > 0
                };
                let numbers: Vec<i64> =
                    places.iter().filter(matrix).map(|(p, _)| p.tensor.numel() as i64).collect();
                let fair = numbers.iter().sum::<i64>() / owners;
                let largest = numbers.iter().copied().max().unwrap_or(0);
                let gaps = ALIGNMENT * numbers.len() as i64;
                prop_assert!(layout.matrices_end / owners <= fair + largest + gaps);
            }
        }
    }
}
