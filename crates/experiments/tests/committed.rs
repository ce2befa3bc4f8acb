//! The reports in `docs/results` are reports of this version.

use std::path::Path;

use foretoken_experiments::{EXPERIMENTS, Report, render};

#[test]
fn committed_reports_are_read_and_rendered_and_no_output_in_them_differs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results");
    for entry in std::fs::read_dir(&folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let experiment = name.split('-').next().unwrap_or_default();
        if !is_json || !EXPERIMENTS.contains(&experiment) {
            continue;
        }
        let report = Report::read(&path).unwrap();
        assert_eq!(name, format!("{}-{}.json", report.experiment, report.preset));
        let rendered = render(&report).unwrap();
        let headline = rendered.markdown.lines().next().unwrap();
        let committed = std::fs::read_to_string(path.with_extension("md")).unwrap();
        assert_eq!(committed.lines().next(), Some(headline), "{name}");
        assert!(path.with_extension("svg").exists());
        for row in &report.decoding {
            assert!(row.identical_outputs, "{name}: {} with k = {}", row.model, row.heads_used);
        }
    }
}
