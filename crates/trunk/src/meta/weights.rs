//! The tensors of a `consolidated.pth` under stock Llama names.

use super::archive::Archive;
use super::names::Place;
use super::pickle::read_state_dict;
use super::values::PickledTensor;
use crate::bytes::Problem;
use crate::io::{WeightSource, byte_size, lend, strides};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const PICKLE: &str = "/data.pkl";
/// Rotary frequencies, which older checkpoints store and which follow from `params.json`.
const ROTARY: &str = "rope.freqs";

/// Tensors of one file that `torch.save` wrote, read where they lie.
///
/// Tensors of `layers.{i}.` are those of `model.layers.{i}.`, the last of which is head 0; tensors
/// of `extra_heads.{j}.` are those of `heads.{j + 1}.`. Rows of queries and keys are turned from
/// interleaved rotary pairs (2i, 2i + 1) to halves (i, i + d/2).
pub struct MetaWeights {
    archive: Archive,
    tensors: BTreeMap<String, Stored>,
    /// Coordinates of an attention head: how rows are turned.
    head_width: usize,
}

struct Stored {
    place: Place,
    kind: Kind,
    shape: Vec<i64>,
    bytes: Range<usize>,
}

impl MetaWeights {
    /// Opens a file and places its tensors. Until the width of a head is set, no rows are turned.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let archive = Archive::open(path)?;
        let root = root(&archive).map_err(|problem| Error::format(path, problem))?;
        let pickle = archive.entry(&format!("{root}{PICKLE}"));
        let pickle = pickle.and_then(|bytes| archive.bytes(bytes)).unwrap_or_default();
        let pickled = read_state_dict(pickle)
            .map_err(|problem| Error::format(path, format!("its entry data.pkl: {problem}")))?;
        let mut tensors = BTreeMap::new();
        for (name, tensor) in pickled.iter().filter(|(name, _)| *name != ROTARY) {
            let wrong = |problem: &str| Error::tensor(path, name, problem);
            let place = Place::parse(name)
                .ok_or_else(|| wrong("there is no place for it in a model of Meta's Llama"))?;
            let bytes = locate(&archive, &root, tensor).map_err(|problem| wrong(&problem))?;
            let (kind, shape) = (tensor.kind, tensor.shape.clone());
            tensors.insert(place.stock(), Stored { place, kind, shape, bytes });
        }
        check_apart(path, &tensors)?;
        Ok(Self { archive, tensors, head_width: 0 })
    }

    /// Says how wide an attention head is.
    pub(super) fn set_head_width(&mut self, width: usize) {
        self.head_width = width;
    }

    /// Rows of the embedding.
    pub(super) fn vocabulary(&self) -> Result<usize> {
        let name = "tok_embeddings.weight";
        let embedding = self.tensors.values().find(|stored| stored.place.own() == name);
        match embedding.map(|stored| stored.shape.as_slice()) {
            Some(&[rows, _]) => Ok(rows as usize),
            Some(_) => Err(self.error(name, "is no matrix")),
            None => Err(self.error(name, "is missing")),
        }
    }

    /// Extra heads that there are tensors of.
    pub(super) fn extra_heads(&self) -> usize {
        let heads = self.tensors.values().filter_map(|stored| match stored.place {
            Place::Extra(head, _) => Some(head as usize + 1),
            Place::End(_) | Place::Layer(..) => None,
        });
        heads.max().unwrap_or(0)
    }

    /// Refuses a file that lacks a tensor of a model with so many `layers.` and `extra_heads.`, or
    /// has one beyond.
    pub(super) fn check_complete(&self, layers: u32, extra: u32) -> Result<()> {
        let missing =
            Place::all(layers, extra).find(|place| !self.tensors.contains_key(&place.stock()));
        if let Some(place) = missing {
            let problem = "is missing: the model that params.json describes has it";
            return Err(self.error(&place.own(), problem));
        }
        let mut places = self.tensors.values().map(|stored| stored.place);
        match places.find(|place| !place.is_within(layers, extra)) {
            None => Ok(()),
            Some(place) => {
                let problem = "the model that params.json describes has no place for it";
                Err(self.error(&place.own(), problem))
            }
        }
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| self.error(name, "is missing"))
    }

    fn error(&self, name: &str, problem: &str) -> Error {
        Error::tensor(self.archive.path(), &self.own_name(name), problem)
    }

    /// Hands the tensor as it lies in the file, rows as they are, to `use_it`.
    fn with(&self, name: &str, use_it: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
        let stored = self.stored(name)?;
        self.archive
            .bytes(stored.bytes.clone())
            .and_then(|bytes| lend(bytes, &stored.shape, stored.kind, use_it))
            .ok_or_else(|| self.error(name, "lies outside of the file"))?
    }
}

