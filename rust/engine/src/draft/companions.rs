//! What speculation needs beside a model: the drafters in its folder, and what passes and drafts cost on this machine.

use std::sync::{Arc, Mutex, PoisonError};

use super::cost::CostTable;
use super::{Draft, DraftRow, Drafter, MAX_DRAFT, ProphetDrafter, Source, TableFile};
use crate::decode::RowId;
use crate::error::Result;
use crate::model::{Model, Prophet};
use crate::sampler::{Sampler, SamplingParams, Workspace};

/// Each loaded or measured when first asked for, and shared by all decoders of a model.
pub struct Companions {
    model: Arc<Model>,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    prophet: Option<Option<Arc<Prophet>>>,
    table: Option<Option<Arc<TableFile>>>,
    costs: Option<Arc<CostTable>>,
}

/// What `place` holds, made by `make` if it is empty.
fn once<T: Clone>(place: &mut Option<T>, make: impl FnOnce() -> Result<T>) -> Result<T> {
    Ok(match place {
        Some(found) => found.clone(),
        None => place.insert(make()?).clone(),
    })
}

impl Companions {
    /// Those of a model. Nothing is read yet.
    pub fn new(model: Arc<Model>) -> Self {
        Self { model, found: Mutex::default() }
    }

    /// The prophet in the model's folder, if there is one.
    ///
    /// # Errors
    /// Those of [`Prophet::of`].
    pub fn prophet(&self) -> Result<Option<Arc<Prophet>>> {
        once(&mut self.found().prophet, || Prophet::of(&self.model))
    }

    /// The n-gram table in the model's folder, if there is one.
    ///
    /// # Errors
    /// Those of [`TableFile::of`].
    pub fn table(&self) -> Result<Option<Arc<TableFile>>> {
        once(&mut self.found().table, || TableFile::of(&self.model))
    }

    /// What passes and drafts cost: remembered from an earlier time, else measured now, which takes a moment.
    ///
    /// # Errors
    /// Of passes and of reading the prophet.
    pub fn costs(&self) -> Result<Arc<CostTable>> {
        let prophet = self.prophet()?;
        once(&mut self.found().costs, || {
            let mut table = CostTable::of(&self.model)?;
            measure_draw(&mut table, &self.model)?;
            if let Some(prophet) = prophet {
                measure_prophet(&mut table, &self.model, prophet)?;
            }
            Ok(Arc::new(table))
        })
    }

    /// A panic while it is held leaves nothing half done behind.
    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Times drawing a token in the usual way.
fn measure_draw(table: &mut CostTable, model: &Model) -> Result<()> {
    let vocab_size = model.config().vocab_size;
    // Some tokens far likelier than the rest, as in a text.
    let logits: Vec<f32> = (0..vocab_size).map(|id| ((id * 7919) % 1009) as f32 * 0.01).collect();
    let sampling = SamplingParams { temperature: 0.8, top_p: 0.95, ..SamplingParams::default() };
    let sampler = Sampler::new(&sampling, vocab_size, 0, 0)?;
    let mut work = Workspace::new(model.cpu().level(), vocab_size);
    let mut position = 0;
    table.measure_line(&mut || {
        position += 1;
        sampler.sample(logits.as_slice(), position, &mut work).map(drop)
    })
}

/// Times drafts of a prophet that was told of hidden states of zero: what it guesses does not matter.
fn measure_prophet(table: &mut CostTable, model: &Model, prophet: Arc<Prophet>) -> Result<()> {
    let width = model.config().hidden_size;
    let known = prophet.config().num_leading;
    let name = format!("prophet {} bytes", prophet.weight_bytes());
    let sampler = Sampler::new(&SamplingParams::default(), model.config().vocab_size, 0, 0)?;
    let mut drafter = ProphetDrafter::new(prophet);
    let history = vec![0; known + 1];
    let hidden = vec![0.0; known * width];
    let mut drafts = Vec::new();
    table.measure_draft(Source::Prophet, model, &name, &mut |rows, tokens| {
        drafts.resize_with(rows, Draft::default);
        let mut asks: Vec<DraftRow<'_>> = Vec::with_capacity(rows);
        for (i, draft) in drafts.iter_mut().enumerate() {
            let row = RowId::for_measuring(i);
            drafter.observe(row, &history[..known], &hidden);
            draft.clear();
            asks.push(DraftRow {
                row,
                history: &history,
                position: 0,
                max_tokens: tokens.clamp(1, MAX_DRAFT),
                sampler: &sampler,
                shared_noise: true,
                distributions: false,
                draft,
            });
        }
        drafter.propose(&mut asks, &mut |_, _| true)
    })
}
