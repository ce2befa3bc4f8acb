//! `report.html`: one file that needs no other.

use std::fmt::Write;

use super::chart::Panel;
use super::table::{self, Table};
use super::text::{count, escape};
use super::{CHART_STYLE, Source, figures, sample, story};

const PAGE_STYLE: &str = include_str!("page.css");

/// A page that needs no other file: its title as text, what it says as HTML.
pub(crate) fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{CHART_STYLE}{PAGE_STYLE}</style>\n\
         </head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        title = escape(title)
    )
}

/// The report as a page.
pub(crate) fn page(source: &Source) -> String {
    let report = source.report;
    let mut page = format!(
        "<p class=\"eyebrow\">foretoken · experiment {experiment} · preset {preset}</p>\n\
         <h1>{headline}</h1>\n<p class=\"lead\">{lead}</p>\n",
        experiment = escape(&report.experiment),
        preset = escape(&story::preset(report)),
        headline = escape(&story::headline(report)),
        lead = escape(&story::lead(source)),
    );
    page.push_str("<dl class=\"tiles\">");
    for (value, what) in story::tiles(report) {
        let _ = write!(page, "<div><dt>{}</dt><dd>{}</dd></div>", escape(&what), escape(&value));
    }
    page.push_str("</dl>\n");
    push_speed(&mut page, source);
    push_sample(&mut page, source);
    push_training(&mut page, source);
    push_out_of_domain(&mut page, source);
    push_agreement(&mut page, source);
    push_method(&mut page, source);
    let title = format!("foretoken: {}, {}", report.experiment, report.preset);
    // "n = 4" stays on one line.
    document(&title, &page).replace("n = ", "n\u{a0}=\u{a0}").replace("k = ", "k\u{a0}=\u{a0}")
}

fn push_speed(page: &mut String, source: &Source) {
    let drafting = figures::drafting(source.report);
    page.push_str("<h2>What k heads are worth</h2>\n");
    push_figure(
        page,
        &figures::legend(&drafting),
        &figures::speed(source.report),
        "n is how many tokens a model predicts at once, k how many heads are used. A forward pass writes the \
         next token and keeps the drafts that agree with it. Above: on real \
         text that no model has seen, and in seconds. Below: on text that the model writes itself, and \
         in seconds against the next-token baseline, which has as many parameters and no drafts.",
    );
    push_table(page, &table::decoding(source), 2);
    page.push_str("<p class=\"note\">Bold: the fastest k of each model. k = 1 is plain autoregressive decoding.</p>\n");
    if let Some(table) = table::compact(source) {
        let _ = writeln!(page, "<p>{}</p>", escape(&story::compact(source)));
        push_table(page, &table, 2);
    }
    push_figure(
        page,
        &figures::legend(&drafting),
        &figures::acceptance(source.report, &source.results),
        "How far drafts reach when all heads are used: the share of forward passes in which every draft \
         up to a head's was accepted.",
    );
}

fn push_sample(page: &mut String, source: &Source) {
    let Some(sample) = &source.results.sample else {
        return;
    };
    let _ = write!(
        page,
        "<h2>What it wrote</h2>\n<p>The model with {} heads, k = {}, on the test prompt that it \
         continues with the fewest loops: {} tokens in {} forward passes. A coloured token was drafted \
         earlier and only had to be checked.</p>\n{}{}\n",
        source.report.model(&sample.model).map_or(0, |m| m.heads),
        sample.heads_used,
        sample.tokens,
        sample.forward_passes,
        sample::legend(sample),
        sample::text(sample)
    );
}

fn push_training(page: &mut String, source: &Source) {
    page.push_str("<h2>Training</h2>\n");
    let models: Vec<_> = source.report.models.iter().collect();
    push_figure(
        page,
        &figures::legend(&models),
        &figures::losses(source.report, &source.results),
        "All models have the same parameters and see the same text; a model with n heads has n − 1 fewer \
         layers in its trunk. The steep start of the training loss is cut off.",
    );
    push_table(page, &table::models(source), 0);
    page.push_str("<p class=\"note\">Validation loss by head, nats per token:</p>\n");
    push_table(page, &table::losses(source), 0);
}

