//! Bars, and whether they are met.

use serde_json::{Value, json};

/// What a benchmark has to show, one line each.
#[derive(Default)]
pub(crate) struct Verdicts {
    all: Vec<Verdict>,
}

struct Verdict {
    bar: String,
    found: String,
    met: bool,
}

impl Verdicts {
    /// Adds a bar and what was found.
    pub(crate) fn add(&mut self, bar: impl Into<String>, found: impl Into<String>, met: bool) {
        self.all.push(Verdict { bar: bar.into(), found: found.into(), met });
    }

    /// Adds "at least" over rows: met where every row reaches the bar. The rows that miss it are
    /// named, else the one that came nearest to it; nothing is added where there is no row.
    pub(crate) fn each_at_least(&mut self, what: &str, bar: f64, rows: &[(String, f64)]) {
        self.each(&format!("{what} at least {bar}"), rows, |value| value >= bar, f64::total_cmp);
    }

    /// Adds "at most" over rows, as [`each_at_least`](Self::each_at_least).
    pub(crate) fn each_at_most(&mut self, what: &str, bar: f64, rows: &[(String, f64)]) {
        self.each(
            &format!("{what} at most {bar}"),
            rows,
            |value| value <= bar,
            |a, b| b.total_cmp(a),
        );
    }

    fn each(
        &mut self,
        bar: &str,
        rows: &[(String, f64)],
        reaches: impl Fn(f64) -> bool,
        order: impl Fn(&f64, &f64) -> std::cmp::Ordering,
    ) {
        let show = |(name, value): &(String, f64)| format!("{value:.3} at {name}");
        let missing: Vec<String> =
            rows.iter().filter(|(_, value)| !reaches(*value)).map(show).collect();
        let Some(nearest) = rows.iter().min_by(|a, b| order(&a.1, &b.1)) else { return };
        let found = match missing.is_empty() {
            true => format!("{} rows, nearest {}", rows.len(), show(nearest)),
            false => format!("{} of {} rows: {}", missing.len(), rows.len(), missing.join(", ")),
        };
        self.add(bar, found, missing.is_empty());
    }

    /// Prints a line each; whether all are met.
    pub(crate) fn print(&self) -> bool {
        for verdict in &self.all {
            println!("{}", verdict.line());
        }
        self.all.iter().all(|verdict| verdict.met)
    }

    /// The same for results.
    pub(crate) fn to_json(&self) -> Value {
        let all = self.all.iter();
        all.map(|v| json!({ "bar": v.bar, "found": v.found, "met": v.met })).collect()
    }
}

impl Verdict {
    fn line(&self) -> String {
        let word = if self.met { "met:    " } else { "NOT met:" };
        format!("{word} {}: {}", self.bar, self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(values: &[f64]) -> Vec<(String, f64)> {
        values.iter().enumerate().map(|(i, &value)| (format!("row {i}"), value)).collect()
    }

    #[test]
    fn a_missed_bar_names_its_rows_and_a_met_one_the_nearest() {
        let mut verdicts = Verdicts::default();
        verdicts.each_at_least("ratio", 0.97, &rows(&[1.0, 0.96, 0.5]));
        verdicts.each_at_most("time", 1.05, &rows(&[1.0, 1.04]));
        let lines: Vec<String> = verdicts.all.iter().map(Verdict::line).collect();
        assert_eq!(
            lines,
            [
                "NOT met: ratio at least 0.97: 2 of 3 rows: 0.960 at row 1, 0.500 at row 2",
                "met:     time at most 1.05: 2 rows, nearest 1.040 at row 1",
            ]
        );
        assert!(!verdicts.print());
        assert_eq!(verdicts.to_json()[1]["met"], json!(true));
    }

    #[test]
    fn a_figure_that_is_not_a_number_meets_nothing_and_no_rows_say_nothing() {
        let mut verdicts = Verdicts::default();
        verdicts.each_at_least("ratio", 0.97, &rows(&[f64::NAN]));
        assert!(!verdicts.print());
        let mut none = Verdicts::default();
        none.each_at_least("ratio", 0.97, &[]);
        assert!(none.all.is_empty() && none.print());
    }
}
