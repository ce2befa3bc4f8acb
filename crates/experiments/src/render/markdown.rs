//! `report.md`: headline, tables and definitions.

use std::fmt::Write;

use super::table::{self, Table};
use super::text::count;
use super::{Source, story};

/// The report as Markdown.
pub(crate) fn page(source: &Source) -> String {
    let report = source.report;
    let mut page = format!(
        "# {}\n\n*Experiment `{}`, preset `{}`{}.* {}\n\n",
        story::headline(report),
        report.experiment,
        report.preset,
        story::of_heads(report),
        story::lead(source)
    );
    page.push_str("## Decoding\n\n");
    push_table(&mut page, &table::decoding(source));
    push_compact(&mut page, source);
    page.push_str(
        "Share of passes in which all drafts up to a head's were accepted, held-out text:\n\n",
    );
    push_table(&mut page, &table::acceptance(source));
    page.push_str("## Models\n\n");
    push_table(&mut page, &table::models(source));
    page.push_str("Validation loss by head, nats per token:\n\n");
    push_table(&mut page, &table::losses(source));
    push_out_of_domain(&mut page, source);
    push_agreement(&mut page, source);
    page.push_str("## How it was measured\n\n");
    for (term, text) in story::definitions(source) {
        let _ = writeln!(page, "- **{term}.** {text}");
    }
    page.push('\n');
    for (name, value) in story::provenance(source) {
        let _ = writeln!(page, "- {name}: {value}");
    }
    page
}

/// Headline and speed-up table.
pub(crate) fn summary(source: &Source) -> String {
    let mut text = format!("{}\n\n", story::headline(source.report));
    push_table(&mut text, &table::decoding(source));
    text
}

/// A table, its columns aligned so that it reads well as plain text too.
fn push_table(page: &mut String, table: &Table) {
    let lines: Vec<Vec<&str>> = std::iter::once(table.columns.iter().map(String::as_str).collect())
        .chain(table.rows.iter().map(|row| row.cells.iter().map(String::as_str).collect()))
        .collect();
    let widths: Vec<usize> = (0..table.columns.len())
        .map(|column| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        })
        .collect();
    for (index, line) in lines.iter().enumerate() {
        for (cell, &width) in line.iter().zip(&widths) {
            let _ = write!(page, "| {cell:>width$} ");
        }
        page.push_str("|\n");
        if index == 0 {
            for &width in &widths {
                let _ = write!(page, "| {}: ", "-".repeat(width.saturating_sub(1)));
            }
            page.push_str("|\n");
        }
    }
    page.push('\n');
}

fn push_compact(page: &mut String, source: &Source) {
    if let Some(table) = table::compact(source) {
        let _ = write!(page, "{}\n\n", story::compact(source));
        push_table(page, &table);
    }
}

fn push_out_of_domain(page: &mut String, source: &Source) {
    let (Some(other), Some(table)) = (&source.results.out_of_domain, table::out_of_domain(source))
    else {
        return;
    };
    let _ = write!(
        page,
        "## Another package's code\n\nFiles of one library resemble each other, so the held-out figures are \
         taken on `{}` too ({} tokens, sha256 {}).\n\n",
        other.corpus,
        count(other.tokens as u64),
        other.sha256
    );
    push_table(page, &table);
}

fn push_agreement(page: &mut String, source: &Source) {
    let (outputs, mismatches) = story::agreement(source.report);
    if outputs == 0 {
        return;
    }
    let _ = write!(
        page,
        "## Agreement with plain decoding\n\nOf {outputs} speculative outputs, {mismatches} differ from the autoregressive ones.\n\n"
    );
    for difference in &source.results.differences {
        let _ = writeln!(page, "- {}", table::difference(difference));
    }
    if !source.results.differences.is_empty() {
        page.push('\n');
    }
}
