//! What can be written on the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Multi-token prediction: train models that predict several tokens at once, and decode with
/// them several times faster, to the same text.
#[derive(Debug, Parser)]
#[command(
    version,
    long_about = "Multi-token prediction: train models that predict several tokens at once, and \
        decode with them several times faster, to the same text.\n\n\
        Results go to stdout, progress and logs to stderr (RUST_LOG=debug says more). The exit \
        code is 0, 1 where the work failed, or 2 where the command line made no sense.",
    after_help = "Examples:\n  \
        foretoken train --config crates/experiments/configs/tiny.toml --out runs/tiny\n  \
        foretoken generate --model runs/tiny/model --prompt 'def main('\n  \
        foretoken reproduce speed --preset quick"
)]
pub(crate) struct Arguments {
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands; what each does stands at its arguments, where clap takes it from.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(TrainArguments),
    Generate(GenerateArguments),
    Logits(LogitsArguments),
    Export(ExportArguments),
    Import(ImportArguments),
    Plot(PlotArguments),
    Reproduce(ReproduceArguments),
}

/// Where the arithmetic is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceName {
    /// This machine's processor
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

/// `foretoken train`.
#[derive(Debug, Args)]
#[command(
    about = "Train a model as a config says",
    long_about = "Train a model as a config says.\n\n\
        The config is TOML with the sections [model] (layers in all, attention_heads, kv_heads, \
        dim, ffn, context), [heads] (type, count), [data] (corpus, or path to a file or folder of \
        text, or several in mixture; documents: joined, apart or packed; tokenizer: bytes or a \
        tokenizer.json), [loss] (weights, curriculum, offsets, label_smoothing, z_loss), \
        [optimizer] (type: muon or adamw, learning_rate, muon_learning_rate, weight_decay, clip, \
        schedule, warmup, ...) and [train] (steps, batch, sequence, seed, checkpoint_every, keep, \
        validate, precision, accumulate, recompute, shard_optimizer). docs/training.md has them \
        all.\n\n\
        Several processes train together where torchrun --no-python, srun or a PyTorchJob starts \
        them, or `cargo xtask launch`.\n\n\
        OUT/model is the finished model, OUT/checkpoints the last three states, OUT/metrics.jsonl \
        a line a step; with --tensorboard the same figures lie in OUT/tensorboard, where \
        `tensorboard --logdir OUT` reads them. Ctrl-C saves and prints the command that goes on; the result is then the \
        same, bit for bit, as that of a run that was never interrupted, with the same number of \
        processes and threads.",
    after_help = "Examples:\n  \
        foretoken train --config crates/experiments/configs/tiny.toml\n  \
        foretoken train --config tiny.toml --set data.path=notes/ --set heads.count=4 --out runs/notes\n  \
        foretoken train --config tiny.toml --out runs/notes --set train.steps=400 --resume"
)]
pub(crate) struct TrainArguments {
    /// The recipe
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) config: PathBuf,
    /// Change a key of the recipe, such as train.steps=40; may be given again
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Go on from the newest checkpoint in --out; start at step 0 where there is none
    #[arg(long)]
    pub(crate) resume: bool,
    /// The run's folder [default: runs/ and the recipe's name]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The folder of a corpus that the recipe names, when not where set-up puts it
    #[arg(long, value_name = "DIR")]
    pub(crate) corpus: Option<PathBuf>,
    /// The folder of the corpus' token shards, so that runs share them [default: OUT/shards]
    #[arg(long, value_name = "DIR")]
    pub(crate) shards: Option<PathBuf>,
    /// Save and stop, as Ctrl-C does, after so many seconds of steps; set-up does not count
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_seconds: Option<f64>,
    /// Write event files for TensorBoard into OUT/tensorboard, too
    #[arg(long)]
    pub(crate) tensorboard: bool,
    /// Where the model is trained
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Of several processes: give up when another lives but does not come for so long
    #[arg(long, value_name = "SECONDS", default_value_t = Self::PATIENCE)]
    pub(crate) patience: u64,
    /// Print what the run came to as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl TrainArguments {
    /// Seconds that processes wait for one that lives: rank 0 may be writing a large checkpoint.
    pub(crate) const PATIENCE: u64 = 1800;
}

/// How many tokens a forward pass may bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DecodingName {
    /// One
    Autoregressive,
    /// Up to as many as there are heads, verified: the text is the same
    Speculative,
}

