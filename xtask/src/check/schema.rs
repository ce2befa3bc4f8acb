//! The shape of a `report.json`, as the design has it.

use serde_json::Value;

/// What a value has to be.
enum Shape {
    Text,
    Number,
    Whole,
    Bool,
    Numbers,
    Object,
    Fields(&'static [(&'static str, Shape)]),
    Each(&'static Shape),
    /// As given, or null.
    Optional(&'static Shape),
}

use Shape::{Bool, Each, Fields, Number, Numbers, Object, Optional, Text, Whole};

const REPORT: Shape = Fields(&[
    ("experiment", Text),
    ("preset", Text),
    ("seed", Whole),
    ("device", Text),
    ("versions", Fields(&[("foretoken", Text), ("libtorch", Text)])),
    ("wall_seconds", Number),
    (
        "corpus",
        Fields(&[
            ("name", Text),
            ("sha256", Text),
            ("train_tokens", Whole),
            ("validation_tokens", Whole),
            ("test_tokens", Whole),
        ]),
    ),
    ("models", Each(&MODEL)),
    ("decoding", Each(&DECODING)),
    ("results", Object),
    ("paper", Object),
]);

const MODEL: Shape = Fields(&[
    ("name", Text),
    ("heads", Whole),
    ("head_type", Text),
    ("layers", Whole),
    ("dim", Whole),
    ("parameters", Whole),
    ("vocab", Whole),
    ("steps", Whole),
    ("tokens_seen", Whole),
    ("train_seconds", Number),
    ("tokens_per_second", Number),
    ("peak_memory_bytes", Whole),
    ("validation_loss", Numbers),
]);

const DECODING: Shape = Fields(&[
    ("model", Text),
    ("heads_used", Whole),
    ("batch", Whole),
    ("prompts", Whole),
    ("new_tokens", Whole),
    ("tokens_per_forward", Number),
    ("held_out_tokens_per_forward", Number),
    ("distinct_8grams", Number),
    ("acceptance", Numbers),
    ("tokens_per_second", Number),
    ("speedup", Number),
    ("speedup_over_baseline", Optional(&Number)),
    ("identical_outputs", Bool),
    ("mismatches", Whole),
    ("near_ties", Whole),
]);

/// Every place in which `report` is not of the shape; none if it is.
pub(crate) fn problems(report: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    compare(report, &REPORT, "report", &mut problems);
    if problems.is_empty() {
        problems.extend(inconsistencies(report));
    }
    problems
}

fn compare(value: &Value, shape: &Shape, place: &str, problems: &mut Vec<String>) {
    let wanted = match shape {
        Fields(fields) => {
            let Some(object) = value.as_object() else {
                problems.push(format!("{place} is {value}, not an object"));
                return;
            };
            for (name, shape) in *fields {
                match object.get(*name) {
                    Some(inner) => compare(inner, shape, &format!("{place}.{name}"), problems),
                    None => problems.push(format!("{place}.{name} is missing")),
                }
            }
            return;
        }
        Each(shape) => {
            let Some(items) = value.as_array().filter(|items| !items.is_empty()) else {
                problems.push(format!("{place} is not a list with at least one entry"));
                return;
            };
            for (index, item) in items.iter().enumerate() {
                compare(item, shape, &format!("{place}[{index}]"), problems);
            }
            return;
        }
        Optional(shape) => {
            if !value.is_null() {
                compare(value, shape, place, problems);
            }
            return;
        }
        Text => (value.is_string(), "text"),
        Number => (value.is_number(), "a number"),
        Whole => (value.is_u64(), "a whole number"),
        Bool => (value.is_boolean(), "true or false"),
        Object => (value.is_object(), "an object"),
        Numbers => {
            let numbers = value
                .as_array()
                .is_some_and(|items| !items.is_empty() && items.iter().all(Value::is_number));
            (numbers, "a list of numbers")
        }
    };
    if !wanted.0 {
        problems.push(format!("{place} is {value}, not {}", wanted.1));
    }
}

/// Relations between fields that a right report keeps.
fn inconsistencies(report: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let list = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    let length = |value: &Value| value.as_array().map_or(0, Vec::len) as u64;
    let models = list("models");
    for (index, model) in models.iter().enumerate() {
        let heads = model["heads"].as_u64().unwrap_or_default();
        if length(&model["validation_loss"]) != heads {
            problems
                .push(format!("report.models[{index}].validation_loss must have one entry a head"));
        }
    }
    for (index, row) in list("decoding").iter().enumerate() {
        let used = row["heads_used"].as_u64().unwrap_or_default();
        let Some(model) = models.iter().find(|model| model["name"] == row["model"]) else {
            problems.push(format!("report.decoding[{index}].model names no model of the report"));
            continue;
        };
        let heads = model["heads"].as_u64().unwrap_or_default();
        if !(1..=heads).contains(&used) {
            problems
                .push(format!("report.decoding[{index}].heads_used is not within 1 to {heads}"));
        }
        if length(&row["acceptance"]) != used {
            problems.push(format!(
                "report.decoding[{index}].acceptance must have one entry a head used"
            ));
        }
        let mismatches = row["mismatches"].as_u64().unwrap_or_default();
        if row["identical_outputs"].as_bool() != Some(mismatches == 0) {
            problems
                .push(format!("report.decoding[{index}].identical_outputs contradicts mismatches"));
        }
        for name in ["tokens_per_forward", "held_out_tokens_per_forward"] {
            let figure = row[name].as_f64().unwrap_or_default();
            if !(0.999..=used as f64 + 1e-3).contains(&figure) {
                problems.push(format!(
                    "report.decoding[{index}].{name} is {figure}, not within 1 to {used}"
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;

    /// A report of one model with four heads that meets the shape and the smoke bars.
    pub(crate) fn good_report() -> Value {
        let row = |used: u64, figure: f64| {
            json!({
                "model": "n4", "heads_used": used, "batch": 1, "prompts": 8, "new_tokens": 1024,
                "tokens_per_forward": figure, "held_out_tokens_per_forward": figure,
                "distinct_8grams": 0.5, "acceptance": vec![0.5; used as usize],
                "tokens_per_second": 900.0, "speedup": 1.1, "speedup_over_baseline": null,
                "identical_outputs": true, "mismatches": 0, "near_ties": 1,
            })
        };
        json!({
            "experiment": "speed", "preset": "smoke", "seed": 1, "device": "cpu",
            "versions": {"foretoken": "0.1.0", "libtorch": "2.11.0"},
            "wall_seconds": 100.5,
            "corpus": {"name": "python-code", "sha256": "00", "train_tokens": 1,
                       "validation_tokens": 1, "test_tokens": 1},
            "models": [{
                "name": "n4", "heads": 4, "head_type": "block", "layers": 6, "dim": 64,
                "parameters": 1000, "vocab": 264, "steps": 10, "tokens_seen": 1000,
                "train_seconds": 1.5, "tokens_per_second": 100.0, "peak_memory_bytes": 1000,
                "validation_loss": [2.4, 2.6, 2.8, 3.0],
            }],
            "decoding": [row(1, 1.0), row(4, 1.3)],
            "results": {}, "paper": {},
        })
    }

    /// `good_report` with one place changed.
    pub(crate) fn report_with(pointer: &str, value: Value) -> Value {
        let mut report = good_report();
        if let Some(place) = report.pointer_mut(pointer) {
            *place = value;
        }
        report
    }

    #[test]
    fn a_whole_report_passes() {
        assert_eq!(problems(&good_report()), Vec::<String>::new());
    }

    #[test]
    fn a_missing_field_is_named() {
        let mut report = good_report();
        if let Some(model) = report["models"][0].as_object_mut() {
            model.remove("vocab");
        }
        assert_eq!(problems(&report), ["report.models[0].vocab is missing"]);
    }

    #[test]
    fn values_of_another_kind_fail() {
        for (pointer, value) in [
            ("/seed", json!("one")),
            ("/seed", json!(-1)),
            ("/versions", json!([])),
            ("/models", json!([])),
            ("/models/0/validation_loss", json!([1.0, null, 2.0, 3.0])),
            ("/decoding/0/identical_outputs", json!("yes")),
            ("/wall_seconds", json!(null)),
        ] {
            assert_eq!(problems(&report_with(pointer, value)).len(), 1, "{pointer}");
        }
    }

    #[test]
    fn fields_that_contradict_each_other_fail() {
        for (pointer, value) in [
            ("/models/0/validation_loss", json!([2.0])),
            ("/decoding/1/model", json!("n9")),
            ("/decoding/1/acceptance", json!([1.0, 0.5])),
            ("/decoding/1/mismatches", json!(2)),
            ("/decoding/1/tokens_per_forward", json!(4.5)),
            ("/decoding/0/heads_used", json!(9)),
        ] {
            assert!(!problems(&report_with(pointer, value)).is_empty(), "{pointer}");
        }
    }
}
