//! Figures as people read them.

/// `1234567` as `1,234,567`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A count in a few characters: `950`, `1.7M`, `34M`, `2.1B`.
pub(crate) fn short(value: f64) -> String {
    let (scaled, unit) = match value {
        v if v < 1e3 => return format!("{v:.0}"),
        v if v < 999_500.0 => (v / 1e3, "k"),
        v if v < 999.5e6 => (v / 1e6, "M"),
        v => (v / 1e9, "B"),
    };
    if scaled < 9.95 { format!("{scaled:.1}{unit}") } else { format!("{scaled:.0}{unit}") }
}

/// A figure of any size, to four digits at most: `0`, `2.5e-4`, `0.0312`, `2.31`, `12.5k`, `3M`.
pub(crate) fn figure(value: f64) -> String {
    let size = value.abs();
    let (scaled, unit) = match size {
        v if v == 0.0 || !v.is_finite() => return format!("{size}"),
        v if v < 1e-2 => {
            let text = format!("{value:.2e}");
            let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
            return format!("{}e{power}", trimmed(digits));
        }
        v if v < 1e3 => (value, ""),
        v if v < 1e6 => (value / 1e3, "k"),
        v if v < 1e9 => (value / 1e6, "M"),
        _ => (value / 1e9, "B"),
    };
    let before_point = scaled.abs().log10().floor() as i32 + 1;
    let decimals = (4 - before_point.max(0)).max(0) as usize;
    format!("{}{unit}", trimmed(&format!("{scaled:.decimals$}")))
}

/// A decimal fraction without the zeros at its end.
fn trimmed(digits: &str) -> &str {
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    }
}

/// Seconds as `48 s`, `12 min 5 s` or `1 h 38 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, 0) => format!("{m} min"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// Bytes as `412 MB` or `3.2 GB`, in powers of ten.
pub(crate) fn bytes(value: u64) -> String {
    match value as f64 {
        v if v < 1e6 => format!("{:.0} kB", v / 1e3),
        v if v < 1e9 => format!("{:.0} MB", v / 1e6),
        v => format!("{:.1} GB", v / 1e9),
    }
}

/// A share as `74%`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// `a`, `a and b`, `a, b and c`.
pub(crate) fn and(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Text with the characters that HTML and SVG give a meaning to escaped.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\0'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_in_threes() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(35_700_123), "35,700,123");
    }

    #[test]
    fn short_counts_keep_two_digits() {
        assert_eq!(short(264.0), "264");
        assert_eq!(short(1_740_000.0), "1.7M");
        assert_eq!(short(999_700.0), "1.0M");
        assert_eq!(short(34_000_000.0), "34M");
    }

    #[test]
    fn figures_of_any_size_take_few_characters() {
        let all = [
            (0.0, "0"),
            (-0.0, "0"),
            (1e-4, "1e-4"),
            (2.5e-4, "2.5e-4"),
            (0.003, "3e-3"),
            (0.03125, "0.0312"),
            (0.5, "0.5"),
            (2.3104, "2.31"),
            (2.3106, "2.311"),
            (-2.5, "-2.5"),
            (250.0, "250"),
            (999.96, "1000"),
            (12_500.0, "12.5k"),
            (3e6, "3M"),
            (7.2e12, "7200B"),
        ];
        for (value, text) in all {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn durations_name_two_units_at_most() {
        assert_eq!(duration(47.6), "48 s");
        assert_eq!(duration(725.0), "12 min 5 s");
        assert_eq!(duration(5_880.0), "1 h 38 min");
    }

    #[test]
    fn escaped_text_has_no_markup_left() {
        assert_eq!(escape("<a b=\"c\">'&\u{0}"), "&lt;a b=&quot;c&quot;&gt;&#39;&amp;\u{fffd}");
    }

    #[test]
    fn lists_read_as_prose() {
        let parts = ["1", "2", "4"].map(str::to_owned);
        assert_eq!(and(&parts), "1, 2 and 4");
        assert_eq!(and(&parts[..1]), "1");
    }
}
