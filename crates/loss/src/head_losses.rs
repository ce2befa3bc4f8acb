//! What a step reports of every head.

use crate::Result;
use tch::{Device, Kind, Tensor};

/// Mean cross-entropy of every head in nats a token, on the model's device: `[heads]`, NaN for heads
/// that were skipped.
///
/// These are plain cross-entropies whatever the objective's weights, factor and options are, so that
/// those of one training can be compared with those of another. Reading them waits for the device,
/// so do that when it is needed and not before.
#[derive(Debug)]
pub struct HeadLosses(pub Tensor, Vec<bool>);

impl HeadLosses {
    /// Scalars of one kind on `device`, head 0 first, `None` for heads that were skipped.
    pub(crate) fn new(losses: &[Option<Tensor>], device: Device) -> Result<Self> {
        let kind = losses.iter().flatten().next().map_or(Kind::Float, Tensor::kind);
        let none = Tensor::f_full([0i64; 0], f64::NAN, (kind, device))?;
        let values: Vec<&Tensor> =
            losses.iter().map(|loss| loss.as_ref().unwrap_or(&none)).collect();
        let computed = losses.iter().map(Option::is_some).collect();
        Ok(Self(Tensor::f_stack(&values, 0)?, computed))
    }

    /// The losses as numbers, head 0 first; NaN for heads that were skipped.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_vec(&self) -> Result<Vec<f64>> {
        Ok(Vec::try_from(&self.0.f_to_kind(Kind::Double)?)?)
    }

    /// The losses as numbers, head 0 first; `None` for heads that were skipped, because their weight
    /// is 0. A loss that came out as NaN is `Some`.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// ```
    /// use foretoken_heads::{HeadsConfig, ModelConfig, MultiTokenModel};
    /// use foretoken_loss::MultiTokenLoss;
    /// use foretoken_trunk::Architecture;
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let architecture = Architecture { dim: 32, layers: 3, ffn: 64, ..Architecture::default() };
    /// let heads = HeadsConfig::new("block", 2);
    /// let config = ModelConfig { architecture, heads, end_of_text: Vec::new() };
    /// let model = MultiTokenModel::new(&config, Kind::Float, Device::Cpu, 0)?;
    /// let tokens = Tensor::randint(256, [2, 8 + 2], (Kind::Int64, Device::Cpu));
    /// let losses = MultiTokenLoss::weighted(vec![1.0, 0.0]).backward(&model, &tokens)?;
    /// assert!(matches!(losses.by_head()?[..], [Some(_), None]));
    /// # Ok::<(), foretoken_loss::Error>(())
    /// ```
    pub fn by_head(&self) -> Result<Vec<Option<f64>>> {
        let values = self.to_vec()?.into_iter().zip(&self.1);
        Ok(values.map(|(value, computed)| computed.then_some(value)).collect())
    }
}
