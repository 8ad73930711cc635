//! The seam between decoding and devices: a [`Runner`] takes ragged rows of tokens through the model in one pass.

mod cpu;
mod device;

pub use cpu::CpuRunner;
pub use device::DeviceRunner;
pub(crate) use device::cpu_only;

use spikelet_simd::Cpu;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::state::Slot;

/// Which positions of a row need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: the row only moves its state on.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

/// One sequence's share of a pass.
#[derive(Clone, Copy, Debug)]
pub struct PassRow<'a> {
    /// State before the tokens. Unchanged unless it is also named in `keep`.
    pub slot: Slot,
    /// At least one token id.
    pub tokens: &'a [u32],
    /// Which positions need logits.
    pub logits: LogitsWanted,
    /// Where states go: one slot takes the state after the last token; as many as there are tokens take the state after
    /// each. `slot` itself may be among them. No slot may serve two rows of a pass.
    pub keep: &'a [Slot],
}

/// What is drawn from one line of a pass's logits, by the settings of [`SamplingParams`](crate::sampler::SamplingParams).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawSpec {
    /// Which of the lines.
    pub line: usize,
    /// Ids from here on stand for nothing and are not drawn.
    pub known: usize,
    /// Whose random numbers.
    pub seed: u64,
    /// Whose random numbers.
    pub row: u32,
    /// The position of the token in its sequence.
    pub position: u64,
    /// 0: the first of the likeliest tokens.
    pub temperature: f32,
    /// Whether the filters come before the temperature.
    pub late_temperature: bool,
    /// 0: all.
    pub top_k: usize,
    /// 1: all.
    pub top_p: f32,
}

/// A token that was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub id: u32,
    /// Logarithm of its probability under the logits as they are.
    pub logprob: f32,
}

/// Runs a model over batches of rows, and owns the state slots.
///
/// On CPU the result of a row does not depend, in any bit, on how its tokens are cut into passes or on the other rows.
pub trait Runner: Send {
    /// The model's configuration.
    fn config(&self) -> &ModelConfig;

    /// Most tokens that one pass may hold, over all rows.
    fn max_pass_tokens(&self) -> usize;

    /// Takes a slot holding the state before the first token.
    ///
    /// # Errors
    /// [`Error::Device`] if a GPU has no more room, or is lost.
    fn alloc_slot(&mut self) -> Result<Slot>;

    /// Gives a slot back.
    fn free_slot(&mut self, slot: Slot);

    /// Puts the state before the first token into a slot.
    ///
    /// # Errors
    /// [`Error::Device`] if a GPU is lost.
    fn reset_slot(&mut self, slot: Slot) -> Result<()>;

    /// Copies one slot over another.
    ///
    /// # Errors
    /// [`Error::Device`] if a GPU is lost.
    fn copy_slot(&mut self, from: Slot, to: Slot) -> Result<()>;

    /// Copies a slot's content out.
    ///
    /// # Errors
    /// [`Error::Device`] if a GPU is lost.
    fn read_state(&self, slot: Slot) -> Result<Vec<f32>>;

    /// Puts content that was read before into a slot.
    ///
    /// # Errors
    /// [`Error::State`] if it does not fit the model; [`Error::Device`] if a GPU is lost.
    fn write_state(&mut self, slot: Slot, state: &[f32]) -> Result<()>;

    /// Runs one pass.
    ///
    /// # Errors
    /// [`Error::TokenId`] for an id outside the vocabulary. Nothing has changed then.
    /// [`Error::Device`] if a GPU is lost: so are all its slots.
    ///
    /// # Panics
    /// If a row has no tokens, `keep` has another length than 1 or the number of tokens, or the pass holds more than
    /// [`max_pass_tokens`](Self::max_pass_tokens): mistakes of the caller, not of the user.
    fn forward(&mut self, rows: &[PassRow<'_>]) -> Result<()>;

    /// Like [`forward`](Self::forward), but logits and hidden states may stay where they were computed: [`draw`](Self::draw) finds them
    /// there, and [`fetch`](Self::fetch) brings them.
    ///
    /// # Errors
    /// Those of [`forward`](Self::forward).
    fn forward_deferred(&mut self, rows: &[PassRow<'_>]) -> Result<()> {
        self.forward(rows)
    }

    /// Brings what [`forward_deferred`](Self::forward_deferred) left elsewhere.
    ///
    /// # Errors
    /// [`Error::Device`] if a GPU is lost.
    fn fetch(&mut self, _logits: bool, _hidden: bool) -> Result<()> {
        Ok(())
    }

    /// Whether it has a [`draw`](Self::draw) of its own.
    fn draws(&self) -> bool {
        false
    }

    /// Draws tokens where the logits are: exactly those that a [`Sampler`](crate::sampler::Sampler) draws, one for each spec; none where it
    /// has to look at the logits itself.
    ///
    /// # Errors
    /// [`Error::Device`] if a GPU is lost.
    fn draw(&mut self, specs: &[DrawSpec], drawn: &mut Vec<Option<Drawn>>) -> Result<()> {
        drawn.clear();
        drawn.resize(specs.len(), None);
        Ok(())
    }

    /// The threads that passes run on, for work between them; None: it has none to lend.
    fn cpu(&self) -> Option<&Cpu> {
        None
    }

    /// Logits of the last pass, `[lines][vocab_size]`: row after row, one line per position that needed them.
    fn logits(&self) -> &[f32];

    /// The residual stream before `ln_out` at the same positions, `[lines][hidden_size]`.
    fn hidden(&self) -> &[f32];
}

/// Refuses ids that the model does not have; what else is wrong with rows is a mistake of the caller.
pub(crate) fn check_rows(rows: &[PassRow<'_>], vocab_size: usize, most: usize) -> Result<()> {
    let mut tokens = 0;
    for row in rows {
        assert!(!row.tokens.is_empty(), "a row of a pass has no tokens");
        assert!(
            row.keep.len() == 1 || row.keep.len() == row.tokens.len(),
            "a row of {} tokens cannot keep {} states",
            row.tokens.len(),
            row.keep.len()
        );
        if let Some(&id) = row.tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id: u64::from(id), vocab_size });
        }
        tokens += row.tokens.len();
    }
    assert!(tokens <= most, "a pass of {tokens} tokens, the most is {most}");
    Ok(())
}
