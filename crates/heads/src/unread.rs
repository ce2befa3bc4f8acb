//! A model whose weights are still in its files.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::fingerprint::Fingerprint;
use crate::heads_file::HeadsFile;
use crate::model::{UNEMBEDDING, head_prefix, layer_prefix, readout_norm, readout_unembedding};
use crate::{
    BlockHead, DraftVocabulary, Head, HeadsConfig, ModelConfig, ModelPart, MultiTokenModel,
    Registry, Result,
};
use foretoken_trunk::io::WeightReader;
use foretoken_trunk::{
    Architecture, Block, Error as TrunkError, Initialiser, Parameter, TrunkPart,
};
use tch::{Device, Kind, Tensor};

/// A model whose weights are still in its files.
///
/// [`UnreadModel::read`] makes a [`MultiTokenModel`] of it. Who keeps weights in a form of their own
/// takes them piece by piece ([`UnreadModel::pieces`]), so that a model of a few bits a weight is
/// never whole in memory in float32. In float32 and float64, heads that say which model they were
/// trained on are held against this one.
///
/// ```no_run
/// use foretoken_heads::{ModelSource, Piece};
/// use tch::{Device, Kind};
///
/// let source = ModelSource::open("SmolLM2-135M-Instruct.Q4_1.gguf".as_ref())?;
/// let pieces = source.unread(Kind::Float, Device::Cpu)?.pieces()?;
/// for piece in pieces.rest {
///     if let Piece::Block(block) = piece? {
///         println!("{:?}", block.down_proj.size());
///     }
/// }
/// # Ok::<(), foretoken_heads::Error>(())
/// ```
pub struct UnreadModel {
    outline: MultiTokenModel,
    stock: WeightReader,
    /// Where the heads beyond the first have a file of their own.
    heads: Option<HeadsFile>,
    /// Who is told of heads that were trained on another model; where nobody is, they are refused.
    other_trunk: Option<Tell>,
}

type Tell = Box<dyn FnOnce(&str)>;

/// A model piece by piece, its ends first. Tensors are to be read, not written to: some are still
/// looked at on another thread.
#[derive(Debug)]
pub struct ModelPieces {
    /// Sizes and heads.
    pub config: ModelConfig,
    /// `[vocab, dim]`.
    pub embedding: Tensor,
    /// `[dim]`.
    pub final_norm: Tensor,
    /// `[vocab, dim]`; where it is the embedding, the same tensor.
    pub unembedding: Tensor,
    /// What drafts are chosen from, where that is not the whole vocabulary.
    pub draft_vocabulary: Option<DraftVocabulary>,
    /// The others.
    pub rest: Pieces,
}

/// A piece between a model's ends.
#[derive(Debug)]
pub enum Piece {
    /// The trunk's next block.
    Block(Block),
    /// The next head.
    Head(Box<dyn Head>),
}

/// The trunk's blocks and then the heads, each of which is read when it is asked for. At the end
/// files that hold more than the model are an error, and so are heads of another model.
pub struct Pieces {
    left: std::vec::IntoIter<Piece>,
    /// Until the end, and unless something failed.
    reading: Option<Reading>,
}

impl fmt::Debug for UnreadModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnreadModel").field("config", self.config()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("left", &self.left.len()).finish_non_exhaustive()
    }
}

impl UnreadModel {
    /// A model as `outline` has it, from `stock` and, where these are in a file of their own, `heads`.
    pub(crate) fn new(
        outline: MultiTokenModel,
        stock: WeightReader,
        heads: Option<HeadsFile>,
    ) -> Self {
        Self { outline, stock, heads, other_trunk: None }
    }

    /// Sizes and heads.
    pub fn config(&self) -> &ModelConfig {
        self.outline.config()
    }

    /// The model before anything was read, to look at its form: all is there but its tensors' numbers,
    /// which are undefined.
    pub fn outline(&self) -> &MultiTokenModel {
        &self.outline
    }

    /// Puts the heads in `path`, a file or a folder with one, on this model in place of its own.
    /// Whether they were trained on this model is found out when it is read.
    ///
    /// # Errors
    /// When the file is missing or damaged, or does not say what heads it holds.
    pub fn with_heads(mut self, path: &Path, registry: &Registry) -> Result<Self> {
        let (file, heads) = HeadsFile::open_for(path, &self.config().architecture)?;
        self.replace_heads(&heads, Some(file), registry)?;
        Ok(self)
    }

