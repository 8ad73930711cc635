//! Many prompts at once: rows of one decoder that join as others leave.

use std::collections::HashMap;
use std::sync::Arc;

use pyo3::prelude::*;
use spikelet::backend::DeviceRunner;
use spikelet::decode::{Decoder, Event, Events, Request, RowId};
use spikelet::error::Result;

use crate::errors::engine;
use crate::shared::Shared;
use crate::stream::Outcome;

/// Rows in flight, and what has come of the others.
struct Batch<'a> {
    decoder: Decoder<DeviceRunner>,
    events: Events,
    requests: &'a [Request],
    /// How many requests have joined.
    joined: usize,
    /// Most rows at once.
    size: usize,
    index: HashMap<RowId, usize>,
    outcomes: Vec<Outcome>,
    failure: Option<PyErr>,
}

impl Batch<'_> {
    /// Lets rows join where there is room, and runs one pass. Whether there is more to do.
    fn step(&mut self) -> Result<bool> {
        while self.joined < self.requests.len() && self.decoder.num_active() < self.size {
            let row = self.decoder.add(&self.requests[self.joined])?;
            self.index.insert(row, self.joined);
            self.joined += 1;
        }
        self.decoder.step(&mut self.events)?;
        for event in self.events.iter() {
            let (Event::Token { row, .. } | Event::Finished { row, .. }) = event;
            if let Some(&index) = self.index.get(&row) {
                self.failure = self.outcomes[index].take(event).or(self.failure.take());
            }
        }
        Ok(self.failure.is_none() && (self.joined < self.requests.len() || !self.decoder.is_idle()))
    }
}

/// Generates all of them, `size` at a time at most. Ctrl-C is looked for between passes.
pub fn run(py: Python<'_>, shared: &Arc<Shared>, requests: &[Request], size: usize) -> PyResult<Vec<Outcome>> {
    let mut batch = engine(py, || {
        Ok(Batch {
            decoder: shared.decoder()?,
            events: Events::new(),
            requests,
            joined: 0,
            size,
            index: HashMap::with_capacity(requests.len()),
            outcomes: vec![Outcome::default(); requests.len()],
            failure: None,
        })
    })?;
    if !requests.is_empty() {
        while engine(py, || batch.step())? {
            py.check_signals()?;
        }
    }
    if let Some(failure) = batch.failure {
        return Err(failure);
    }
    shared.give_back(batch.decoder);
    Ok(batch.outcomes)
}
