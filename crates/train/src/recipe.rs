//! From TOML text to a checked [`TrainConfig`]: `--set`, unknown keys, impossible combinations.

use foretoken_heads::{BlockHead, HeadsConfig, Registry};
use foretoken_loss::Curriculum;
use toml::{Table, Value};

use crate::config::{
    DataSection, Documents, Execution, HeadTraining, HeadsSection, TrainConfig, default_norm_eps,
    default_rope_theta,
};
use crate::loss_section::LossSection;
use crate::{Error, schedule};

/// Every section with its keys; what a mistyped key is compared with.
const KEYS: &[(&str, &[&str])] = &[
    (
        "model",
        &[
            "init_from",
            "layers",
            "attention_heads",
            "kv_heads",
            "dim",
            "ffn",
            "context",
            "head_dim",
            "rope_theta",
            "norm_eps",
        ],
    ),
    ("heads", &["type", "count", "train", "targets", "draft_vocabulary", "execution"]),
    (
        "data",
        &[
            "corpus",
            "path",
            "mixture",
            "tokenizer",
            "documents",
            "batches",
            "generated",
            "prompt_tokens",
            "prompt_at",
            "temperature",
        ],
    ),
    (
        "optimizer",
        &[
            "type",
            "learning_rate",
            "muon_learning_rate",
            "muon_momentum",
            "muon_precision",
            "beta1",
            "beta2",
            "epsilon",
            "weight_decay",
            "clip",
            "schedule",
            "warmup",
            "final_fraction",
            "decay_fraction",
        ],
    ),
    ("loss", &["weights", "ratio", "lambda", "curriculum", "offsets", "label_smoothing", "z_loss"]),
    (
        "train",
        &[
            "steps",
            "batch",
            "sequence",
            "seed",
            "checkpoint_every",
            "precision",
            "tf32",
            "accumulate",
            "recompute",
            "shard_optimizer",
            "keep",
            "validate",
        ],
    ),
];

/// Parses `text` (called `name` in errors), applies `sets`, checks the result.
pub(crate) fn parse(text: &str, name: &str, sets: &[String]) -> Result<TrainConfig, Error> {
    let mut table: Table = text.parse().map_err(|error| syntax_error(name, text, &error))?;
    for set in sets {
        apply(&mut table, set)?;
    }
    known_keys(&table, name)?;
    let config: TrainConfig =
        Value::Table(table).try_into().map_err(|error: toml::de::Error| Error::Config {
            name: name.to_owned(),
            message: one_line(&error.to_string()),
        })?;
    check(&config)?;
    Ok(config)
}

fn syntax_error(name: &str, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| {
        1 + text.as_bytes()[..span.start.min(text.len())]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
    });
    Error::Config { name: format!("{name}, line {line}"), message: one_line(error.message()) }
}

/// The reader's message on one line, its types in words that a recipe's writer knows.
fn one_line(message: &str) -> String {
    let word = |word| match word {
        "u64" | "usize" | "u32" => "a whole number of 0 or more",
        "i64" => "a whole number",
        "f64" => "a number",
        word => word,
    };
    message.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// Puts one `section.key=value` into the table. The value is TOML; what isn't is a string.
fn apply(table: &mut Table, set: &str) -> Result<(), Error> {
    let malformed = || Error::Set { set: set.to_owned() };
    let (key, value) = set.split_once('=').ok_or_else(malformed)?;
    let (section, key) = key.trim().split_once('.').ok_or_else(malformed)?;
    // A text keeps its spaces, unless there are some around the sign as well.
    let value = if value.starts_with(char::is_whitespace) { value.trim() } else { value };
    let value = format!("value = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value").filter(|_| parsed.is_empty()))
        .unwrap_or_else(|| Value::String(value.to_owned()));
    let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
    match entry {
        Value::Table(entries) => {
            entries.insert(key.to_owned(), value);
            Ok(())
        }
        _ => Err(malformed()),
    }
}

