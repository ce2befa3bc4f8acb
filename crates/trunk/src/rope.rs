//! How rotary frequencies are stretched for contexts longer than those of the first training.

use crate::{Architecture, Error, Result};
use foretoken_kernels::rotary_frequencies;
use serde_json::{Map, Value, json};
use std::f64::consts::TAU;
use std::path::Path;

/// A change of the rotary frequencies ω.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// None.
    #[default]
    None,
    /// All are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's: waves longer than `original_context / low_freq_factor` are stretched by
    /// `factor`, those shorter than `original_context / high_freq_factor` are left, and in between
    /// it goes over from one to the other.
    Llama3 {
        /// The divisor of slow frequencies.
        factor: f64,
        /// Waves that fit fewer times into the original context are slow.
        low_freq_factor: f64,
        /// Waves that fit more times are fast.
        high_freq_factor: f64,
        /// Positions of the first training.
        original_context: f64,
    },
}

impl RopeScaling {
    /// Changes the frequencies.
    pub fn apply(&self, frequencies: &mut [f64]) {
        match *self {
            Self::None => (),
            Self::Linear { factor } => frequencies.iter_mut().for_each(|w| *w /= factor),
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => {
                for w in frequencies {
                    // How often the wave fits into the original context.
                    let turns = original_context * *w / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *w = kept * *w + (1.0 - kept) * *w / factor;
                }
            }
        }
    }

    /// Llama 3's scaling from the factors that it divides the frequencies by, as GGUF files have
    /// them; `None` where the factors are of another kind.
    pub(crate) fn from_factors(factors: &[f64], sizes: &Architecture) -> Option<Self> {
        let factor = factors.iter().copied().fold(1.0, f64::max);
        let plain = rotary_frequencies(sizes.head_width(), sizes.rope_theta);
        if factors.len() != plain.len() {
            return None;
        }
        let published = (4.0, 8192.0);
        let found = transition(factors, factor, &plain);
        // What was written as a short number most likely was one.
        let short = found.map(|(high, original)| ((high * 64.0).round() / 64.0, original.round()));
        let mut guesses = [Some(published), short, found].into_iter().flatten();
        let guess = guesses.find_map(|(high, original_context)| {
            let guess = Self::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: high,
                original_context,
            };
            guess.validate().ok().map(|()| guess).filter(|guess| {
                let mut scaled = plain.clone();
                guess.apply(&mut scaled);
                let mut all = plain.iter().zip(&scaled).zip(factors);
                // The factors are in float32.
                all.all(|((plain, scaled), by)| (plain / by - scaled).abs() <= 1e-6 * scaled)
            })
        })?;
        Some(guess)
    }

    /// Reads it from a `config.json`, old style (`rope_scaling`) or new (`rope_parameters`).
    pub(crate) fn from_config(config: &Map<String, Value>, path: &Path) -> Result<Self> {
        let section = ["rope_scaling", "rope_parameters"]
            .into_iter()
            .find_map(|key| config.get(key).and_then(Value::as_object));
        let Some(section) = section else { return Ok(Self::None) };
        let kind = ["rope_type", "type"].into_iter().find_map(|key| section.get(key)?.as_str());
        let number = |key: &str| {
            let number = section.get(key).and_then(Value::as_f64);
            number.filter(|n| n.is_finite() && *n > 0.0).ok_or_else(|| {
                Error::format(
                    path,
                    format!("{key} of the rotary scaling must be a positive number"),
                )
            })
        };
        match kind {
            None | Some("default") => Ok(Self::None),
            Some("linear") => Ok(Self::Linear { factor: number("factor")? }),
            Some("llama3") => Ok(Self::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_context: number("original_max_position_embeddings")?,
            }),
            Some(other) => {
                let problem = format!(
                    "rotary scaling of type {other:?} is not supported; default, linear and llama3 are"
                );
                Err(Error::format(path, problem))
            }
        }
    }

    /// The section `rope_scaling` of a `config.json`, which `transformers` 4.43 and later read; null
    /// where there is none.
    pub(crate) fn to_scaling(self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": positions(original_context),
            }),
        }
    }

    /// The section `rope_parameters`, which `transformers` 5 reads where the other is null.
    pub(crate) fn to_parameters(self, theta: f64) -> Value {
        let mut section = match self {
            Self::None => json!({"rope_type": "default"}),
            _ => self.to_scaling(),
        };
        section["rope_theta"] = json!(theta);
        section
    }

    /// Checks that it can be computed with.
    pub(crate) fn validate(&self) -> Result<()> {
        let fits = match *self {
            Self::None => true,
            Self::Linear { factor } => factor.is_finite() && factor > 0.0,
            Self::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_context,
            } => factor.is_finite() && factor > 0.0 && original_context > 0.0 && high > low,
        };
        if fits {
            return Ok(());
        }
        Err(Error::config(
            "rope_scaling",
            "factors must be positive, and high_freq_factor the larger",
        ))
    }
}

/// A number of positions: a whole one, unless another was computed from a GGUF's factors.
fn positions(number: f64) -> Value {
    if number.fract() == 0.0 && number < f64::from(u32::MAX) {
        json!(number as u64)
    } else {
        json!(number)
    }
}

