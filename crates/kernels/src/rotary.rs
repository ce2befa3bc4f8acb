//! Rotary position embedding (Su et al. 2021), in the layout of Hugging Face's Llama: the two
//! coordinates of a pair lie half a head apart.

use crate::buffers::accumulator;
use crate::{Error, Result};
use std::sync::{Arc, Mutex, PoisonError};
use tch::{Device, Kind, Tensor};

/// The angle between two positions for each pair of a head's coordinates: ωᵢ = theta^(−2i /
/// `head_dim`).
///
/// ```
/// assert_eq!(foretoken_kernels::rotary_frequencies(4, 100.0), [1.0, 0.1]);
/// ```
pub fn rotary_frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Cosines and sines of all positions up to a limit.
///
/// The angle of pair i at position p is p · ωᵢ ([`rotary_frequencies`]). Tables are computed in
/// float64 and kept in float32, or in float64 for a model of that kind. They begin with a thousand
/// positions and double whenever a text is longer: what a model could take costs nothing.
#[derive(Debug)]
pub struct Rotary {
    tables: Arc<Tables>,
    /// `[batch, 1, seq, seq]`, added to the scores of an attention over whole rows.
    mask: Option<Tensor>,
}

/// What all that share them make longer together.
#[derive(Debug)]
struct Tables {
    frequencies: Vec<f64>,
    /// The limit.
    positions: i64,
    kind: Kind,
    device: Device,
    made: Mutex<Angles>,
}

/// Tables for the positions from 0 on.
#[derive(Debug)]
pub(crate) struct Angles {
    /// `[positions, head_dim / 2]`
    pub(crate) cos: Tensor,
    /// `[positions, head_dim / 2]`
    pub(crate) sin: Tensor,
}

/// Positions that tables have at first.
const FIRST_POSITIONS: i64 = 1024;

impl Angles {
    fn positions(&self) -> i64 {
        self.cos.size()[0]
    }

    /// The same tensors.
    fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }
}

impl Tables {
    /// Tables for at least the first `needed` positions, of which there are not more than the limit.
    fn reaching(&self, needed: i64) -> Result<Angles> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let from = made.positions();
        if from < needed {
            let more = self.angles(from, needed.max(2 * from).min(self.positions))?;
            // What was there stays as it is: keys in a cache were turned by it.
            *made = Angles {
                cos: Tensor::f_cat(&[&made.cos, &more.cos], 0)?,
                sin: Tensor::f_cat(&[&made.sin, &more.sin], 0)?,
            };
        }
        Ok(made.share())
    }

    /// The tables' lines of positions `from .. to`.
    fn angles(&self, from: i64, to: i64) -> Result<Angles> {
        let frequencies = Tensor::f_from_slice(&self.frequencies)?;
        let positions = Tensor::f_arange_start(from, to, (Kind::Double, Device::Cpu))?;
        let mut angles = positions.f_outer(&frequencies)?;
        let table = |t: &Tensor| t.f_to_kind(self.kind)?.f_to_device(self.device);
        let cos = table(&angles.f_cos()?)?;
        let sin = table(&angles.f_sin_()?)?;
        Ok(Angles { cos, sin })
    }
}

/// What is added to the score of a position that is not to be seen: in softmax as good as −∞,
/// but no source of NaN where a whole block of keys is hidden.
const HIDDEN: f64 = -1e30;

impl Rotary {
    /// Tables for heads of `head_dim` coordinates and `positions` positions.
    ///
    /// # Errors
    /// When `head_dim` is odd or not positive.
    pub fn new(
        head_dim: i64,
        theta: f64,
        positions: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        if head_dim <= 0 || head_dim % 2 != 0 {
            return Err(Error::Shape {
                what: "a head of a rotary embedding",
                expected: "an even number of coordinates".into(),
                found: head_dim.to_string(),
            });
        }
        Self::with_frequencies(
            &rotary_frequencies(head_dim as usize, theta),
            positions,
            kind,
            device,
        )
    }

