//! Whose turn it is: rows dealt out among corpora so that their shares hold at every moment.

use crate::{Error, Result};

/// Rows after which the turns repeat, at most (nearly: see [`rounded`]).
const PERIOD: u64 = 1 << 16;
/// The most corpora of a mixture.
const MAX_CORPORA: usize = 256;

/// The corpus of every row, and the number of a corpus's rows before any row, without a replay.
///
/// Weights become whole parts of a period. Within it, rows are dealt out by the rule of the
/// chairman assignment problem (Tijdeman 1980, "The chairman assignment problem", Discrete
/// Mathematics 32), by which each corpus is at every row less than one row away from its share.
/// A period gives each corpus its parts exactly, so that holds for ever.
#[derive(Debug)]
pub(crate) struct Turns {
    parts: Vec<u32>,
    /// The corpus of each row of a period.
    order: Vec<u16>,
    /// For each corpus, its rows in a period.
    places: Vec<Vec<u32>>,
}

impl Turns {
    pub(crate) fn new(weights: &[f64]) -> Result<Self> {
        let parts = whole_parts(weights)?;
        let order = deal(&parts);
        let mut places: Vec<Vec<u32>> = vec![Vec::new(); parts.len()];
        for (row, &corpus) in order.iter().enumerate() {
            places[usize::from(corpus)].push(row as u32);
        }
        Ok(Self { parts, order, places })
    }

    /// The corpora's shares of the rows, which add up to 1.
    pub(crate) fn shares(&self) -> Vec<f64> {
        let period = self.order.len() as f64;
        self.parts.iter().map(|&part| f64::from(part) / period).collect()
    }

    /// The corpus of a row.
    pub(crate) fn corpus(&self, row: u128) -> usize {
        usize::from(self.order[(row % self.period()) as usize])
    }

    /// How many of the rows before `row` are of a corpus.
    pub(crate) fn before(&self, corpus: usize, row: u128) -> u128 {
        let place = (row % self.period()) as u32;
        let in_period = self.places[corpus].partition_point(|&earlier| earlier < place);
        row / self.period() * u128::from(self.parts[corpus]) + in_period as u128
    }

    fn period(&self) -> u128 {
        self.order.len() as u128
    }
}

/// Weights as whole numbers without a common factor: exactly, where decimals as people write them
/// allow it, else rounded.
fn whole_parts(weights: &[f64]) -> Result<Vec<u32>> {
    let refuse = |problem: String| Err(Error::Mixture { problem });
    if weights.is_empty() {
        return refuse("there are none".to_owned());
    }
    if weights.len() > MAX_CORPORA {
        return refuse(format!("{} are more than {MAX_CORPORA}", weights.len()));
    }
    for (number, weight) in (1..).zip(weights) {
        if !(weight.is_finite() && *weight > 0.0) {
            return refuse(format!("corpus {number} has the weight {weight}, not a positive one"));
        }
    }
    match (0..=6).find_map(|digits| exact(weights, 10_f64.powi(digits))) {
        Some(parts) => Ok(parts),
        None => rounded(weights),
    }
}

/// The weights times `scale` without their common factor, if they are whole then and few.
fn exact(weights: &[f64], scale: f64) -> Option<Vec<u32>> {
    let whole: Vec<u64> = weights
        .iter()
        .map(|weight| {
            let scaled = weight * scale;
            let whole = scaled.round();
            let near = (scaled - whole).abs() <= 1e-9 * whole;
            (near && (1.0..=1e15).contains(&whole)).then_some(whole as u64)
        })
        .collect::<Option<_>>()?;
    let factor = whole.iter().fold(0, |a, &b| common_factor(a, b)).max(1);
    let period: u64 = whole.iter().map(|part| part / factor).sum();
    (period <= PERIOD).then(|| whole.iter().map(|part| (part / factor) as u32).collect())
}

fn common_factor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_factor(b, a % b) }
}

/// The weights as parts of about [`PERIOD`]; their roundings change that by half a part each.
fn rounded(weights: &[f64]) -> Result<Vec<u32>> {
    let largest = weights.iter().copied().fold(0.0, f64::max);
    let sum: f64 = weights.iter().map(|weight| weight / largest).sum();
    let part = |(number, weight): (usize, &f64)| {
        let part = (weight / largest / sum * PERIOD as f64).round();
        if part >= 1.0 {
            return Ok(part as u32);
        }
        let problem = format!(
            "the weight {weight} of corpus {number} is less than one row in {PERIOD}: raise it or \
             leave the corpus out"
        );
        Err(Error::Mixture { problem })
    };
    (1..).zip(weights).map(part).collect()
}

