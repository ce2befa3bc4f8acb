//! Trainable tensors with their stock names.

use crate::{Error, Result};
use tch::Tensor;

/// What a parameter is to the model; optimisers treat roles differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A weight matrix inside a block or head.
    Matrix,
    /// A vector: a norm's weight or a bias.
    Vector,
    /// The token embedding.
    Embedding,
    /// The unembedding, shared by all heads.
    Unembedding,
}

/// Rows of a parameter that files know under a name of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The stock Llama name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Rows (for a vector: elements).
    pub rows: i64,
}

/// A leaf of the graph: one tensor that may join several stock tensors, row over row.
///
/// Queries, keys and values are one matrix here, as are gate and up projection: one product
/// instead of several. [`Parameter::named`] gives back the stock tensors as views.
#[derive(Debug)]
pub struct Parameter {
    /// The leaf; clones share its storage and its gradient.
    pub tensor: Tensor,
    /// What it is to the model.
    pub role: Role,
    /// Its row ranges in order; their rows add up to the tensor's.
    pub parts: Vec<Part>,
}

impl Parameter {
    /// A parameter of `parts`, each `(name, rows)` in order.
    pub fn new<S: Into<String>>(
        tensor: &Tensor,
        role: Role,
        parts: impl IntoIterator<Item = (S, i64)>,
    ) -> Self {
        let parts =
            parts.into_iter().map(|(name, rows)| Part { name: name.into(), rows }).collect();
        Self { tensor: tensor.shallow_clone(), role, parts }
    }

    /// A parameter that files know under one name.
    pub fn whole(tensor: &Tensor, role: Role, name: impl Into<String>) -> Self {
        let rows = tensor.size().first().copied().unwrap_or(1);
        Self::new(tensor, role, [(name, rows)])
    }

    /// The stock tensors: views without gradient, in order.
    ///
    /// # Errors
    /// When the parts' rows do not add up to the tensor's.
    pub fn named(&self) -> Result<Vec<(String, Tensor)>> {
        let value = self.tensor.detach();
        let mut start = 0;
        let mut views = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            views.push((part.name.clone(), value.f_narrow(0, start, part.rows)?));
            start += part.rows;
        }
        let rows = value.size().first().copied().unwrap_or(1);
        if start != rows {
            let names: Vec<&str> = self.parts.iter().map(|part| part.name.as_str()).collect();
            let problem = format!("{} have {start} rows of {rows}", names.join(", "));
            return Err(Error::config("a parameter's parts", problem));
        }
        Ok(views)
    }
}
