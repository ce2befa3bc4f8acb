//! One model in another form: what both sides make of it, beside the file that it was made from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::greedy::{self, Parting};
use super::logits::MOST_DIFFERENCE;
use super::sides::{self, Ours, Theirs};
use super::{Check, Plan};
use crate::bench::answers::same_tokens;

const PROMPTS: usize = 3;

/// What came of holding a form against the file.
pub(super) struct Form {
    /// What transformers says of opening it.
    opened: Value,
    /// What its tokenizer makes of lines and of a chat.
    texts: Value,
    /// New tokens of every prompt.
    new_tokens: usize,
    /// Whether the file and the form are continued alike: by us, and by transformers.
    same_tokens: [bool; 2],
    /// Where we and transformers, both with the form, part.
    parted: Vec<Parting>,
    rows: Vec<Row>,
}

impl Form {
    /// Opens the model at `path`, a folder or a GGUF file, on both sides and asks for tokens of
    /// texts, logits and continuations: they have to be those of the file that it was made from.
    pub(super) fn hold(
        ours: &Ours<'_>,
        theirs: &mut Theirs,
        plan: &Plan,
        path: &Path,
    ) -> Result<Self> {
        let form = Ours { model: path, ..*ours };
        let prompts: Vec<(usize, &str)> = plan.some(PROMPTS).collect();
        let texts: Vec<String> = prompts.iter().map(|&(_, text)| text.to_owned()).collect();
        let mine = [ours.generate(&texts, plan.tokens)?, form.generate(&texts, plan.tokens)?];
        let of_file = theirs.generate(&texts, plan.tokens)?;
        let opened = theirs.ask(&json!({"do": "open", "path": sides::text(path)?}))?;
        let of_form = theirs.generate(&texts, plan.tokens)?;
        let parted = greedy::partings(theirs, &prompts, [&mine[1], &of_form])?;
        let rows = prompts
            .iter()
            .map(|&prompt| Row::ask([ours, &form], theirs, prompt))
            .collect::<Result<Vec<Row>>>()?;
        let texts = theirs.ask(&json!({
            "do": "same_texts",
            "count": plan.lines,
            "seed": plan.seed,
            "corpus": sides::text(&ours.workspace.python_code())?,
        }))?;
        theirs.ask(&json!({"do": "close"}))?;
        let same_tokens = [same_tokens(&mine[0], &mine[1]), same_tokens(&of_file, &of_form)];
        Ok(Self { opened, texts, new_tokens: plan.tokens, same_tokens, parted, rows })
    }

    /// The check that this makes, with a name for people, what else is amiss, and other figures.
    pub(super) fn check(self, name: &str, more: Vec<String>, figures: &Value) -> Result<Check> {
        let mut problems = self.problems()?;
        problems.extend(more);
        let mut all = self.figures();
        for (key, value) in figures.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        all["problems"] = json!(problems);
        Ok(Check {
            passed: problems.is_empty(),
            summary: with_problems(format!("{name}: {}", self.summary()), &problems),
            figures: all,
        })
    }

    /// All that is amiss, in words.
    fn problems(&self) -> Result<Vec<String>> {
        let mut problems = words(&self.opened["problems"])?;
        let (lines, differing) = (&self.texts["lines"], &self.texts["differing"]);
        let found = [
            (*differing != 0, format!("{differing} of {lines} lines get other tokens")),
            (self.texts["same_chat"] != true, "a chat is written otherwise".to_owned()),
            (!self.same_tokens[0], "we continue a prompt otherwise".to_owned()),
            (!self.same_tokens[1], "transformers continues a prompt otherwise".to_owned()),
            (!self.same_bits(), "our logits are not the same bits".to_owned()),
            (self.largest(Row::to_file) > MOST_DIFFERENCE, "logits differ".to_owned()),
            (self.largest(Row::to_ours) > MOST_DIFFERENCE, "ours differ".to_owned()),
        ];
        problems.extend(found.into_iter().filter_map(|(amiss, problem)| amiss.then_some(problem)));
        let mismatches = self.parted.iter().filter(|parting| !parting.is_near_tie());
        problems.extend(mismatches.map(Parting::line));
        Ok(problems)
    }

    fn summary(&self) -> String {
        format!(
            "transformers opens a {}, its logits at most {:.2e} from those of the GGUF file and {:.2e} \
             from ours (bar: {MOST_DIFFERENCE}); {} prompts over {} tokens, {} lines",
            self.opened["class"].as_str().unwrap_or("model without a name"),
            self.largest(Row::to_file),
            self.largest(Row::to_ours),
            self.rows.len(),
            self.new_tokens,
            self.texts["lines"],
        )
    }