/// Tijdeman's rule, in whole numbers: of the corpora that have fallen behind their share far
/// enough, the one that would be too late soonest.
fn deal(parts: &[u32]) -> Vec<u16> {
    let period: u32 = parts.iter().sum();
    let (period, spread) = (i64::from(period), 2 * parts.len() as i64 - 2);
    // How far each corpus is behind, times the period, once the next row is counted.
    let mut behind = vec![0_i64; parts.len()];
    let mut order = Vec::with_capacity(period as usize);
    for _ in 0..period {
        for (behind, &part) in behind.iter_mut().zip(parts) {
            *behind += i64::from(part);
        }
        // Rows until a corpus is too late, times what all have in common.
        let time = |corpus: usize| (spread - 1) * period - spread * behind[corpus];
        let next = (0..parts.len())
            .filter(|&corpus| spread * behind[corpus] >= period)
            .min_by(|&a, &b| (time(a) * i64::from(parts[b])).cmp(&(time(b) * i64::from(parts[a]))))
            .unwrap_or_default();
        behind[next] -= period;
        order.push(next as u16);
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_as_people_write_them_are_taken_exactly() {
        for (weights, parts) in [
            (vec![1.0], vec![1]),
            (vec![0.7, 0.2, 0.1], vec![7, 2, 1]),
            (vec![3.0, 1.5], vec![2, 1]),
            (vec![0.29, 0.71], vec![29, 71]),
            (vec![200.0, 600.0, 200.0], vec![1, 3, 1]),
            (vec![0.3333, 0.6667], vec![3333, 6667]),
        ] {
            assert_eq!(whole_parts(&weights).unwrap(), parts);
        }
    }

    #[test]
    fn weights_that_make_no_mixture_are_refused() {
        let many = vec![1.0; 257];
        let cases: [(&[f64], &str); 7] = [
            (&[], "there are none"),
            (&[1.0, 0.0], "corpus 2 has the weight 0,"),
            (&[-1.0], "corpus 1 has the weight -1,"),
            (&[1.0, f64::NAN], "corpus 2 has the weight NaN,"),
            (&[f64::INFINITY], "corpus 1 has the weight inf,"),
            (&[1.0, 1e-9], "corpus 2 is less than one row in 65536"),
            (&many, "257 are more than 256"),
        ];
        for (weights, part) in cases {
            let message = Turns::new(weights).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn a_corpus_is_never_a_row_away_from_its_share(
            weights in prop::collection::vec(1_u32..200, 1..12),
            far in 0_u64..u64::MAX,
        ) {
            let floats: Vec<f64> = weights.iter().copied().map(f64::from).collect();
            let turns = Turns::new(&floats).unwrap();
            let sum: u128 = weights.iter().map(|&w| u128::from(w)).sum();
            let mut counts = vec![0_u128; weights.len()];
            for row in 0..2 * sum + 7 {
                for (corpus, (&count, &weight)) in counts.iter().zip(&weights).enumerate() {
                    prop_assert_eq!(turns.before(corpus, row), count);
                    prop_assert!((count * sum).abs_diff(row * u128::from(weight)) < sum);
                }
                counts[turns.corpus(row)] += 1;
            }
            // The same, as cheaply, anywhere.
            let far = u128::from(far) * 1000;
            let total: u128 = (0..weights.len()).map(|corpus| turns.before(corpus, far)).sum();
            prop_assert_eq!(total, far);
            for (corpus, &weight) in weights.iter().enumerate() {
                let count = turns.before(corpus, far);
                prop_assert!((count * sum).abs_diff(far * u128::from(weight)) < sum);
            }
        }

        #[test]
        fn odd_weights_are_rounded_to_a_small_part_of_a_share(
            weights in prop::collection::vec(0.01_f64..1.0, 2..8),
        ) {
            let turns = Turns::new(&weights).unwrap();
            let sum: f64 = weights.iter().sum();
            for (share, weight) in turns.shares().iter().zip(&weights) {
                prop_assert!((share - weight / sum).abs() < weights.len() as f64 / 65_536.0);
            }
        }
    }
}