fn known_keys(table: &Table, name: &str) -> Result<(), Error> {
    let all = || {
        KEYS.iter()
            .flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")))
    };
    let unknown = |key: String, nearest: Option<String>| {
        Err(Error::UnknownKey {
            name: name.to_owned(),
            hint: nearest.map_or_else(String::new, |near| format!("; did you mean `{near}`?")),
            key,
        })
    };
    for (section, value) in table {
        let known = KEYS.iter().find(|(known, _)| known == section);
        match (known, value) {
            (Some((_, keys)), Value::Table(entries)) => {
                if let Some(key) = entries.keys().find(|key| !keys.contains(&key.as_str())) {
                    let written = format!("{section}.{key}");
                    let near = nearest_key(&written, section, key, all());
                    return unknown(written, near);
                }
            }
            (Some(_), _) => {
                return Err(Error::Config {
                    name: name.to_owned(),
                    message: format!(
                        "`{section}` is a section: write [{section}] and its keys below"
                    ),
                });
            }
            (None, Value::Table(_)) => {
                let sections = KEYS.iter().map(|(section, _)| (*section).to_owned());
                let near = nearest(section, sections, 2);
                return unknown(section.clone(), near.map(|near| format!("[{near}]")));
            }
            (None, _) => {
                let near = nearest_key(section, "", section, all());
                return unknown(section.clone(), near);
            }
        }
    }
    Ok(())
}

/// The known key that `written` most likely means: one of its own section that is close, else
/// the same or a close name in another section.
fn nearest_key(
    written: &str,
    section: &str,
    key: &str,
    all: impl Iterator<Item = String> + Clone,
) -> Option<String> {
    let inside =
        all.clone().filter(|known| known.split_once('.').is_some_and(|(s, _)| s == section));
    nearest(written, inside, allowed_edits(key)).or_else(|| {
        all.map(|known| {
            let name = known.split_once('.').map_or("", |(_, name)| name);
            (edit_distance(key, name), known)
        })
        .filter(|(distance, _)| *distance <= allowed_edits(key))
        .min()
        .map(|(_, known)| known)
    })
}

fn nearest(written: &str, known: impl Iterator<Item = String>, allowed: usize) -> Option<String> {
    known
        .map(|known| (edit_distance(written, &known), known))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, known)| known)
}

fn allowed_edits(key: &str) -> usize {
    (key.chars().count() / 2).clamp(2, 6)
}

/// Levenshtein's distance: the fewest insertions, deletions and replacements.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// Refuses combinations that can't be trained, naming the key.
pub(crate) fn check(config: &TrainConfig) -> Result<(), Error> {
    match config.model.init_from {
        None => check_model(config)?,
        Some(_) => check_sizes_are_left_out(config)?,
    }
    require(config.heads.count <= HeadsConfig::MOST, "heads.count", || {
        format!("{} heads are more than {}", config.heads.count, HeadsConfig::MOST)
    })?;
    check_heads_alone(config)?;
    check_written_text(config)?;
    check_mixture(&config.data)?;
    let train = &config.train;
    positive("train.steps", train.steps)?;
    check_optimizer(config)?;
    positive("train.batch", train.batch as u64)?;
    positive("train.sequence", train.sequence as u64)?;
    positive("train.keep", train.keep as u64)?;
    let parts = train.accumulate;
    require(parts > 0 && train.batch.is_multiple_of(parts), "train.accumulate", || {
        format!("train.batch = {} cannot be divided into {parts} equal parts", train.batch)
    })?;
    config.loss.check(config.heads.count)?;
    let (heads, curriculum) = (config.heads.count as u64, config.loss.curriculum);
    require(train.steps >= heads || curriculum == Curriculum::None, "loss.curriculum", || {
        format!("train.steps = {} leave {heads} heads no step each", train.steps)
    })?;
    let context = config.model.context;
    require(train.sequence <= context || context == 0, "train.sequence", || {
        format!("{} tokens are more than model.context = {}", train.sequence, config.model.context)
    })?;
    require(i64::try_from(train.seed).is_ok(), "train.seed", || {
        "seeds go from 0 to 2^63 - 1".to_owned()
    })
}