    /// Leaves the heads beyond the first unread.
    pub(crate) fn without_heads(mut self, registry: &Registry) -> Result<Self> {
        self.replace_heads(&HeadsConfig::new(BlockHead::KIND, 1), None, registry)?;
        Ok(self)
    }

    fn replace_heads(
        &mut self,
        heads: &HeadsConfig,
        file: Option<HeadsFile>,
        registry: &Registry,
    ) -> Result<()> {
        if self.heads.is_none() {
            // The model's own are in the same files as all.
            let own = self.outline.head_parameters();
            let own: BTreeSet<&str> =
                own.iter().flat_map(|head| &head.parts).map(|part| part.name.as_str()).collect();
            self.stock.pass_over(|name| own.contains(name));
        }
        let init = Initialiser::unset(self.outline.kind(), self.outline.device());
        self.outline.replace_heads(heads, registry, &init)?;
        self.heads = file;
        Ok(())
    }

    /// Lets heads in that were trained on another model of the same sizes, the same one in another
    /// number format or one that was tuned further, and says so to `tell`. What they draft is
    /// verified, so that the text is this model's own; it may be wrong more often.
    #[must_use]
    pub fn tolerate_other_trunks(mut self, tell: impl FnOnce(&str) + 'static) -> Self {
        self.other_trunk = Some(Box::new(tell));
        self
    }

    /// Reads all weights.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape, cannot be read, or has no place in the model, or
    /// the heads were trained on another model; file and tensor are named.
    pub fn read(self) -> Result<MultiTokenModel> {
        let (model, mut reading) = self.begin()?;
        reading.unembedding = Some(model.unembedding.shallow_clone());
        model.trunk.blocks.iter().try_for_each(|block| reading.block(block))?;
        model.heads.iter().try_for_each(|head| reading.head(head.as_ref()))?;
        reading.finish()?;
        Ok(model)
    }

    /// Reads the ends; the rest as it is asked for.
    ///
    /// # Errors
    /// As [`UnreadModel::read`].
    pub fn pieces(self) -> Result<ModelPieces> {
        let (model, reading) = self.begin()?;
        let MultiTokenModel { config, trunk, heads, final_norm, unembedding, draft_vocabulary } =
            model;
        let blocks = trunk.blocks.into_iter().map(Piece::Block);
        let left: Vec<Piece> = blocks.chain(heads.into_iter().map(Piece::Head)).collect();
        Ok(ModelPieces {
            config,
            embedding: trunk.embed_tokens,
            final_norm,
            unembedding,
            draft_vocabulary,
            rest: Pieces { left: left.into_iter(), reading: Some(reading) },
        })
    }

    /// Reads the ends.
    fn begin(self) -> Result<(MultiTokenModel, Reading)> {
        let Self { mut outline, mut stock, heads, other_trunk } = self;
        let Architecture { vocab, tied, .. } = outline.config.architecture;
        let expected = match &heads {
            None => outline.parameters(),
            Some(file) => {
                file.check(&outline.head_parameters())?;
                outline.stock_parameters()
            }
        };
        stock.check(&expected, |name| tied && name == UNEMBEDDING)?;
        let tokens = heads.as_ref().map(|file| file.draft_tokens(vocab)).transpose()?;
        let embedding = outline.trunk.part_parameters(TrunkPart::Embedding);
        stock.fill_all(&embedding)?;
        stock.fill_all(&outline.part_parameters(ModelPart::Readout))?;
        if tied && stock.has(UNEMBEDDING) {
            check_tied(&mut stock, &outline.unembedding)?;
        }
        outline.set_draft_vocabulary(tokens.flatten())?;
        // In fewer bits than they are stored in, the numbers are others.
        let exact = matches!(outline.kind(), Kind::Float | Kind::Double);
        let checks = exact && heads.as_ref().is_some_and(HeadsFile::says_trunk);
        let mut reading = Reading {
            stock,
            file: heads,
            other_trunk,
            beyond: None,
            fingerprint: checks.then(Fingerprint::default),
            norm: outline.final_norm.shallow_clone(),
            unembedding: None,
            untied: (!tied).then(|| outline.unembedding.size()),
            layers: 0,
            heads: 0,
        };
        reading.note(&embedding)?;
        Ok((outline, reading))
    }
}

