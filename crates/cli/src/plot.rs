//! `foretoken plot`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use foretoken_experiments::{Metric, PlotOptions, XAxis, plot};
use foretoken_trunk::io::write_atomically;
use serde_json::json;

use crate::arguments::{MetricName, PlotArguments, XAxisName};
use crate::failure::usage;
use crate::output::Output;

/// The form that a picture is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Svg,
    Html,
}

pub(crate) fn run(arguments: &PlotArguments) -> anyhow::Result<ExitCode> {
    let form = match &arguments.out {
        Some(out) => match form(out) {
            Some(form) => form,
            None => return usage(format!("--out {}: end it in .svg or .html", out.display())),
        },
        None => Form::Svg,
    };
    if arguments.smooth == 0 {
        return usage("--smooth 0: the mean of no steps; 1 draws them as they are");
    }
    if arguments.heads.contains(&0) {
        return usage("--heads 0: heads count from 1");
    }
    if !arguments.heads.is_empty() && arguments.metric != MetricName::Loss {
        return usage("--heads: only losses have heads; leave it out, or --metric");
    }
    let drawn = plot(&arguments.runs, &options(arguments))?;
    let text = match form {
        Form::Svg => drawn.svg(),
        Form::Html => drawn.html(),
    };
    let mut output = Output::new();
    match &arguments.out {
        None => output.text(&text)?,
        Some(out) => {
            write_atomically(out, text.as_bytes())
                .with_context(|| format!("cannot write {}", out.display()))?;
            match arguments.json {
                true => output.json(&json!({
                    "out": out,
                    "runs": drawn.names(),
                    "charts": drawn.charts(),
                }))?,
                false => output.line(&out.display().to_string())?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn options(arguments: &PlotArguments) -> PlotOptions {
    PlotOptions {
        metric: match arguments.metric {
            MetricName::Loss => Metric::Loss,
            MetricName::GradNorm => Metric::GradNorm,
            MetricName::LearningRate => Metric::LearningRate,
            MetricName::TokensPerSecond => Metric::TokensPerSecond,
        },
        heads: arguments.heads.clone(),
        smooth: arguments.smooth,
        x: match arguments.x {
            XAxisName::Steps => XAxis::Steps,
            XAxisName::Tokens => XAxis::Tokens,
            XAxisName::Seconds => XAxis::Seconds,
        },
    }
}

/// The form that a file's name stands for.
fn form(out: &Path) -> Option<Form> {
    let ending = out.extension()?.to_str()?.to_ascii_lowercase();
    match ending.as_str() {
        "svg" => Some(Form::Svg),
        "html" | "htm" => Some(Form::Html),
        _ => None,
    }
}
