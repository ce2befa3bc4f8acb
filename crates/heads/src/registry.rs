//! Head types by name.

use crate::{BlockHead, Error, Head, InformedHead, LinearHead, MedusaHead, Result};
use foretoken_trunk::{Architecture, Initialiser};
use std::collections::BTreeMap;

/// Makes one head of a type.
pub type BuildHead = fn(&Architecture, &Initialiser) -> Result<Box<dyn Head>>;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Stock layers that one such head takes from the trunk, so that parameters stay matched.
    layers: usize,
    build: BuildHead,
}

/// The head types that a config can name.
#[derive(Clone, Debug)]
pub struct Registry {
    entries: BTreeMap<&'static str, Entry>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::stock()
    }
}

impl Registry {
    /// The types of this crate: a new one is a line here.
    pub fn stock() -> Self {
        Self { entries: BTreeMap::new() }
            .with(BlockHead::KIND, 1, |sizes, init| Ok(Box::new(BlockHead::new(sizes, init)?)))
            .with(InformedHead::KIND, 1, |sizes, init| {
                Ok(Box::new(InformedHead::new(sizes, init)?))
            })
            .with(MedusaHead::KIND, 0, |sizes, init| Ok(Box::new(MedusaHead::new(sizes, init)?)))
            .with(LinearHead::KIND, 0, |sizes, init| Ok(Box::new(LinearHead::new(sizes, init)?)))
    }

    /// Adds a type from outside. `layers`: how many stock layers one such head stands for; each
    /// head beyond the first takes that many from the trunk, so that an n-token model has the
    /// parameters of its next-token baseline.
    #[must_use]
    pub fn with(mut self, kind: &'static str, layers: usize, build: BuildHead) -> Self {
        self.entries.insert(kind, Entry { layers, build });
        self
    }

    /// Builds one head of the type `kind`.
    ///
    /// # Errors
    /// When the type is unknown, or building it failed.
    pub fn build(
        &self,
        kind: &str,
        sizes: &Architecture,
        init: &Initialiser,
    ) -> Result<Box<dyn Head>> {
        (self.entry(kind)?.build)(sizes, init)
    }

    /// Layers in all of a model that has `trunk` layers below its heads: the inverse of
    /// [`Registry::trunk_layers`].
    ///
    /// # Errors
    /// When the type is unknown.
    pub fn all_layers(&self, kind: &str, count: usize, trunk: usize) -> Result<usize> {
        let each = self.entry(kind)?.layers;
        Ok(count.saturating_sub(1).saturating_mul(each).saturating_add(1).saturating_add(trunk))
    }

    /// Trunk layers left of `layers` when `count` heads are taken: head 0 is one layer, each other
    /// as many as its type stands for.
    ///
    /// # Errors
    /// When the type is unknown, `count` is 0, or no trunk layer would be left.
    pub fn trunk_layers(&self, kind: &str, count: usize, layers: usize) -> Result<usize> {
        let needed =
            count.saturating_sub(1).saturating_mul(self.entry(kind)?.layers).saturating_add(1);
        if count == 0 || needed >= layers {
            return Err(Error::TooManyHeads { count, kind: kind.to_owned(), needed, layers });
        }
        Ok(layers - needed)
    }

    fn entry(&self, kind: &str) -> Result<Entry> {
        self.entries.get(kind).copied().ok_or_else(|| Error::UnknownHead {
            kind: kind.to_owned(),
            known: self.entries.keys().copied().collect::<Vec<_>>().join(", "),
        })
    }
}