/// A reading under way, behind the ends.
struct Reading {
    stock: WeightReader,
    /// The heads' own file, until the stock part is read.
    file: Option<HeadsFile>,
    /// And from then on.
    beyond: Option<WeightReader>,
    other_trunk: Option<Tell>,
    /// Of the stock part, where the heads say of which model's they are.
    fingerprint: Option<Fingerprint>,
    norm: Tensor,
    /// The unembedding, of a model that stays whole.
    unembedding: Option<Tensor>,
    /// The shape of one that is not the embedding.
    untied: Option<Vec<i64>>,
    /// Stock layers that were read: the trunk's blocks, and head 0 behind them.
    layers: usize,
    /// Heads that were read.
    heads: usize,
}

impl Reading {
    fn block(&mut self, block: &Block) -> Result<()> {
        self.layer(&block.parameters(&layer_prefix(self.layers)))
    }

    fn head(&mut self, head: &dyn Head) -> Result<()> {
        if self.heads == 0 {
            self.layer(&head.parameters(&layer_prefix(self.layers)))?;
            self.end_stock()?;
        } else {
            let reader = self.beyond.as_mut().unwrap_or(&mut self.stock);
            reader.fill_all(&head.parameters(&head_prefix(self.heads)))?;
        }
        self.heads += 1;
        Ok(())
    }

    fn piece(&mut self, piece: &Piece) -> Result<()> {
        match piece {
            Piece::Block(block) => self.block(block),
            Piece::Head(head) => self.head(head.as_ref()),
        }
    }

    fn layer(&mut self, parameters: &[Parameter]) -> Result<()> {
        self.layers += 1;
        self.stock.fill_all(parameters)?;
        self.note(parameters)
    }

    /// Behind the stock part: nothing is left of it, and the heads are this model's.
    fn end_stock(&mut self) -> Result<()> {
        let Some(file) = self.file.take() else { return Ok(()) };
        self.stock.check_all_taken()?;
        self.note(&[readout_norm(&self.norm)])?;
        if let (Some(shape), true) = (&self.untied, self.fingerprint.is_some()) {
            let unembedding = if let Some(tensor) = self.unembedding.take() {
                tensor
            } else {
                // Who has it in another form by now did not keep the tensor.
                let kind = (self.norm.kind(), Device::Cpu);
                let mut again = Tensor::f_empty(shape.as_slice(), kind)?;
                self.stock.copy_to(UNEMBEDDING, &mut again)?;
                again
            };
            self.note(&[readout_unembedding(&unembedding)])?;
        }
        if let Some(fingerprint) = self.fingerprint.take() {
            let found = fingerprint.finish()?;
            match self.other_trunk.take() {
                None => file.check_trunk(&found)?,
                Some(tell) => {
                    if let Some(problem) = file.other_trunk(&found) {
                        tell(&problem);
                    }
                }
            }
        }
        self.beyond = Some(file.into_reader());
        Ok(())
    }

    /// Adds stock tensors to the fingerprint.
    fn note(&mut self, parameters: &[Parameter]) -> Result<()> {
        let Some(fingerprint) = &mut self.fingerprint else { return Ok(()) };
        fingerprint.add(parameters, &self.stock.path(""))
    }

    fn finish(self) -> Result<()> {
        self.stock.check_all_taken()?;
        Ok(self.beyond.as_ref().map_or(Ok(()), WeightReader::check_all_taken)?)
    }
}

impl Iterator for Pieces {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        let mut reading = self.reading.take()?;
        let Some(piece) = self.left.next() else {
            return reading.finish().err().map(Err);
        };
        Some(reading.piece(&piece).map(|()| {
            self.reading = Some(reading);
            piece
        }))
    }
}

/// An unembedding that is stored although it is said to be the embedding has to be it.
fn check_tied(reader: &mut WeightReader, embedding: &Tensor) -> Result<()> {
    let mut stored = embedding.detach().f_empty_like()?;
    reader.fill_view(UNEMBEDDING, &mut stored)?;
    if stored.f_equal(embedding)? {
        return Ok(());
    }
    let problem = "differs from the embedding, though config.json has tie_word_embeddings = true";
    Err(TrunkError::tensor(&reader.path(UNEMBEDDING), UNEMBEDDING, problem).into())
}