/// What weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsName {
    /// As few bytes as have the same bits, those of a quantised model in its levels: the text is the
    /// same, sooner
    Compact,
    /// Float32, as they are computed with
    Full,
}

/// `foretoken generate`.
#[derive(Debug, Args)]
#[command(
    about = "Continue a prompt",
    long_about = "Continue a prompt.\n\n\
        The model's heads draft the next tokens and the next forward pass verifies them all at \
        once, so the text is that of plain decoding, sooner. The first steps measure which drafts, \
        and alternatives beside them, pay, and leave out those that do not; \
        --decoding speculative takes them all. Greedy unless a temperature is given. It stops at \
        the end-of-text token, at a stop text, at --max-new-tokens or at the end of the model's \
        context, and says which on stderr.\n\n\
        With --json there is a line a prompt: id, text, prompt_tokens, tokens, stopped_by, \
        forward_passes (the prompt's counts as one), tokens_per_forward, acceptance (per head: \
        the share of passes that brought a token in its place, its draft or an alternative to it), \
        seconds (prefill and decode), tokens_per_second.",
    after_help = "Examples:\n  \
        foretoken generate --model runs/tiny/model --prompt 'def main('\n  \
        foretoken generate --model runs/tiny/model --prompt 'class ' --stop '\n\n' --heads 2\n  \
        foretoken generate --model runs/tiny/model --prompts prompts.jsonl --json\n  \
        foretoken generate --model runs/tiny/model --prompt 'x = ' --temperature 0.8 --top-p 0.95 --seed 1"
)]
pub(crate) struct GenerateArguments {
    /// The model: its folder, or a GGUF file
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub(crate) model: PathBuf,
    /// The text to continue
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "prompts",
        conflicts_with = "prompts",
        allow_hyphen_values = true
    )]
    pub(crate) prompt: Option<String>,
    /// A file with a prompt a line: {"id": ..., "prompt": "..."}
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) prompts: Option<PathBuf>,
    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) max_new_tokens: usize,
    /// How many tokens a pass may bring [default: as many as the first steps find to pay, where
    /// no temperature is given]
    #[arg(long, value_enum)]
    pub(crate) decoding: Option<DecodingName>,
    /// Heads to decode with, 1 to the model's own count [default: all]
    #[arg(long, value_name = "K")]
    pub(crate) heads: Option<usize>,
    /// Verify up to so many tokens beside the drafts, each in place of one, 0 to 16: what the heads
    /// think next likely. The text is the same
    /// [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(..=16))]
    pub(crate) alternatives: Option<u8>,
    /// Draw tokens at random: below 1 favours likely ones, above 1 evens them out
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Draw only from the most likely tokens that together have this probability
    #[arg(long, value_name = "P", requires = "temperature")]
    pub(crate) top_p: Option<f64>,
    /// The same seed draws the same tokens [default: 0]
    #[arg(long, value_name = "S", requires = "temperature")]
    pub(crate) seed: Option<u64>,
    /// Stop before this text; may be given again
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) stop: Vec<String>,
    /// What weights are kept in on a CPU
    #[arg(long, value_enum, default_value = "compact")]
    pub(crate) weights: WeightsName,
    /// Threads to compute with [default: one a core]
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Where the model runs
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Print a JSON object a prompt instead of the text
    #[arg(long)]
    pub(crate) json: bool,
    /// Heads that were trained for this model: a folder with heads.safetensors, or such a file
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) with_heads: Option<PathBuf>,
    /// Take the prompt as what a user says to an instruct model, by the model's own chat template
    #[arg(long)]
    pub(crate) chat: bool,
    /// What the model is told before what the user says
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,
}

/// `foretoken logits`.
#[derive(Debug, Args)]
#[command(
    about = "Write every head's logits for a prompt",
    long_about = "Write every head's logits for a prompt, to compare with other software.\n\n\
        The file has the tensors tokens [seq] (int64) and logits [heads, seq, vocab] (float32): \
        logits[i, t] is about the token at position t + i + 1.",
    after_help = "Example:\n  \
        foretoken logits --model runs/tiny/model --prompt 'def main(' --out logits.safetensors"
)]
pub(crate) struct LogitsArguments {
    /// The model: its folder, or a GGUF file
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub(crate) model: PathBuf,
    /// The text to read
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// Heads that were trained for this model: a folder with heads.safetensors, or such a file
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) with_heads: Option<PathBuf>,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    pub(crate) out: PathBuf,
    /// Where the model runs
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// Print where and what was written as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// The formats that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatName {
    /// The heads as a draft model for vLLM: a folder
    Medusa,
    /// The next-token model and its tokenizer for llama.cpp: a file
    Gguf,
}

