//! The algorithms, written once over any engine.

use std::ops::ControlFlow;
use std::time::Instant;

use foretoken_heads::{ModelConfig, MultiTokenModel, UnreadModel};

use crate::cpu_engine;
use crate::engine::{Engine, Other, Wanted};
use crate::pace::{Pace, Step};
use crate::sampler::Sampler;
use crate::tensor_engine::{Held, TensorEngine};
use crate::{DecoderOptions, Decoding, Error, GenerateOptions, Generation, Result, StoppedBy};

/// What is called with new tokens and the heads that produced them, and may break off.
pub type OnTokens<'a> = dyn FnMut(&[u32], &[usize]) -> ControlFlow<()> + 'a;

/// Generates text with a model, one prompt after the other.
pub struct Decoder<'m> {
    engine: Box<dyn Engine + 'm>,
    name: &'static str,
    vocab: usize,
    context: usize,
    heads: usize,
    /// What adaptive decoding has learned of the texts before.
    pace: Option<Pace>,
}

impl std::fmt::Debug for Decoder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").field("engine", &self.name).finish_non_exhaustive()
    }
}

impl<'m> Decoder<'m> {
    /// Prepares a model: packs its weights for the CPU's own engine where it can run the model.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn new(model: &'m MultiTokenModel) -> Result<Self> {
        Self::with_options(model, DecoderOptions::default())
    }

    /// As [`Decoder::new`], with options.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn with_options(model: &'m MultiTokenModel, options: DecoderOptions) -> Result<Self> {
        match cpu_engine::build(model, options)? {
            Some(engine) => Ok(Self::over(model.config(), engine, "cpu")),
            None => Self::on_tensors(model),
        }
    }

    /// As [`Decoder::with_options`], from a model whose weights are still in their files: where the
    /// CPU's own engine can run it, each block is let go as soon as it is packed, so that the weights
    /// are never all in memory as they are read.
    ///
    /// # Errors
    /// When the weights cannot be read, or do not belong together.
    pub fn reading(model: UnreadModel, options: DecoderOptions) -> Result<Decoder<'static>> {
        let config = model.config().clone();
        Ok(match cpu_engine::build_from(model, options)? {
            Ok(engine) => Decoder::over(&config, engine, "cpu"),
            Err(model) => {
                let engine = TensorEngine::new(Held::Given(Box::new(model.read()?)))?;
                Decoder::over(&config, Box::new(engine), "tensors")
            }
        })
    }

    /// A decoder on libtorch's operators, whatever the model: to compare with, or to measure.
    ///
    /// # Errors
    /// When the memory for the caches cannot be had.
    pub fn on_tensors(model: &'m MultiTokenModel) -> Result<Self> {
        let engine = TensorEngine::new(Held::Lent(model))?;
        Ok(Self::over(model.config(), Box::new(engine), "tensors"))
    }

    fn over(config: &ModelConfig, engine: Box<dyn Engine + 'm>, name: &'static str) -> Self {
        let sizes = &config.architecture;
        let (vocab, context) = (sizes.vocab, sizes.context);
        Self { engine, name, vocab, context, heads: config.heads.drafting(), pace: None }
    }

    /// `cpu` for the engine in which a row has the same bits alone and among others, `tensors` for
    /// libtorch's operators.
    pub fn engine(&self) -> &'static str {
        self.name
    }

    /// Continues `prompt`.
    ///
    /// `on_tokens` is called with each new token and the head that produced it, and may break off.
    ///
    /// # Errors
    /// When the prompt is empty, longer than the context or has unknown tokens, when options do
    /// not fit the model or each other, or when libtorch fails.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_tokens: &mut OnTokens<'_>,
    ) -> Result<Generation> {
        let heads = self.check(prompt, options)?;
        // The last token is never passed itself: one more than there are positions left.
        let room = self.context - prompt.len() + 1;
        let mut text = Text {
            limit: options.max_new_tokens.min(room),
            at_limit: if room < options.max_new_tokens {
                StoppedBy::Context
            } else {
                StoppedBy::Limit
            },
            generation: Generation::new(heads),
            logits: Vec::new(),
            sampler: options.sampling.map(Sampler::new),
            options,
            on_tokens,
        };
        let start = Instant::now();
        if text.limit == 0 {
            text.generation.stopped_by = text.at_limit;
            return Ok(text.generation);
        }
        self.engine.reset();
        let (most, others) = (heads - 1, options.alternatives);
        let adaptive = matches!(options.decoding, Decoding::Adaptive { .. });
        let mut pace = match self.pace.take_if(|_| adaptive) {
            Some(learned) => learned.next_text(most, others),
            None if adaptive => Pace::adaptive(most, others, self.engine.in_turn()),
            None => Pace::steady(most, others),
        };
        // A pass brings its drafts and one token more; the first token comes before that.
        let drafting = pace.drafting().min(text.limit.saturating_sub(2));
        let first = self.engine.prefill(prompt, drafting)?;
        let mut outcome = text.extend(self.engine.as_mut(), &[first], &[0], 0)?;
        text.generation.prefill = start.elapsed();
        let decoding = Instant::now();
        let mut pass = Vec::with_capacity(heads);
        let (mut best, mut others) = (Vec::with_capacity(heads), Vec::new());
        let (mut rows, mut certainties) = (Vec::with_capacity(heads), Vec::with_capacity(heads));
        while outcome.is_continue() {
            // The last token and the drafts of those after it.
            pass.clear();
            pass.extend(text.generation.tokens.last());
            others.clear();
            certainties.clear();
            let began = Instant::now();
            let drafts = pace.drafting().min(drafting).min(text.left() - 1);
            if drafts > 0 {
                let (verifies, least) = (pace.verifies(), pace.least());
                let wanted = Wanted {
                    heads: drafts,
                    others: if verifies { pace.others() } else { 0 },
                    least,
                };
                let drafted = self.engine.draft(wanted)?;
                certainties.extend_from_slice(&drafted.certainties);
                if verifies {
                    pass.extend_from_slice(&drafted.tokens);
                    others.extend_from_slice(&drafted.others);
                }
            }
            let drafted = Instant::now();
            best.clear();
            best.extend_from_slice(self.engine.verify(&pass, &others)?);
            let agree = pass[1..].iter().zip(&best).take_while(|(draft, own)| draft == own);
            let agree = agree.count();
            // The draft behind these is not head 0's choice; another that heads thought of may be.
            let right = |other: &Other| (other.head, other.token) == (agree + 1, best[agree]);
            let other = others.iter().position(right);
            let accepted = agree + usize::from(other.is_some());
            rows.clear();
            rows.extend((0..=agree).chain(other.map(|other| pass.len() + other)));
            pace.observe(Step {
                verified: pass.len() - 1,
                certainties: &certainties,
                others: &others,
                agreed: agree,
                other,
                took: (drafted - began, drafted.elapsed()),
            });
            outcome = text.extend(self.engine.as_mut(), &best, &rows, accepted)?;
            self.engine.keep(1 + agree, other)?;
        }
        text.generation.decode = decoding.elapsed();
        if adaptive {
            self.pace = Some(pace);
        }
        Ok(text.generation)
    }

    /// Refuses what cannot be done; returns how many heads are used.
    fn check(&self, prompt: &[u32], options: &GenerateOptions) -> Result<usize> {
        let heads = match options.decoding {
            Decoding::Autoregressive => 1,
            Decoding::Speculative { heads } | Decoding::Adaptive { heads } => heads,
        };
        if heads == 0 || heads > self.heads {
            return Err(Error::Heads { asked: heads, available: self.heads });
        }
        if let Some(sampling) = options.sampling {
            sampling.check()?;
            if options.decoding != Decoding::Autoregressive {
                return Err(Error::NotBuilt {
                    what: "speculative decoding with a temperature",
                    instead: "leave out the temperature, or decode autoregressively",
                });
            }
        }
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if prompt.len() > self.context {
            return Err(Error::PromptTooLong { tokens: prompt.len(), context: self.context });
        }
        if let Some(&token) = prompt.iter().find(|&&token| token as usize >= self.vocab) {
            return Err(Error::UnknownToken { token, last: self.vocab - 1 });
        }
        Ok(heads)
    }
}