fn push_out_of_domain(page: &mut String, source: &Source) {
    let (Some(other), Some(table)) = (&source.results.out_of_domain, table::out_of_domain(source))
    else {
        return;
    };
    let _ = write!(
        page,
        "<h2>On another package’s code</h2>\n<p>Files of one library resemble each other. So the held-out \
         figures are taken on <code>{}</code> too: {} tokens of Python that has nothing to do with the \
         training text.</p>\n",
        escape(&other.corpus),
        count(other.tokens as u64)
    );
    push_table(page, &table, 0);
}

fn push_agreement(page: &mut String, source: &Source) {
    let (outputs, mismatches) = story::agreement(source.report);
    if outputs == 0 {
        return;
    }
    let near_ties: usize = source.report.decoding.iter().map(|row| row.near_ties).sum();
    let _ = write!(
        page,
        "<h2>Agreement with plain decoding</h2>\n<p>Of {} speculative outputs, {} differ from the autoregressive \
         ones where one token was clearly better, and {} where the two best were as good as equal.</p>\n",
        count(outputs as u64),
        count(mismatches as u64),
        count(near_ties as u64)
    );
    if !source.results.differences.is_empty() {
        page.push_str("<ul class=\"note\">");
        for difference in &source.results.differences {
            let _ = write!(page, "<li>{}</li>", escape(&table::difference(difference)));
        }
        page.push_str("</ul>\n");
    }
}

fn push_method(page: &mut String, source: &Source) {
    page.push_str("<h2>How it was measured</h2>\n<dl class=\"facts\">");
    for (term, text) in story::definitions(source) {
        let _ = write!(page, "<dt>{}</dt><dd>{}</dd>", escape(&term), escape(&text));
    }
    page.push_str("</dl>\n<h2>What made this report</h2>\n<dl class=\"facts\">");
    for (name, value) in story::provenance(source) {
        let _ = write!(page, "<dt>{}</dt><dd><code>{}</code></dd>", escape(name), escape(&value));
    }
    page.push_str("</dl>\n");
}

fn push_figure(page: &mut String, legend: &str, panels: &[Panel], caption: &str) {
    let _ = write!(page, "<figure>\n{legend}<div class=\"panels\">");
    for panel in panels {
        page.push_str(&panel.svg());
    }
    let _ = write!(page, "</div>\n<figcaption>{}</figcaption>\n</figure>\n", escape(caption));
}

/// A table, the last `theirs` columns set off as the paper's.
pub(crate) fn push_table(page: &mut String, table: &Table, theirs: usize) {
    let ours = table.columns.len() - theirs;
    let class = |column: usize| if column >= ours { " class=\"theirs\"" } else { "" };
    page.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
    for (column, name) in table.columns.iter().enumerate() {
        // A hyphen at which the name does not break.
        let name = escape(name).replace("speed-up", "speed\u{2011}up");
        let _ = write!(page, "<th{}>{name}</th>", class(column));
    }
    page.push_str("</tr></thead>\n");
    for group in table.rows.chunk_by(|a, b| a.group == b.group) {
        page.push_str("<tbody>");
        for (index, row) in group.iter().enumerate() {
            page.push_str("<tr>");
            for (column, cell) in row.cells.iter().enumerate() {
                let cell = escape(cell);
                let _ = match (column, index) {
                    (0, 0) => write!(page, "<th>{cell}</th>"),
                    (0, _) => write!(page, "<td></td>"),
                    _ if row.best && column < ours => {
                        write!(page, "<td class=\"best\">{cell}</td>")
                    }
                    _ => write!(page, "<td{}>{cell}</td>", class(column)),
                };
            }
            page.push_str("</tr>");
        }
        page.push_str("</tbody>\n");
    }
    page.push_str("</table></div>\n");
}
