//! Writing a shard: tokens and document ends stream into unfinished files, which get their names
//! when they are whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::files::{hex, partial_path, rename_into_place};
use crate::{Error, Result, Split, SplitInfo};

/// Bytes that a token takes in a shard of this vocabulary.
pub(crate) fn token_bytes(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// Tokens as they lie in a shard.
pub(crate) fn to_shard_bytes(ids: &[u32], token_bytes: usize) -> Vec<u8> {
    match token_bytes {
        2 => ids.iter().flat_map(|&id| (id as u16).to_le_bytes()).collect(),
        _ => ids.iter().flat_map(|&id| id.to_le_bytes()).collect(),
    }
}

/// A split that is being written.
pub(crate) struct SplitWriter {
    split: Split,
    tokens: HashedFile,
    ends: HashedFile,
    token_bytes: usize,
    /// The end-of-text token as it lies in the shard; empty where the vocabulary has none.
    separator: Vec<u8>,
    documents: u64,
    text_bytes: u64,
}

impl SplitWriter {
    pub(crate) fn new(
        dir: &Path,
        split: Split,
        token_bytes: usize,
        end_of_text: Option<u32>,
    ) -> Result<Self> {
        let separator = end_of_text.map(|id| to_shard_bytes(&[id], token_bytes));
        Ok(Self {
            split,
            tokens: HashedFile::create(dir, &format!("{split}.tokens"))?,
            ends: HashedFile::create(dir, &format!("{split}.documents"))?,
            token_bytes,
            separator: separator.unwrap_or_default(),
            documents: 0,
            text_bytes: 0,
        })
    }

    /// Adds a document's tokens, or some of them. The end-of-text token stands before the first
    /// document and behind each.
    pub(crate) fn append(&mut self, tokens: &[u8], text_bytes: u64, ends: bool) -> Result<()> {
        if self.tokens.bytes == 0 {
            self.tokens.write(&self.separator)?;
        }
        self.tokens.write(tokens)?;
        self.text_bytes += text_bytes;
        if ends {
            let end = self.tokens.bytes / self.token_bytes as u64;
            self.ends.write(&end.to_le_bytes())?;
            self.tokens.write(&self.separator)?;
            self.documents += 1;
        }
        Ok(())
    }

    /// Syncs both files and gives them the names by which the manifest will know them: with their
    /// hash, so that they never take the place of others that a reader has open.
    pub(crate) fn finish(self) -> Result<SplitInfo> {
        let tokens = self.tokens.bytes / self.token_bytes as u64;
        let (file, sha256) = self.tokens.finish(&format!("{}-", self.split), ".tokens")?;
        let (documents_file, documents_sha256) =
            self.ends.finish(&format!("{}-", self.split), ".documents")?;
        Ok(SplitInfo {
            file,
            tokens,
            documents: self.documents,
            bytes: self.text_bytes,
            sha256,
            documents_file,
            documents_sha256,
        })
    }
}

/// An unfinished file that is removed unless it is finished.
struct HashedFile {
    path: PathBuf,
    /// What errors call it.
    name: PathBuf,
    writer: Option<BufWriter<File>>,
    hash: Sha256,
    bytes: u64,
}

impl HashedFile {
    fn create(dir: &Path, name: &str) -> Result<Self> {
        let name = dir.join(name);
        let path = partial_path(&name);
        let file = File::create(&path).map_err(Error::io("create", &name))?;
        Ok(Self {
            path,
            name,
            writer: Some(BufWriter::with_capacity(1 << 20, file)),
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    fn write(&mut self, content: &[u8]) -> Result<()> {
        if let Some(writer) = &mut self.writer {
            writer.write_all(content).map_err(Error::io("write", &self.name))?;
        }
        self.hash.update(content);
        self.bytes += content.len() as u64;
        Ok(())
    }

    fn finish(mut self, before: &str, after: &str) -> Result<(String, String)> {
        if let Some(mut writer) = self.writer.take() {
            writer
                .flush()
                .and_then(|()| writer.get_ref().sync_all())
                .map_err(Error::io("write", &self.name))?;
        }
        let sha256 = hex(&self.hash.finalize_reset());
        let name = format!("{before}{}{after}", &sha256[..16]);
        rename_into_place(&self.path, &self.path.with_file_name(&name))?;
        Ok((name, sha256))
    }
}

impl Drop for HashedFile {
    fn drop(&mut self) {
        // After `finish` there is no file of this name any more.
        let _ = fs::remove_file(&self.path);
    }
}