/// A text in the making.
struct Text<'o> {
    generation: Generation,
    limit: usize,
    /// Why the text ends at the limit.
    at_limit: StoppedBy,
    options: &'o GenerateOptions,
    on_tokens: &'o mut OnTokens<'o>,
    sampler: Option<Sampler>,
    logits: Vec<f64>,
}

impl Text<'_> {
    /// Takes what a pass brought: head 0's `best` tokens at some of its `rows`, the first `accepted` of
    /// which were drafted. Breaks at the end of the text.
    fn extend(
        &mut self,
        engine: &mut dyn Engine,
        best: &[u32],
        rows: &[usize],
        accepted: usize,
    ) -> Result<ControlFlow<()>> {
        self.generation.forward_passes += 1;
        for (brought, &row) in rows.iter().enumerate() {
            let token = self.choose(engine, row, best[row])?;
            let head = if brought < accepted { brought + 1 } else { 0 };
            self.generation.tokens.push(token);
            self.generation.drafted_by.push(head);
            self.generation.accepted[brought] += 1;
            let stopped_by = if (self.on_tokens)(&[token], &[head]).is_break() {
                StoppedBy::StopText
            } else if self.options.end_of_text.contains(&token) {
                StoppedBy::EndOfText
            } else if self.left() == 0 {
                self.at_limit
            } else {
                continue;
            };
            self.generation.stopped_by = stopped_by;
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The token of a row: the best, or one that is drawn.
    fn choose(&mut self, engine: &mut dyn Engine, row: usize, best: u32) -> Result<u32> {
        if self.sampler.is_none() && !self.options.record_gaps {
            return Ok(best);
        }
        engine.logits(row, &mut self.logits)?;
        if self.options.record_gaps {
            self.generation.gaps.push(foretoken_kernels::cpu::top_gap(&self.logits) as f32);
        }
        Ok(self.sampler.as_mut().map_or(best, |sampler| sampler.draw(&self.logits)))
    }

    /// Tokens that are still to come at most.
    fn left(&self) -> usize {
        self.limit - self.generation.tokens.len()
    }
}
