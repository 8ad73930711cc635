//! What all handles of one loaded model share.

use std::sync::{Arc, Mutex};

use spikelet::backend::DeviceRunner;
use spikelet::decode::{Decoder, Events, Request};
use spikelet::draft::Companions;
use spikelet::error::{Error, Result};
use spikelet::generation_config::GenerationConfig;
use spikelet::tokenizer::{Tokenizer, load_tokenizer};

use crate::args::Prompt;
use crate::errors::lock;
use crate::tokenizer::IdsOnly;

/// Idle decoders that are kept: their buffers are warm.
const MOST_IDLE: usize = 4;

/// A loaded model with its tokenizer and settings.
pub struct Shared {
    pub model: Arc<spikelet::model::Model>,
    /// Or why there is none.
    tokenizer: std::result::Result<Arc<dyn Tokenizer>, String>,
    pub settings: GenerationConfig,
    pub companions: Arc<Companions>,
    idle: Mutex<Vec<Decoder<DeviceRunner>>>,
}

impl Shared {
    pub fn new(model: Arc<spikelet::model::Model>) -> Result<Self> {
        let config = model.config();
        let tokenizer = match load_tokenizer(&model.path(), Some(config)) {
            Ok(tokenizer) => Ok(tokenizer),
            Err(Error::NoTokenizer { reason, .. }) => Err(reason),
            Err(error) => return Err(error),
        };
        let settings = model.checkpoint().generation_config()?.unwrap_or_default();
        let companions = Arc::new(Companions::new(Arc::clone(&model)));
        Ok(Self { model, tokenizer, settings, companions, idle: Mutex::default() })
    }

    pub fn vocab_size(&self) -> usize {
        self.model.config().vocab_size
    }

    pub fn tokenizer(&self) -> Result<&Arc<dyn Tokenizer>> {
        self.tokenizer.as_ref().map_err(|reason| {
            let reason = format!("give token ids instead of text; {reason}");
            Error::NoTokenizer { path: self.model.path(), reason }
        })
    }

    /// The ids of a prompt, every one of them in the vocabulary.
    pub fn ids(&self, name: &str, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Text(text) => self.tokenizer()?.encode(text),
            Prompt::Ids(ids) => ids.resolve(name, self.vocab_size()),
        }
    }

    /// Checks all about a request that can be checked before it runs.
    pub fn check(&self, request: &Request) -> Result<()> {
        let mut decoder = self.decoder()?;
        let row = decoder.add(request)?;
        decoder.cancel(row);
        decoder.step(&mut Events::new())?;
        self.give_back(decoder);
        Ok(())
    }

    /// An idle decoder: one that was used before, or a new one.
    pub fn decoder(&self) -> Result<Decoder<DeviceRunner>> {
        if let Some(decoder) = lock(&self.idle)?.pop() {
            return Ok(decoder);
        }
        let tokenizer = self.tokenizer.clone().unwrap_or_else(|_| Arc::new(IdsOnly(self.vocab_size())));
        Ok(Decoder::with_companions(self.model.runner()?, tokenizer, Arc::clone(&self.companions)))
    }

    /// Takes a decoder back for the next user, unless it still has rows.
    pub fn give_back(&self, decoder: Decoder<DeviceRunner>) {
        if let Ok(mut idle) = self.idle.lock()
            && decoder.is_idle()
            && idle.len() < MOST_IDLE
        {
            idle.push(decoder);
        }
    }
}
