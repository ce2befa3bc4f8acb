//! Pictures of small runs.

use std::fs;
use std::path::Path;

use super::*;

/// A run of so many steps and heads in `folder`, its losses falling from `loss`.
fn run(folder: &Path, steps: u64, heads: usize, loss: f64) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let lines = (1..=steps).map(|step| {
        let losses: Vec<f64> =
            (0..heads).map(|head| loss + head as f64 + 1.0 / step as f64).collect();
        let line = serde_json::json!({
            "step": step, "tokens": 64 * step, "losses": losses, "learning_rate": 1e-3,
            "grad_norm": null, "seconds": 30.0 * step as f64, "tokens_per_second": 1234.5,
        });
        format!("{line}\n")
    });
    fs::write(folder.join("metrics.jsonl"), lines.collect::<String>()).unwrap();
    folder.to_owned()
}

fn options() -> PlotOptions {
    PlotOptions::default()
}

/// The points of every line of a picture.
fn polylines(svg: &str) -> Vec<Vec<(f64, f64)>> {
    let parts = svg.split("<polyline ").skip(1);
    let points = parts.map(|part| {
        let list = part.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let point = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        list.split(' ').map(point).collect()
    });
    points.collect()
}

#[test]
fn each_head_has_a_chart_and_each_run_that_has_it_a_line_inside_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [run(&dir.path().join("one"), 50, 1, 2.0), run(&dir.path().join("two"), 30, 2, 1.5)];
    let plot = plot(&runs, &options()).unwrap();
    assert_eq!(plot.names(), ["one", "two"]);
    assert_eq!(plot.charts(), 2);
    let lines = polylines(&plot.svg());
    assert_eq!(lines.len(), 3);
    for line in &lines {
        let (width, height) = crate::render::chart::SIZE;
        assert!(line.iter().all(|&(x, y)| x > 0.0 && x < width && y > 0.0 && y < height));
        assert!(line.windows(2).all(|pair| pair[0].0 < pair[1].0), "lines go to the right");
        // Losses fall: each point is drawn below the one before.
        assert!(line.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }
    // The run of more steps reaches further to the right.
    assert!(lines[0].last().unwrap().0 > lines[1].last().unwrap().0);
}

#[test]
fn heads_can_be_chosen_and_one_that_no_run_has_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [run(&dir.path().join("one"), 9, 1, 2.0), run(&dir.path().join("two"), 9, 3, 1.5)];
    let chosen = plot(&runs, &PlotOptions { heads: vec![3, 1], ..options() }).unwrap();
    assert_eq!(chosen.charts(), 2);
    let svg = chosen.svg();
    assert!(svg.find("Loss of head 1").unwrap() < svg.find("Loss of head 3").unwrap());
    assert_eq!(polylines(&svg).len(), 3);
    let error = plot(&runs, &PlotOptions { heads: vec![4], ..options() }).unwrap_err().to_string();
    assert!(error.contains("head 4") && error.contains("1, 2, 3"), "{error}");
}

#[test]
fn heads_that_were_trained_alone_keep_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let folder = run(&dir.path().join("grown"), 9, 2, 2.0);
    let checkpoint = folder.join("checkpoints/step-9");
    fs::create_dir_all(&checkpoint).unwrap();
    fs::write(checkpoint.join("training.json"), "{\"config\":{\"heads\":{\"train\":\"alone\"}}}")
        .unwrap();
    let svg = plot(&[folder], &options()).unwrap().svg();
    assert!(!svg.contains("head 1,") && svg.contains("head 2,") && svg.contains("head 3,"));
}

#[test]
fn every_metric_and_axis_is_drawn_and_one_without_a_finite_value_refused() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [run(dir.path(), 20, 2, 2.0)];
    for metric in [Metric::LearningRate, Metric::TokensPerSecond] {
        for x in [XAxis::Steps, XAxis::Tokens, XAxis::Seconds] {
            let plot = plot(&runs, &PlotOptions { metric, x, ..options() }).unwrap();
            let lines = polylines(&plot.svg());
            assert_eq!((plot.charts(), lines.len(), lines[0].len()), (1, 1, 20));
        }
    }
    let minutes = PlotOptions { x: XAxis::Seconds, ..options() };
    assert!(plot(&runs, &minutes).unwrap().svg().contains("minutes of training"));
    let norm = PlotOptions { metric: Metric::GradNorm, ..options() };
    let error = plot(&runs, &norm).unwrap_err().to_string();
    assert!(error.contains("gradient norm"), "{error}");
}