/// `foretoken export`.
#[derive(Debug, Args)]
#[command(
    about = "Write a model in a format of other software",
    long_about = "Write a model in a format of other software.\n\n\
        gguf: a file for llama.cpp with the next-token model (trunk and first head), its tokenizer \
        and its chat template, in float32 or float16. The heads beyond the first don't go into it: \
        GGUF has no place for them; `generate --model FILE.gguf --with-heads` joins them again.\n\n\
        medusa: a folder for vLLM with the heads beyond the first, which have to be of type \
        medusa, as a draft model (config.json, model.safetensors). The model that they belong to is \
        not in it: vLLM reads that from its model folder.",
    after_help = "Examples:\n  \
        foretoken export --model runs/tiny/model --format gguf --out tiny.gguf\n  \
        foretoken export --model runs/tiny/model --format gguf --float16 --out tiny.gguf\n  \
        foretoken export --model model.gguf --with-heads heads/ --format medusa --out medusa/"
)]
pub(crate) struct ExportArguments {
    /// The model: its folder, or a GGUF file
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub(crate) model: PathBuf,
    /// Heads that were trained for this model: a folder with heads.safetensors, or such a file
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) with_heads: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum)]
    pub(crate) format: FormatName,
    /// The file (gguf) or folder (medusa) to write, which must not be there yet
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    /// Store the matrices of a GGUF file in float16: half the size
    #[arg(long)]
    pub(crate) float16: bool,
    /// Print where and what was written as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// `foretoken import`.
#[derive(Debug, Args)]
#[command(
    about = "Write a model, and heads that were trained for it, as a model folder",
    long_about = "Write a model, and heads that were trained for it, as a model folder.\n\n\
        The folder has the weights in float32, the config and the tokenizer. transformers opens it \
        unchanged as a next-token model; heads beyond the first lie in a file of their own, \
        heads.safetensors. A GGUF file is dequantised: the folder computes what the file does.",
    after_help = "Examples:\n  \
        foretoken import --model SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2/\n  \
        foretoken import --model model.gguf --with-heads heads.safetensors --out joined/"
)]
pub(crate) struct ImportArguments {
    /// The model: a GGUF file, or a folder
    #[arg(long, value_name = "FILE.gguf|DIR")]
    pub(crate) model: PathBuf,
    /// Heads that were trained for this model: a folder with heads.safetensors, or such a file
    #[arg(long, value_name = "DIR|FILE")]
    pub(crate) with_heads: Option<PathBuf>,
    /// The folder to write, which must be new or empty
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Print where and what was written as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is drawn of each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum MetricName {
    /// The mean loss in nats a token, a chart for each head
    Loss,
    /// The norm of all gradients together, before clipping
    GradNorm,
    /// The rate of AdamW
    LearningRate,
    /// Tokens a second
    TokensPerSecond,
}

/// What the horizontal axis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum XAxisName {
    /// Steps
    Steps,
    /// Tokens seen
    Tokens,
    /// Seconds of training; minutes or hours where there are many
    Seconds,
}

/// `foretoken plot`.
#[derive(Debug, Args)]
#[command(
    about = "Draw the curves of trainings",
    long_about = "Draw the curves of trainings.\n\n\
        Each run is a line, in the same charts as the others, named by its folder. The picture \
        refers to nothing outside of itself; an HTML page has each run's last values, too. A line \
        has 400 points at most: of a longer training, each is the mean of the steps since the one \
        before. Loss charts leave out the steep start.",
    after_help = "Examples:\n  \
        foretoken plot runs/tiny --out tiny.svg\n  \
        foretoken plot runs/a runs/b --heads 1 --x tokens --smooth 50 --out both.html\n  \
        foretoken plot runs/* --metric tokens_per_second > speed.svg"
)]
pub(crate) struct PlotArguments {
    /// The runs: folders of trainings, or their metrics.jsonl
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// The file to write, which is replaced [default: SVG to stdout]
    #[arg(long, value_name = "FILE.svg|FILE.html")]
    pub(crate) out: Option<PathBuf>,
    /// What is drawn of each step
    #[arg(long, value_enum, default_value = "loss")]
    pub(crate) metric: MetricName,
    /// The heads whose losses are drawn, the nearest being 1, such as 1,2 [default: all]
    #[arg(long, value_name = "HEADS", value_delimiter = ',')]
    pub(crate) heads: Vec<usize>,
    /// Draw the mean of so many steps up to each
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) smooth: usize,
    /// What the horizontal axis counts
    #[arg(long, value_enum, default_value = "steps")]
    pub(crate) x: XAxisName,
    /// Print where and what was written as one JSON object; needs --out
    #[arg(long, requires = "out")]
    pub(crate) json: bool,
}