    fn figures(&self) -> Value {
        json!({
            "class": self.opened["class"], "dtype": self.opened["dtype"],
            "lines": self.texts["lines"], "differing_lines": self.texts["differing"],
            "same_chat": self.texts["same_chat"],
            "new_tokens_each": self.new_tokens,
            "same_tokens": {"ours": self.same_tokens[0], "transformers": self.same_tokens[1]},
            "parted": self.parted.iter().map(Parting::json).collect::<Vec<_>>(),
            "same_bits": self.same_bits(),
            "largest_difference": self.largest(Row::to_file),
            "largest_difference_from_ours": self.largest(Row::to_ours),
            "prompts": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "bars": {"most_difference": MOST_DIFFERENCE},
        })
    }

    fn largest(&self, difference: fn(&Row) -> f64) -> f64 {
        self.rows.iter().map(difference).fold(0.0, f64::max)
    }

    fn same_bits(&self) -> bool {
        self.rows.iter().all(|row| row.same_bits)
    }
}

/// A prompt's logits, from the form and from the file.
struct Row {
    prompt: usize,
    /// What transformers found: how far its logits of the form lie from its own of the file, and
    /// from ours of the form.
    answer: Value,
    /// Whether ours of the form and of the file are the same.
    same_bits: bool,
}

impl Row {
    fn ask(
        [file, form]: [&Ours<'_>; 2],
        theirs: &mut Theirs,
        (prompt, text): (usize, &str),
    ) -> Result<Self> {
        let paths = [file.file("of-file.safetensors")?, file.file("of-form.safetensors")?];
        file.logits(text, &paths[0])?;
        form.logits(text, &paths[1])?;
        let stored = sides::text(&paths[1])?;
        let answer = theirs.ask(&json!({"do": "logits", "prompt": text, "file": stored}))?;
        let same_bits = read(&paths[0])? == read(&paths[1])?;
        Ok(Self { prompt, answer, same_bits })
    }

    /// It says null of other tokens, another shape and of what is not a number.
    fn to_file(&self) -> f64 {
        self.answer["to_first"].as_f64().unwrap_or(f64::INFINITY)
    }

    fn to_ours(&self) -> f64 {
        self.answer["largest_difference"].as_f64().unwrap_or(f64::INFINITY)
    }

    fn json(&self) -> Value {
        json!({
            "prompt": self.prompt, "tokens": self.answer["tokens"],
            "largest_difference": self.answer["to_first"],
            "largest_difference_from_ours": self.answer["largest_difference"],
            "same_bits": self.same_bits,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The texts of a JSON array.
pub(super) fn words(array: &Value) -> Result<Vec<String>> {
    let words = array.as_array().context("an answer without problems")?;
    words
        .iter()
        .map(|word| word.as_str().map(str::to_owned).context("a problem that is no text"))
        .collect()
}

/// A summary with a line for each problem.
pub(super) fn with_problems(summary: String, problems: &[String]) -> String {
    let mut lines = vec![summary];
    lines.extend(problems.iter().map(|problem| format!("  {problem}")));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&mut Form);

    /// A form of which all is well.
    fn form() -> Form {
        let row = Row {
            prompt: 0,
            answer: json!({"tokens": 3, "largest_difference": 1e-4, "to_first": 0.0}),
            same_bits: true,
        };
        Form {
            opened: json!({"class": "LlamaForCausalLM", "dtype": "torch.float32", "problems": []}),
            texts: json!({"lines": 10, "differing": 0, "same_chat": true}),
            new_tokens: 4,
            same_tokens: [true, true],
            parted: Vec::new(),
            rows: vec![row],
        }
    }

    #[test]
    fn all_that_is_amiss_is_named() -> Result<()> {
        assert!(form().check("folder", Vec::new(), &json!({}))?.passed);
        let spoilt: [(Spoil, &str); 8] = [
            (|form| form.opened["problems"] = json!(["missing_keys: x"]), "missing_keys: x"),
            (|form| form.texts["differing"] = json!(2), "2 of 10 lines"),
            (|form| form.texts["same_chat"] = json!(false), "chat"),
            (|form| form.same_tokens[0] = false, "we continue"),
            (|form| form.same_tokens[1] = false, "transformers continues"),
            (|form| form.rows[0].same_bits = false, "same bits"),
            (|form| form.rows[0].answer["to_first"] = Value::Null, "logits differ"),
            (|form| form.rows[0].answer["largest_difference"] = json!(0.1), "ours differ"),
        ];
        for (spoil, words) in spoilt {
            let mut form = form();
            spoil(&mut form);
            let check = form.check("folder", Vec::new(), &json!({}))?;
            assert!(!check.passed && check.summary.contains(words), "{}", check.summary);
        }
        Ok(())
    }

    #[test]
    fn what_else_is_found_joins_the_rest() -> Result<()> {
        let more = vec!["a tensor is missing".to_owned()];
        let check = form().check("file", more, &json!({"tensors": 7}))?;
        assert!(!check.passed && check.summary.ends_with("\n  a tensor is missing"));
        assert_eq!(check.figures["tensors"], 7);
        assert_eq!(check.figures["problems"], json!(["a tensor is missing"]));
        Ok(())
    }
}