impl WeightSource for MetaWeights {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn path(&self, _name: &str) -> PathBuf {
        self.archive.path().to_owned()
    }

    fn own_name(&self, name: &str) -> String {
        self.tensors.get(name).map_or_else(|| name.to_owned(), |stored| stored.place.own())
    }

    fn numbers(&self) -> usize {
        let numbers = |stored: &Stored| byte_size(&stored.shape, Kind::Int8).unwrap_or(0);
        self.tensors.values().map(numbers).fold(0, usize::saturating_add)
    }

    fn shape(&self, name: &str) -> Result<Vec<i64>> {
        Ok(self.stored(name)?.shape.clone())
    }

    fn copy_to(&self, name: &str, view: &mut Tensor) -> Result<()> {
        let stored = self.stored(name)?;
        if !stored.place.is_interleaved() {
            return self.with(name, |tensor| Ok(view.f_copy_(tensor)?));
        }
        let (width, shape) = (self.head_width as i64, stored.shape.as_slice());
        let &[rows, columns] = shape else { return Err(self.error(name, "is no matrix")) };
        if view.size() != shape || width < 2 || width % 2 != 0 || rows % width != 0 {
            return Err(self.error(name, "its rows are no whole heads"));
        }
        let (heads, half) = (rows / width, width / 2);
        let mut halves = view.f_view([heads, 2, half, columns])?;
        self.with(name, |tensor| {
            let pairs = tensor.f_view([heads, half, 2, columns])?;
            Ok(halves.f_copy_(&pairs.f_transpose(1, 2)?)?)
        })
    }
}

/// The folder inside the archive: there is one, named for the file that was saved.
fn root(archive: &Archive) -> std::result::Result<String, Problem> {
    let mut roots = archive.names().filter_map(|name| name.strip_suffix(PICKLE));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err("not a file of torch.save: it must hold one entry data.pkl in a folder".into());
    };
    let order = archive.entry(&format!("{root}/byteorder"));
    match order.and_then(|bytes| archive.bytes(bytes)) {
        None | Some(b"little") => Ok(root.to_owned()),
        Some(_) => Err("its numbers are not little-endian, which is not supported".into()),
    }
}

/// Where a tensor's numbers lie in the file.
fn locate(
    archive: &Archive,
    root: &str,
    tensor: &PickledTensor,
) -> std::result::Result<Range<usize>, Problem> {
    let Some(storage) = archive.entry(&format!("{root}/data/{}", tensor.storage)) else {
        return Err("its storage is not in the archive".into());
    };
    let bytes =
        |numbers: u64| usize::try_from(numbers).ok()?.checked_mul(tensor.kind.elt_size_in_bytes());
    if bytes(tensor.storage_len) != Some(storage.len()) {
        return Err(format!(
            "its storage should hold {} numbers, but has {} bytes",
            tensor.storage_len,
            storage.len()
        ));
    }
    let size = byte_size(&tensor.shape, tensor.kind).filter(|&size| size > 0);
    let Some(size) = size else {
        return Err(format!("the shape {:?} is that of no weight", tensor.shape));
    };
    if !is_contiguous(&tensor.shape, &tensor.strides) {
        return Err(format!(
            "its numbers do not lie in order (shape {:?}, strides {:?}): save it as contiguous",
            tensor.shape, tensor.strides
        ));
    }
    bytes(tensor.offset)
        .and_then(|offset| Some(offset..offset.checked_add(size)?))
        .filter(|place| place.end <= storage.len())
        .map(|place| storage.start + place.start..storage.start + place.end)
        .ok_or_else(|| "lies outside of its storage".into())
}

/// Each number belongs to one tensor: what the files hold bounds what the model may ask for.
fn check_apart(path: &Path, tensors: &BTreeMap<String, Stored>) -> Result<()> {
    let mut all: Vec<&Stored> = tensors.values().collect();
    all.sort_by_key(|stored| stored.bytes.start);
    for pair in all.windows(2) {
        if pair[0].bytes.end > pair[1].bytes.start {
            let problem = format!(
                "shares numbers with {}, which is not supported: save copies",
                pair[1].place.own()
            );
            return Err(Error::tensor(path, &pair[0].place.own(), &problem));
        }
    }
    Ok(())
}

/// Whether numbers lie in order; along a dimension of one the stride says nothing.
fn is_contiguous(shape: &[i64], given: &[i64]) -> bool {
    let mut dimensions = shape.iter().zip(strides(shape)).zip(given);
    dimensions.all(|((&d, expected), &given)| d == 1 || given == expected)
}