/// Where factors go over from 1 to `factor`: `high_freq_factor` and the original context of a scaling
/// whose `low_freq_factor` is 1. (Scalings of which all three are in the same proportion are the same.)
fn transition(factors: &[f64], factor: f64, plain: &[f64]) -> Option<(f64, f64)> {
    // How much is kept of a frequency is linear in it, from 0 where a wave fits into the original
    // context as often as `low_freq_factor` says to 1 at `high_freq_factor`.
    let kept = |by: f64| (1.0 / by - 1.0 / factor) / (1.0 - 1.0 / factor);
    let all = || plain.iter().copied().zip(factors.iter().map(|&by| kept(by)));
    let mut between = all().filter(|&(_, kept)| (1e-6..1.0 - 1e-6).contains(&kept));
    let found = match (between.next(), between.next_back()) {
        (Some((fast, more)), Some((slow, less))) => {
            let slope = (more - less) / (fast - slow);
            let high = 1.0 - 1.0 / (more - slope * fast);
            (high, slope * TAU * (high - 1.0))
        }
        (Some((only, kept)), None) => {
            // Many are right: the published 4, unless that would change the frequencies beside it.
            let faster = plain.iter().rfind(|&&w| w > only).map(|w| w / only);
            let slower = plain.iter().find(|&&w| w < only).map(|w| w / only);
            let below =
                faster.filter(|by| by * kept < 1.0).map(|by| (by - 1.0) / (1.0 - by * kept));
            let above = slower.map(|by| (1.0 / by - 1.0) / kept);
            let bound = below.into_iter().chain(above).fold(f64::INFINITY, f64::min);
            let more = if bound < 3.0 { 0.9 * bound } else { 3.0 };
            (1.0 + more, TAU * (1.0 + more * kept) / only)
        }
        (None, _) => {
            let (fast, _) = all().rfind(|&(_, kept)| kept > 0.5)?;
            let (slow, _) = all().find(|&(_, kept)| kept < 0.5)?;
            (fast / slow, TAU / slow)
        }
    };
    Some(found).filter(|(high, original)| high.is_finite() && original.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn any_scaling_of_llama_3s_kind_is_found_in_its_factors(
            factor in 1.5f64..64.0, low in 0.5f64..4.0, width in 1.1f64..16.0,
            original in 16u32..65_536, pairs in 4usize..65, theta in 1e3f64..1e6,
        ) {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: low * width,
                original_context: original.into(),
            };
            let sizes = Architecture {
                dim: 2 * pairs,
                attention_heads: 1,
                kv_heads: 1,
                rope_theta: theta,
                ..Architecture::default()
            };
            let plain = rotary_frequencies(2 * pairs, theta);
            let slowest = f64::from(original) * plain[pairs - 1] / TAU;
            // Where no frequency is slow enough, nothing says by how much slow ones are divided.
            prop_assume!(slowest < low);
            let mut scaled = plain.clone();
            scaling.apply(&mut scaled);
            let factors: Vec<f64> =
                plain.iter().zip(&scaled).map(|(w, s)| f64::from((w / s) as f32)).collect();
            prop_assume!(factors[0] < 0.999 * factor);
            let found = RopeScaling::from_factors(&factors, &sizes);
            let found = found.ok_or_else(|| TestCaseError::fail(format!("{factors:?}")))?;
            let mut again = plain;
            found.apply(&mut again);
            for (found, scaled) in again.iter().zip(&scaled) {
                prop_assert!((found - scaled).abs() <= 2e-6 * scaled, "{found} {scaled}");
            }
        }
    }

    /// Llama 3.1 8B's, by the piecewise formula of its own definition in wavelengths.
    #[test]
    fn llama_3_scaling_is_the_published_one() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let plain = rotary_frequencies(128, 500_000.0);
        let mut scaled = plain.clone();
        scaling.apply(&mut scaled);
        let mut kinds = [0; 3];
        for (w, scaled) in plain.iter().zip(&scaled) {
            let wavelength = TAU / w;
            let expected = if wavelength < 8192.0 / 4.0 {
                kinds[0] += 1;
                *w
            } else if wavelength > 8192.0 {
                kinds[1] += 1;
                w / 8.0
            } else {
                kinds[2] += 1;
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (1.0 - smooth) * w / 8.0 + smooth * w
            };
            assert!((scaled - expected).abs() <= 1e-14 * expected);
        }
        assert!(kinds.iter().all(|&n| n > 0), "{kinds:?}");
        let sizes = Architecture {
            dim: 4096,
            attention_heads: 32,
            rope_theta: 500_000.0,
            ..Architecture::default()
        };
        let factors: Vec<f64> =
            plain.iter().zip(&scaled).map(|(w, s)| f64::from((w / s) as f32)).collect();
        assert_eq!(RopeScaling::from_factors(&factors, &sizes), Some(scaling));
        assert_eq!(RopeScaling::from_factors(&[1.0, 2.0, 3.0], &sizes), None);
        let mut other = factors;
        other[20] = 3.0;
        assert_eq!(RopeScaling::from_factors(&other, &sizes), None);
        other.fill(2.0);
        assert_eq!(RopeScaling::from_factors(&other, &sizes), None);
    }
}