    /// Tables for pairs with these angles between two positions, such as scaled ones.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub fn with_frequencies(
        frequencies: &[f64],
        positions: i64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let kind = accumulator(kind);
        let none = || Tensor::f_zeros([0, frequencies.len() as i64], (kind, device));
        let made = Mutex::new(Angles { cos: none()?, sin: none()? });
        let tables = Tables { frequencies: frequencies.to_vec(), positions, kind, device, made };
        tables.reaching(positions.min(FIRST_POSITIONS))?;
        Ok(Self { tables: Arc::new(tables), mask: None })
    }

    /// The same tables for an attention over rows of several documents each: of the positions up to
    /// its own, each sees those of its own document alone. `documents`: `[batch, seq]`, a number for
    /// each position. For [`causal_attention`](crate::causal_attention); a cache has one document.
    ///
    /// ```
    /// use foretoken_kernels::{AttentionShape, Rotary, causal_attention};
    /// use tch::{Device, IndexOp, Kind, Tensor};
    ///
    /// let shape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 8 };
    /// let rotary = Rotary::new(8, 10_000.0, 16, Kind::Float, Device::Cpu)?;
    /// let two = rotary.within_documents(&Tensor::from_slice(&[0i64, 0, 0, 1, 1]).view([1, 5]))?;
    /// let qkv = Tensor::randn([1, 5, shape.qkv_width()], (Kind::Float, Device::Cpu));
    /// let both = causal_attention(qkv.copy(), shape, &two)?;
    /// // Angles count from one position to another: where a document begins does not matter.
    /// let alone = causal_attention(qkv.i((.., 3.., ..)).copy(), shape, &rotary)?;
    /// assert!(both.i((.., 3.., ..)).allclose(&alone, 1e-4, 1e-5, false));
    /// # Ok::<(), foretoken_kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// When `documents` has other than two dimensions.
    pub fn within_documents(&self, documents: &Tensor) -> Result<Self> {
        let (batch, seq) = documents.size2()?;
        let Tables { kind, device, .. } = *self.tables;
        let documents = documents.f_to_device(device)?;
        let rows = documents.f_view([batch, 1, seq, 1])?;
        let hidden = rows.f_ne_tensor(&documents.f_view([batch, 1, 1, seq])?)?;
        let seen = Tensor::f_zeros([batch, 1, seq, seq], (kind, device))?;
        Ok(Self { mask: Some(seen.f_masked_fill(&hidden, HIDDEN)?), ..self.share() })
    }

    /// What is added to the scores of `batch` rows of `seq` positions, if anything: as many rows as
    /// the documents were given for, or these several times over.
    pub(crate) fn mask(&self, batch: i64, seq: i64) -> Result<Option<Tensor>> {
        let Some(mask) = &self.mask else { return Ok(None) };
        let (rows, _, positions, _) = mask.size4()?;
        if positions != seq || rows == 0 || batch % rows != 0 {
            return Err(Error::Shape {
                what: "rows of several documents",
                expected: format!("[{rows}, {positions}], for which their documents are known"),
                found: format!("[{batch}, {seq}]"),
            });
        }
        match batch / rows {
            1 => Ok(Some(mask.shallow_clone())),
            times => Ok(Some(mask.f_repeat([times, 1, 1, 1])?)),
        }
    }

    /// The same tables: what one makes longer, the other finds longer.
    #[must_use]
    pub fn share(&self) -> Self {
        let mask = self.mask.as_ref().map(Tensor::shallow_clone);
        Self { tables: Arc::clone(&self.tables), mask }
    }

    /// Positions that the tables can reach.
    pub fn positions(&self) -> i64 {
        self.tables.positions
    }

    /// Tables that have at least the first `positions` positions.
    ///
    /// # Errors
    /// When that is beyond the limit, or the memory cannot be had.
    pub(crate) fn reaching(&self, positions: i64) -> Result<Angles> {
        let capacity = self.positions();
        if positions > capacity {
            return Err(Error::Capacity { what: "the rotary table", needed: positions, capacity });
        }
        self.tables.reaching(positions)
    }

    /// Turns `x` `[batch, heads, seq, head_dim]`, whose first position is `start`.
    ///
    /// # Errors
    /// When a position lies beyond the tables or the shapes differ.
    pub fn apply(&self, x: &Tensor, start: i64) -> Result<Tensor> {
        let seq = x.size4()?.2;
        let Angles { cos, sin } = self.reaching(start + seq)?;
        let rows = |table: &Tensor| table.f_narrow(0, start, seq);
        turn(x, &rows(&cos)?, &rows(&sin)?)
    }

    /// As [`Rotary::apply`], at `positions` `[seq]` (int64), all before `end`.
    pub(crate) fn apply_at(&self, x: &Tensor, positions: &Tensor, end: i64) -> Result<Tensor> {
        let Angles { cos, sin } = self.reaching(end)?;
        let rows = |table: &Tensor| table.f_index_select(0, positions);
        turn(x, &rows(&cos)?, &rows(&sin)?)
    }
}

/// Turns `x` `[batch, heads, seq, head_dim]` by angles `[seq, head_dim / 2]`.
fn turn(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let halves = x.f_to_kind(cos.kind())?.f_chunk(2, -1)?;
    let (a, b) = (&halves[0], &halves[1]);
    let turned_a = a.f_mul(cos)?.f_sub(&b.f_mul(sin)?)?;
    let turned_b = b.f_mul(cos)?.f_add(&a.f_mul(sin)?)?;
    Ok(Tensor::f_cat(&[turned_a, turned_b], -1)?.f_to_kind(x.kind())?)
}
