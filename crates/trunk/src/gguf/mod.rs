//! GGUF files, read strictly: every tensor is used and every tensor of the model is found.
//!
//! [`GgufFile`] is the container, metadata and a directory, believed only as far as the file is
//! long. [`GgufFile::architecture`] says what model is in it; [`GgufWeights`] hands out its
//! tensors under stock Llama names, dequantised. [`write_gguf`] writes such files.

mod cursor;
mod file;
mod llama;
mod metadata;
mod names;
mod writer;

pub use file::GgufFile;
pub use llama::GgufWeights;
pub use names::gguf_name;
pub use writer::{GgufValue, write_gguf};