#[test]
fn long_trainings_have_few_points_and_smoothed_ones_are_calmer() {
    let dir = tempfile::tempdir().unwrap();
    let lines = (1..=5000u32)
        .map(|step| format!("{{\"step\":{step},\"losses\":[{}]}}\n", 2.0 + f64::from(step % 2)));
    fs::write(dir.path().join("metrics.jsonl"), lines.collect::<String>()).unwrap();
    let run = [dir.path().to_owned()];
    let reach = |smooth| {
        let plot = plot(&run, &PlotOptions { smooth, ..options() }).unwrap();
        let points = &plot.panels[0].series[0].points;
        assert!(points.len() <= 401);
        // The first points are means of fewer steps.
        let values: Vec<f64> = points.iter().skip(20).map(|point| point.1).collect();
        assert_eq!(plot.svg().contains("mean of"), smooth > 1);
        values.iter().copied().fold(0.0, f64::max) - values.iter().copied().fold(9.0, f64::min)
    };
    assert!(reach(1) > 4.0 * reach(200));
}

#[test]
fn names_are_escaped_and_pages_refer_to_nothing_outside() {
    let dir = tempfile::tempdir().unwrap();
    let runs =
        [run(&dir.path().join("a<b> & \"c\""), 9, 1, 2.0), run(&dir.path().join("x"), 9, 1, 3.0)];
    let plot = plot(&runs, &options()).unwrap();
    for text in [plot.svg(), plot.html()] {
        assert!(text.contains("a&lt;b&gt; &amp; &quot;c&quot;"));
        assert!(!text.contains("a<b>") && !text.contains("& \""));
        let own = text.replace("http://www.w3.org/2000/svg", "");
        for reference in ["http", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!own.contains(reference), "{reference}");
        }
        for tag in ["svg", "g", "text", "polyline", "title", "table", "tr", "style"] {
            let opened = text.matches(&format!("<{tag}>")).count()
                + text.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, text.matches(&format!("</{tag}>")).count(), "<{tag}>");
        }
    }
}

#[test]
fn the_page_has_each_runs_last_values() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [run(&dir.path().join("one"), 50, 1, 2.0), run(&dir.path().join("two"), 10, 2, 1.5)];
    let html = plot(&runs, &options()).unwrap().html();
    // 2 + 1/50, and 1.5 + 1/10, and a head more; head 2 of the first is none.
    for cell in ["2.02", "1.6", "2.6", "–", ">50<", ">10<", "3.2k", ">640<"] {
        assert!(html.contains(cell), "{cell}");
    }
}

#[test]
fn equal_folder_names_are_told_apart_and_the_same_run_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["a/run", "b/run"].map(|name| run(&dir.path().join(name), 9, 1, 2.0));
    assert_eq!(plot(&[one.clone(), two], &options()).unwrap().names(), ["a/run", "b/run"]);
    let again = one.join("metrics.jsonl");
    let error = plot(&[one, again], &options()).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

#[test]
fn what_cannot_be_drawn_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = |runs: &[PathBuf]| format!("{:#}", plot(runs, &options()).unwrap_err());
    assert!(error(&[]).contains("no run"));
    assert!(error(&[dir.path().to_owned()]).contains("has no metrics.jsonl"));
    assert!(error(&[dir.path().join("nowhere")]).contains("nowhere"));
    let file = dir.path().join("metrics.jsonl");
    fs::write(&file, "").unwrap();
    assert!(error(std::slice::from_ref(&file)).contains("no line of a step"));
    fs::write(&file, "{\"step\":1,\"losses\":[1]}\nhalf\n{\"step\":2,\"losses\":[1]}\n").unwrap();
    let damaged = error(std::slice::from_ref(&file));
    assert!(damaged.contains("metrics.jsonl is damaged: line 2"), "{damaged}");
    fs::write(&file, "{\"step\":1}\n").unwrap();
    assert!(error(&[file]).contains("no step of these runs has a loss"));
    let many: Vec<PathBuf> = (0..16).map(|i| dir.path().join(i.to_string())).collect();
    assert!(error(&many).contains("16 runs"));
}

#[test]
fn a_last_line_that_was_cut_off_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let folder = run(dir.path(), 9, 1, 2.0);
    let file = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, &text[..text.len() - 20]).unwrap();
    let plot = plot(&[folder], &options()).unwrap();
    assert_eq!(plot.panels[0].series[0].points.len(), 8);
}

#[test]
fn numbers_that_no_training_has_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metrics.jsonl");
    let text = "{\"step\":1,\"losses\":[1e308]}\n{\"step\":2,\"losses\":[-1e308]}\n\
                {\"step\":3,\"losses\":[5e-324]}\n{\"step\":18446744073709551615,\"losses\":[2]}\n";
    fs::write(&file, text).unwrap();
    let svg = plot(&[file], &options()).unwrap().svg();
    assert!(!svg.contains("inf") && !svg.contains("NaN"));
    assert!(svg.len() < 100_000);
}
