//! Opening a model with its tokenizer.

use std::path::Path;

use anyhow::{Context, ensure};
use foretoken_data::{ChatTemplate, Message, Tokenizer};
use foretoken_heads::{ModelSource, MultiTokenModel, Registry, UnreadModel};
use tch::{Device, Kind};

/// A model, not yet read, with what turns text into its tokens.
pub(crate) struct Opened {
    pub(crate) model: UnreadModel,
    pub(crate) reader: PromptReader,
}

/// What turns prompts into a model's tokens.
pub(crate) struct PromptReader {
    pub(crate) tokenizer: Tokenizer,
    /// The most tokens that the model takes.
    context: usize,
    chat: Option<Chat>,
}

/// How prompts become chats.
struct Chat {
    template: ChatTemplate,
    /// What is said before the user speaks.
    system: Option<String>,
}

impl Opened {
    /// Opens the folder or GGUF file `path` in float32, with the heads in `heads` in place of its own.
    pub(crate) fn new(path: &Path, heads: Option<&Path>, device: Device) -> anyhow::Result<Self> {
        ensure!(path.exists(), "--model {}: there is no such folder or file", path.display());
        let source = ModelSource::open(path).context("cannot open the model")?;
        let registry = Registry::stock();
        let model = match heads {
            None => source.unread(Kind::Float, device).context("cannot open the model")?,
            Some(heads) => source
                .unread_stock(&registry, Kind::Float, device)
                .context("cannot open the model")?
                .with_heads(heads, &registry)
                .context("cannot join the heads")?,
        };
        let tokenizer = source.tokenizer().context("cannot open the model's tokenizer")?;
        let context = model.config().architecture.context;
        Ok(Self { model, reader: PromptReader { tokenizer, context, chat: None } })
    }

    /// Reads the model.
    pub(crate) fn read(self) -> anyhow::Result<(MultiTokenModel, PromptReader)> {
        Ok((self.model.read().context("cannot read the model")?, self.reader))
    }

    /// From now on prompts are what a user says to the model, which was told `system` before.
    pub(crate) fn with_chat(mut self, path: &Path, system: Option<String>) -> anyhow::Result<Self> {
        let template = template(&self.reader.tokenizer, path)?;
        self.reader.chat = Some(Chat { template, system });
        Ok(self)
    }
}

fn template(tokenizer: &Tokenizer, path: &Path) -> anyhow::Result<ChatTemplate> {
    tokenizer.chat_template()?.with_context(|| {
        format!(
            "--chat: {} has no chat template; write the conversation out as the prompt",
            path.display()
        )
    })
}

impl PromptReader {
    /// The tokens of a prompt, refused where they don't fit the model's context.
    pub(crate) fn encode(&self, prompt: &str) -> anyhow::Result<Vec<u32>> {
        let tokens = match &self.chat {
            None => self.tokenizer.encode_with_specials(prompt)?,
            Some(Chat { template, system }) => {
                let system = system.iter().map(|text| Message::new("system", text));
                let user = Message::new("user", prompt);
                let messages: Vec<Message> = system.chain([user]).collect();
                self.tokenizer.encode_chat(&template.render(&messages, true)?)?
            }
        };
        let context = self.context;
        ensure!(!tokens.is_empty(), foretoken_decode::Error::EmptyPrompt);
        ensure!(
            tokens.len() <= context,
            foretoken_decode::Error::PromptTooLong { tokens: tokens.len(), context }
        );
        Ok(tokens)
    }
}
