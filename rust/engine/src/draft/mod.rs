//! Drafts: tokens guessed ahead, for the model to verify in one pass.
//!
//! A drafter only proposes. What it proposes decides how fast text comes, never which text, so nothing here needs to be
//! exact; the one thing that must be true is that a [`Draft`] tells the distribution its tokens were really drawn from.

pub mod chooser;
mod companions;
mod config;
pub mod cost;
mod guess;
mod hash;
mod ngram;
mod prophet;
mod second;
mod table;

use crate::decode::RowId;
use crate::error::Result;
use crate::sampler::Sampler;

pub use companions::Companions;
pub use config::{Method, SpeculativeConfig, Verify};
pub use ngram::NGram;
pub use prophet::ProphetDrafter;
pub use second::SecondModel;
pub use table::{OrderReport, Table, TableFile, TableOptions, build_table};

/// Most tokens of one draft.
pub const MAX_DRAFT: usize = 16;

/// Where drafted tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The longest earlier occurrence, in prompt and output, of the last tokens.
    NGram,
    /// A table of the training text.
    Table,
    /// The small network trained along with the model.
    Prophet,
    /// A second, smaller model of the same vocabulary.
    Model,
    /// A drafter of the caller's own.
    Own,
}

impl Source {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 5] = [Self::NGram, Self::Table, Self::Prophet, Self::Model, Self::Own];

    /// Whether its guesses are looked up rather than computed: they cost next to nothing.
    pub fn is_free(self) -> bool {
        matches!(self, Self::NGram | Self::Table)
    }

    /// The name users see.
    pub fn name(self) -> &'static str {
        match self {
            Self::NGram => "ngram",
            Self::Table => "table",
            Self::Prophet => "prophet",
            Self::Model => "draft_model",
            Self::Own => "own",
        }
    }
}

/// What a drafted token was drawn from.
#[derive(Clone, Debug, PartialEq)]
pub enum Drawn {
    /// It was the only choice: probability 1.
    Certain,
    /// Ids ascending, and their probabilities.
    From(Vec<u32>, Vec<f32>),
}

/// Tokens guessed ahead for one row.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// The guesses, of which each goes on from those before it.
    pub tokens: Vec<u32>,
    /// How sure the drafter is of each, 0 to 1, in a measure of its own. Known before the token is drawn unless
    /// [`DraftRow::shared_noise`]: then it may look at the token.
    pub confidence: Vec<f32>,
    /// What each was drawn from; filled only when [`DraftRow::distributions`] asks for it.
    pub drawn: Vec<Drawn>,
    /// Where they come from.
    pub source: Option<Source>,
}

impl Draft {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.confidence.clear();
        self.drawn.clear();
        self.source = None;
    }
}

/// One row that wants a draft.
#[derive(Debug)]
pub struct DraftRow<'a> {
    /// Which row.
    pub row: RowId,
    /// Its sequence as far as it is known: what was read and generated, the token that comes next to be read last.
    pub history: &'a [u32],
    /// Position at which the token after `history` is drawn, see [`Sampler::sample`].
    pub position: u64,
    /// Most tokens to guess: 1 to [`MAX_DRAFT`].
    pub max_tokens: usize,
    /// How the row draws.
    pub sampler: &'a Sampler,
    /// Draw each guess with the noise that the row itself will draw with at that position (or greedily where the row is
    /// greedy), so that equal distributions give equal tokens. Otherwise draw with noise of the drafter's own,
    /// [`Sampler::draft_uniform`] of `position` and the guess's number.
    pub shared_noise: bool,
    /// Fill [`Draft::drawn`].
    pub distributions: bool,
    /// Where the guesses go; empty before.
    pub draft: &'a mut Draft,
}

/// Guesses tokens.
///
/// It serves the rows of one [`Decoder`](crate::decode::Decoder) and may keep something for each, which it finds by
/// [`DraftRow::row`]; a row it has never heard of, or lost, is no error but at worst gets no guess.
pub trait Drafter: Send {
    /// Where its guesses come from.
    fn source(&self) -> Source;

    /// Whether [`observe`](Self::observe) needs the model's hidden states.
    fn wants_hidden(&self) -> bool {
        false
    }

    /// Tells of tokens that the model has read for a row, and that stay: `tokens[i]` led to `hidden[i * width ..]`, the
    /// residual stream before `ln_out`. Fewer hidden states than tokens belong to the last tokens. Nothing is told of guesses
    /// that were refused. The next token of the row, not yet read, is the last of the next [`DraftRow::history`].
    fn observe(&mut self, row: RowId, tokens: &[u32], hidden: &[f32]);

    /// Guesses for all rows at once. After each guess `more(i, draft)` says whether row `i` shall get another.
    ///
    /// # Errors
    /// Of the drafter's own model. Drafts may then hold anything.
    fn propose(&mut self, rows: &mut [DraftRow<'_>], more: &mut dyn FnMut(usize, &Draft) -> bool) -> Result<()>;

    /// A row has left.
    fn forget(&mut self, row: RowId);
}

/// What the tests of drafters share.
#[cfg(test)]
mod testing {
    use std::path::Path;
    use std::sync::{Arc, OnceLock};

    use super::*;
    use crate::decode::{Decoder, Request};
    use crate::model::{LoadOptions, Model};
    use crate::sampler::SamplingParams;
    use crate::tokenizer::load_tokenizer;

    /// Names of rows, all different.
    pub fn rows<const N: usize>() -> [RowId; N] {
        static ROWS: OnceLock<Vec<RowId>> = OnceLock::new();
        let all = ROWS.get_or_init(|| {
            let model = golden("spikegpt-tiny");
            let mut config = model.config().clone();
            config.tokenizer_class = Some("bytes".into());
            let tokenizer = load_tokenizer(&model.path(), Some(&config)).expect("bytes");
            let mut decoder = Decoder::new(model.runner().expect("a runner"), tokenizer);
            let request = Request { prompt: vec![1], ..Request::default() };
            (0..8).map(|_| decoder.add(&request).expect("a row")).collect()
        });
        std::array::from_fn(|i| all[i])
    }

    /// A draft for one row.
    pub fn draft(
        drafter: &mut dyn Drafter,
        row: RowId,
        history: &[u32],
        max_tokens: usize,
        more: impl Fn(&Draft) -> bool,
    ) -> Draft {
        let sampler = Sampler::new(&SamplingParams::default(), 1 << 10, 0, 0).expect("good values");
        draft_by(&sampler, true, drafter, row, history, max_tokens, more)
    }

    /// The same for a row that draws with `sampler`, with its own noise or not.
    pub fn draft_by(
        sampler: &Sampler,
        shared_noise: bool,
        drafter: &mut dyn Drafter,
        row: RowId,
        history: &[u32],
        max_tokens: usize,
        more: impl Fn(&Draft) -> bool,
    ) -> Draft {
        let mut draft = Draft::default();
        let position = history.len() as u64;
        let wish = DraftRow {
            row,
            history,
            position,
            max_tokens,
            sampler,
            shared_noise,
            distributions: true,
            draft: &mut draft,
        };
        drafter.propose(&mut [wish], &mut |_, draft| more(draft)).expect("a draft");
        draft
    }

    /// A golden model.
    pub fn golden(name: &str) -> Arc<Model> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        Model::load(&folder, &LoadOptions { threads: Some(1), ..LoadOptions::default() }).expect("a model")
    }
}