fn check_model(config: &TrainConfig) -> Result<(), Error> {
    let model = &config.model;
    for (key, value) in [
        ("model.layers", model.layers),
        ("model.attention_heads", model.attention_heads),
        ("model.kv_heads", model.kv_heads()),
        ("model.dim", model.dim),
        ("model.ffn", model.ffn),
        ("model.context", model.context),
        ("heads.count", config.heads.count),
    ] {
        positive(key, value as u64)?;
    }
    check_heads(config)?;
    require(
        model.head_dim.is_some() || model.dim.is_multiple_of(model.attention_heads),
        "model.dim",
        || {
            format!(
                "{} is not a multiple of model.attention_heads = {}",
                model.dim, model.attention_heads
            )
        },
    )?;
    require(model.head_dim() > 0 && model.head_dim().is_multiple_of(2), "model.head_dim", || {
        format!("rotary embeddings need an even width of a head, not {}", model.head_dim())
    })?;
    require(model.attention_heads.is_multiple_of(model.kv_heads()), "model.kv_heads", || {
        format!(
            "model.attention_heads = {} is not a multiple of {}",
            model.attention_heads,
            model.kv_heads()
        )
    })?;
    within("model.rope_theta", model.rope_theta, f64::MIN_POSITIVE, f64::MAX)?;
    within("model.norm_eps", model.norm_eps, 0.0, 1.0)
}

/// A pretrained model brings its sizes and its tokenizer.
fn check_sizes_are_left_out(config: &TrainConfig) -> Result<(), Error> {
    let model = &config.model;
    for (key, value) in [
        ("model.layers", model.layers),
        ("model.attention_heads", model.attention_heads),
        ("model.kv_heads", model.kv_heads.unwrap_or(0)),
        ("model.head_dim", model.head_dim.unwrap_or(0)),
        ("model.dim", model.dim),
        ("model.ffn", model.ffn),
        ("model.context", model.context),
    ] {
        require(value == 0, key, || {
            "comes with the model in model.init_from: leave one of the two out".to_owned()
        })?;
    }
    for (key, value, default) in [
        ("model.rope_theta", model.rope_theta, default_rope_theta()),
        ("model.norm_eps", model.norm_eps, default_norm_eps()),
    ] {
        require(value.to_bits() == default.to_bits(), key, || {
            "comes with the model in model.init_from: leave one of the two out".to_owned()
        })?;
    }
    require(config.data.tokenizer == DataSection::default().tokenizer, "data.tokenizer", || {
        "comes with the model in model.init_from: leave it out".to_owned()
    })?;
    positive("heads.count", config.heads.count as u64)
}

fn check_heads_alone(config: &TrainConfig) -> Result<(), Error> {
    let (heads, defaults) = (&config.heads, HeadsSection::default());
    if heads.train == HeadTraining::Alone {
        require(config.loss == LossSection::default(), "loss", || {
            "its keys are for heads.train = \"together\": leave the section out".to_owned()
        })?;
        for (key, is_set) in [
            ("train.accumulate", config.train.accumulate != 1),
            ("train.recompute", config.train.recompute),
            ("heads.execution", heads.execution != defaults.execution),
            ("data.documents", config.data.documents != Documents::default()),
        ] {
            require(!is_set, key, || "is for heads.train = \"together\": leave it out".to_owned())?;
        }
        require(config.model.init_from.is_some(), "heads.train", || {
            "heads can be trained alone on a pretrained model only: name one in model.init_from"
                .to_owned()
        })?;
        return require(heads.count > 1, "heads.count", || {
            "head 1 is the pretrained model's own: train alone takes at least 2".to_owned()
        });
    }
    for (key, set) in [
        ("heads.targets", heads.targets != defaults.targets),
        ("heads.draft_vocabulary", heads.draft_vocabulary != defaults.draft_vocabulary),
    ] {
        require(!set, key, || "is for heads.train = \"alone\"".to_owned())?;
    }
    let alike = heads.kind == BlockHead::KIND;
    require(alike || heads.execution == Execution::Sequential, "heads.execution", || {
        format!("heads of the type \"{}\" cannot run in one pass: take \"sequential\"", heads.kind)
    })?;
    Ok(())
}

