//! The multi-token checkpoints that Meta released, read strictly.
//!
//! `facebook/multi-token-prediction` has a folder a model: `consolidated.pth`, which `torch.save`
//! wrote, and `params.json`. [`MetaCheckpoint`] is such a folder; its [`MetaWeights`] hand out the
//! tensors under stock Llama names. The file is a zip archive of a pickle, which is read as data:
//! nothing that it names is called, and whatever is no tensor is refused by name.

mod archive;
mod checkpoint;
mod names;
mod params;
mod pickle;
mod values;
mod weights;

pub use checkpoint::MetaCheckpoint;
pub use weights::MetaWeights;