/// The presets of an experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PresetName {
    /// Three or four minutes on two cores
    Smoke,
    /// Half an hour at most on two cores
    Quick,
    /// A hundred minutes at most on two cores
    Long,
    /// Sized for one data-centre GPU
    Full,
}

/// `foretoken reproduce`.
#[derive(Debug, Args)]
#[command(
    about = "Run one of the paper's experiments and write its report",
    long_about = "Run one of the paper's experiments and write its report.\n\n\
        OUT/EXPERIMENT/PRESET/ gets report.json, report.md, report.html and the trained models, \
        OUT/EXPERIMENT/PRESET-kept-heads/ the report on heads that were trained before. A run that \
        was interrupted goes on where it was when it is called again.",
    after_help = "Examples:\n  \
        foretoken reproduce\n  \
        foretoken reproduce speed --preset smoke --out target/reproduce\n  \
        foretoken reproduce pretrained --pretrained-heads=pretrained/smollm2"
)]
pub(crate) struct ReproduceArguments {
    /// The experiment
    #[arg(default_value = "speed")]
    pub(crate) experiment: String,
    /// How large a run
    #[arg(long, value_enum, default_value = "quick")]
    pub(crate) preset: PresetName,
    /// The folder for all experiments
    #[arg(long, value_name = "DIR", default_value = "target/reproduce")]
    pub(crate) out: PathBuf,
    /// Where the models are trained and decoded
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: DeviceName,
    /// The corpus' .py files, when not where set-up puts them: an installed torch for one
    #[arg(long, value_name = "DIR")]
    pub(crate) corpus: Option<PathBuf>,
    /// Python of another package, for the figures on text that is unlike the training's
    #[arg(long, value_name = "DIR")]
    pub(crate) other_corpus: Option<PathBuf>,
    /// Copy the finished report here as EXPERIMENT-PRESET.json, .md and .svg
    #[arg(long, value_name = "DIR")]
    pub(crate) publish: Option<PathBuf>,
    /// pretrained: measure heads that --keep-heads wrote, and train none [without DIR: those of the
    /// repository, pretrained/smollm2]
    #[arg(
        long,
        value_name = "DIR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "pretrained/smollm2"
    )]
    pub(crate) pretrained_heads: Option<PathBuf>,
    /// pretrained: keep the trained heads here, in bfloat16, for --pretrained-heads and --with-heads
    #[arg(long, value_name = "DIR", conflicts_with = "pretrained_heads")]
    pub(crate) keep_heads: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENTS: [(&str, &str); 4] = [
        ("README.md", include_str!("../../../README.md")),
        ("pretrained.md", include_str!("../../../docs/pretrained.md")),
        ("training.md", include_str!("../../../docs/training.md")),
        ("pretrained/README.md", include_str!("../../../pretrained/README.md")),
    ];

    #[test]
    fn the_commands_of_the_documents_are_ones() {
        let mut found = 0;
        for (document, text) in DOCUMENTS {
            assert!(!text.contains("```console"), "{document}: a block that cannot be pasted");
            let text = text.replace("```bash\n", "```sh\n");
            for block in text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()) {
                for line in block.replace("\\\n", " ").lines() {
                    assert!(!line.starts_with('$'), "{document}: {line}");
                    let words = shlex::split(line).unwrap();
                    let is_ours =
                        |word: &String| word == "foretoken" || word.ends_with("release/foretoken");
                    let Some(start) = words.iter().position(is_ours) else { continue };
                    let parsed = Arguments::try_parse_from(&words[start..]);
                    assert!(parsed.is_ok(), "{document}: {line}: {}", parsed.unwrap_err());
                    found += 1;
                }
            }
        }
        assert_eq!(found, 15, "commands that were found, of those that are there");
    }
}
