//! The data layer from outside: tokenizers, corpora, shards, batches, and what goes wrong.

// Texts to test with are built line by line.
#![allow(clippy::format_collect)]

mod bad_input;
mod changed_files;
mod chats;
mod damaged;
mod describing;
mod fixtures;
mod mixtures;
mod packing;
mod prefetching;
mod preparation;
mod python_code;
mod sampling;
mod sources;
mod splits;
mod text;
mod tokenizing;
mod vocabularies;