/// Several corpora stand in the place of one.
fn check_mixture(data: &DataSection) -> Result<(), Error> {
    let one = data.path.is_some() || data.corpus != DataSection::default().corpus;
    require(data.mixture.is_empty() || !one, "data.mixture", || {
        "several corpora take the place of data.corpus and data.path: leave these out".to_owned()
    })?;
    for (number, part) in (1..).zip(&data.mixture) {
        require(part.corpus.is_some() != part.path.is_some(), "data.mixture", || {
            format!("part {number} needs a corpus by name or a path, one of the two")
        })?;
        let weight = part.weight;
        require(weight.is_finite() && weight > 0.0, "data.mixture", || {
            format!("part {number} has the weight {weight}: give a number over 0")
        })?;
    }
    Ok(())
}

/// A model writes text for its own heads, into the files of the rounds.
fn check_written_text(config: &TrainConfig) -> Result<(), Error> {
    let data = &config.data;
    within("data.generated", data.generated, 0.0, 1.0)?;
    within("data.temperature", data.temperature, 0.0, 100.0)?;
    let alone = config.heads.train == HeadTraining::Alone;
    require(data.generated == 0.0 || alone, "data.generated", || {
        "is for heads.train = \"alone\"".to_owned()
    })?;
    require(data.generated == 0.0 || data.batches > 0, "data.generated", || {
        "says how many of the data.batches that are gone round in the model writes: set these too"
            .to_owned()
    })?;
    require(data.generated > 0.0 || data.prompt_at.is_empty(), "data.prompt_at", || {
        "is for text that the model writes: set data.generated too".to_owned()
    })?;
    let (prompt, sequence) = (data.prompt_tokens, config.train.sequence);
    require((1..=sequence).contains(&prompt) || data.generated == 0.0, "data.prompt_tokens", || {
        format!("{prompt} is out of range: a row has train.sequence = {sequence} tokens")
    })
}

/// A type that is not of this workspace says itself, when its heads are built, what it needs.
fn check_heads(config: &TrainConfig) -> Result<(), Error> {
    let (kind, count, layers) = (&config.heads.kind, config.heads.count, config.model.layers);
    let layers = Registry::stock().trunk_layers(kind, count, layers);
    let Err(foretoken_heads::Error::TooManyHeads { needed, layers, .. }) = layers else {
        return Ok(());
    };
    Err(Error::Value {
        key: "heads.count".to_owned(),
        message: format!(
            "{count} heads of type \"{kind}\" stand for {needed} of the model.layers = {layers} \
             blocks and leave the trunk none; use fewer heads or more layers"
        ),
    })
}

fn check_optimizer(config: &TrainConfig) -> Result<(), Error> {
    let optimizer = &config.optimizer;
    within("optimizer.learning_rate", optimizer.learning_rate, 0.0, 10.0)?;
    within("optimizer.muon_learning_rate", optimizer.muon_learning_rate, 0.0, 10.0)?;
    within("optimizer.muon_momentum", optimizer.muon_momentum, 0.0, 0.9999)?;
    within("optimizer.beta1", optimizer.beta1, 0.0, 0.99999)?;
    within("optimizer.beta2", optimizer.beta2, 0.0, 0.99999)?;
    within("optimizer.epsilon", optimizer.epsilon, f64::MIN_POSITIVE, 1.0)?;
    within("optimizer.weight_decay", optimizer.weight_decay, 0.0, 10.0)?;
    within("optimizer.clip", optimizer.clip, 0.0, f64::MAX)?;
    within("optimizer.final_fraction", optimizer.final_fraction, 0.0, 1.0)?;
    within("optimizer.decay_fraction", optimizer.decay_fraction, 0.0, 1.0)?;
    schedule::check(optimizer, config.train.steps)
}

pub(crate) fn require(
    holds: bool,
    key: &str,
    message: impl FnOnce() -> String,
) -> Result<(), Error> {
    if holds { Ok(()) } else { Err(Error::Value { key: key.to_owned(), message: message() }) }
}

fn positive(key: &str, value: u64) -> Result<(), Error> {
    require(value > 0, key, || "must be at least 1".to_owned())
}

fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), Error> {
    require((low..=high).contains(&value), key, || {
        if high == f64::MAX {
            format!("{value} is out of range: it has to be at least {low}")
        } else {
            format!("{value} is out of range: it has to lie in {low}..={high}")
        }
    })
}

/// Every `section.key` of `config` with its value as TOML writes it, for comparing two recipes.
pub(crate) fn flatten(config: &TrainConfig) -> Result<Vec<(String, String)>, Error> {
    let table = Table::try_from(config).map_err(|error| Error::Config {
        name: "the recipe".to_owned(),
        message: one_line(&error.to_string()),
    })?;
    let mut flat = Vec::new();
    for (section, value) in table {
        if let Value::Table(entries) = value {
            for (key, value) in entries {
                flat.push((format!("{section}.{key}"), value.to_string()));
            }
        }
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MixturePart, ScheduleKind};

    const SMALL: &str = "[model]\nlayers = 4\nattention_heads = 2\ndim = 64\nffn = 128\n\
        context = 128\n[heads]\ncount = 2\n[train]\nsteps = 40\nbatch = 4\nsequence = 64\n";

    fn error(text: &str, sets: &[&str]) -> String {
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        parse(text, "r.toml", &sets)
            .map(|config| format!("{config:?}"))
            .expect_err("the recipe was accepted")
            .to_string()
    }

    #[test]
    fn a_set_changes_any_key_of_any_section() {
        let sets = [
            "train.steps=7",
            "data.path=/some/where",
            "optimizer.schedule=wsd",
            "heads.count = 3",
            "optimizer.learning_rate=1e-3",
        ]
        .map(str::to_owned);
        let config = parse(SMALL, "r.toml", &sets).unwrap();
        assert_eq!(config.train.steps, 7);
        assert_eq!(config.data.path.unwrap().to_str(), Some("/some/where"));
        assert_eq!(config.optimizer.schedule, ScheduleKind::Wsd);
        assert_eq!(config.heads.count, 3);
        assert!((config.optimizer.learning_rate - 1e-3).abs() < 1e-12);
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_known_one() {
        for (set, near) in [
            ("train.step=3", "train.steps"),
            ("train.checkpoint-every=3", "train.checkpoint_every"),
            ("optimizer.lerning_rate=3", "optimizer.learning_rate"),
            ("train.learning_rate=3", "optimizer.learning_rate"),
            ("model.kv_head=1", "model.kv_heads"),
            ("head.count=2", "[heads]"),
        ] {
            let message = error(SMALL, &[set]);
            let key = set.split('=').next().unwrap();
            let shown = if near.starts_with('[') { "head" } else { key };
            assert!(message.contains(&format!("`{shown}`")), "{message}");
            assert!(message.contains(&format!("did you mean `{near}`")), "{message}");
            assert_eq!(message.lines().count(), 1);
        }
        assert!(!error(SMALL, &["train.qqqqqqqqqqqqqqqqq=1"]).contains("did you mean"));
    }

    #[test]
    fn impossible_recipes_name_the_key() {
        for (set, key) in [
            ("heads.count=4", "heads.count"),
            ("heads.count=0", "heads.count"),
            ("model.attention_heads=3", "model.dim"),
            ("model.dim=66", "model.head_dim"),
            ("model.kv_heads=3", "model.kv_heads"),
            ("train.sequence=129", "train.sequence"),
            ("train.batch=0", "train.batch"),
            ("train.steps=0", "train.steps"),
            ("optimizer.warmup=40", "optimizer.warmup"),
            ("optimizer.learning_rate=-1", "optimizer.learning_rate"),
            ("optimizer.clip=nan", "optimizer.clip"),
            ("optimizer.beta2=1", "optimizer.beta2"),
            ("loss.offsets=[0, 0]", "loss.offsets"),
        ] {
            let message = error(SMALL, &[set]);
            assert!(message.starts_with(&format!("`{key}`")), "{set}: {message}");
            assert_eq!(message.lines().count(), 1);
        }
    }

    #[test]
    fn a_batch_is_divided_equally_among_processes_and_parts() {
        let config = parse(SMALL, "r.toml", &["train.batch=12".to_owned()]).unwrap();
        assert_eq!((config.rows_of_each(1).unwrap(), config.rows_of_each(4).unwrap()), (12, 3));
        for (processes, accumulate) in [(5, 1), (0, 1), (4, 2)] {
            let sets = ["train.batch=12".to_owned(), format!("train.accumulate={accumulate}")];
            let config = parse(SMALL, "r.toml", &sets).unwrap();
            let error = config.rows_of_each(processes).unwrap_err().to_string();
            assert!(error.starts_with("`train.batch`: 12"), "{error}");
        }
    }

    #[test]
    fn a_curriculum_needs_a_step_for_each_head() {
        let message = error(SMALL, &["train.steps=1", "loss.curriculum=forward"]);
        assert!(message.starts_with("`loss.curriculum`"), "{message}");
        assert!(parse(SMALL, "r.toml", &["train.steps=1".to_owned()]).is_ok());
    }

    #[test]
    fn a_pretrained_model_brings_sizes_and_tokenizer() {
        const GROWN: &str = "[model]\ninit_from = \"m.gguf\"\n[heads]\ncount = 4\n\
            train = \"alone\"\n[train]\nsteps = 40\nbatch = 4\nsequence = 64\n";
        assert_eq!(parse(GROWN, "r.toml", &[]).unwrap().heads.count, 4);
        for (set, key) in [
            ("model.layers=4", "model.layers"),
            ("model.context=64", "model.context"),
            ("data.tokenizer=t.json", "data.tokenizer"),
            ("heads.count=1", "heads.count"),
        ] {
            let message = error(GROWN, &[set]);
            assert!(message.starts_with(&format!("`{key}`")), "{set}: {message}");
        }
        for set in ["heads.train=alone", "heads.targets=text", "heads.draft_vocabulary=100"] {
            let message = error(SMALL, &[set]);
            assert!(message.starts_with("`heads."), "{set}: {message}");
        }
    }

    #[test]
    fn wrong_types_missing_keys_and_broken_syntax_take_one_line_with_the_place() {
        assert!(error(SMALL, &["train.steps=many"]).contains("steps"));
        for (set, expected) in [
            ("train.steps=many", "a whole number of 0 or more"),
            ("optimizer.clip=\"much\"", "a number"),
            ("loss.z_loss=true", "a number"),
        ] {
            let message = error(SMALL, &[set]);
            assert!(message.contains(&format!("expected {expected}")), "{set}: {message}");
        }
        assert!(error(SMALL, &["optimizer.type=sgd"]).contains("muon"));
        assert!(error(SMALL, &["train=3"]).contains("train=3"));
        assert!(error("[train]\nsteps = 4\nbatch = 1\nsequence = 2\n", &[]).contains("model"));
        assert!(error(&SMALL.replace("ffn = 128", ""), &[]).contains("ffn"));
        let broken = error(&SMALL.replace("ffn = 128", "ffn = = 1"), &[]);
        assert!(broken.contains("line 5"), "{broken}");
        for text in [
            error(SMALL, &["train.steps=many"]),
            error(&SMALL.replace("ffn = 128", ""), &[]),
            broken,
        ] {
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    }

    #[test]
    fn the_list_of_known_keys_is_the_configs_own() {
        let mut config = parse(SMALL, "r.toml", &[]).unwrap();
        config.model.init_from = Some("m.gguf".into());
        config.model.kv_heads = Some(2);
        config.model.head_dim = Some(32);
        (config.data.path, config.data.prompt_at) = (Some("x".into()), "def ".to_owned());
        config.data.mixture = vec![MixturePart { corpus: None, path: None, weight: 1.0 }];
        (config.loss.ratio, config.loss.lambda) = (Some(1.0), Some(1.0));
        config.loss.offsets = Some(vec![0]);
        let mut ours: Vec<String> = KEYS
            .iter()
            .flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")))
            .collect();
        let mut theirs: Vec<String> =
            flatten(&config).unwrap().into_iter().map(|(key, _)| key).collect();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn edit_distances_are_levenshteins() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("steps", "steps"), 0);
    }
}
