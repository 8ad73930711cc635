//! One row of a decoder of its own: what `Generation` and `Session` drive, without Python.

use std::sync::{Arc, Mutex, Weak};

use pyo3::PyErr;
use spikelet::backend::DeviceRunner;
use spikelet::decode::{Decoder, Event, Events, FinishReason, Request, RowId, RowStats, SequenceState};
use spikelet::error::Result;
use spikelet::sampler::TokenLogprob;

use crate::errors::{exception, lock};
use crate::shared::Shared;

/// A generated token, before it becomes a Python object.
#[derive(Clone)]
pub struct Made {
    pub id: u32,
    pub text: Box<str>,
    pub logprob: f32,
    pub top_logprobs: Box<[TokenLogprob]>,
    pub drafted: bool,
}

/// What a row has come to so far.
#[derive(Clone, Default)]
pub struct Outcome {
    pub text: String,
    pub made: Vec<Made>,
    pub stats: RowStats,
    pub finish: Option<FinishReason>,
}

impl Outcome {
    /// Adds an event of the row. The error, if that is how it ended.
    pub fn take(&mut self, event: Event<'_>) -> Option<PyErr> {
        match event {
            Event::Token { id, text, logprob, top_logprobs, drafted, .. } => {
                self.text.push_str(text);
                self.made.push(Made { id, text: text.into(), logprob, top_logprobs: top_logprobs.into(), drafted });
                None
            }
            Event::Finished { reason, text, stats, error, .. } => {
                self.text.push_str(text);
                self.stats = *stats;
                self.finish = Some(reason);
                error.map(exception)
            }
        }
    }
}

/// A session at rest, and the row that is moving it on, if there is one.
#[derive(Default)]
pub struct Rest {
    /// Nothing: the beginning of a text.
    pub state: Option<Arc<SequenceState>>,
    /// Alive as long as the row has not ended.
    pub active: Weak<Mutex<Stream>>,
}

/// A row that is being generated.
pub struct Stream {
    shared: Arc<Shared>,
    /// Until the row has ended.
    decoder: Option<Decoder<DeviceRunner>>,
    row: RowId,
    events: Events,
    pub outcome: Outcome,
    /// How many of the tokens made were handed out.
    handed: usize,
    /// What ended the row and was not yet raised.
    failure: Option<PyErr>,
    /// The session to which the final state goes.
    session: Option<Arc<Mutex<Rest>>>,
}

impl Stream {
    pub fn start(shared: &Arc<Shared>, request: &Request, session: Option<Arc<Mutex<Rest>>>) -> Result<Self> {
        let mut decoder = shared.decoder()?;
        // So that what was made is what was handed out, and a session that is left early stands there.
        let added = decoder.add(&Request { one_per_step: true, ..request.clone() });
        let row = match added {
            Ok(row) => row,
            Err(error) => {
                shared.give_back(decoder);
                return Err(error);
            }
        };
        Ok(Self {
            shared: Arc::clone(shared),
            decoder: Some(decoder),
            row,
            events: Events::new(),
            outcome: Outcome::default(),
            handed: 0,
            failure: None,
            session,
        })
    }

    /// Whether no step is needed to go on: a token waits, or the row has ended.
    pub fn is_ready(&self) -> bool {
        self.handed < self.outcome.made.len() || self.decoder.is_none()
    }

    /// The next token that waits.
    pub fn next_made(&mut self) -> Option<Made> {
        let made = self.outcome.made.get(self.handed).cloned();
        self.handed += usize::from(made.is_some());
        made
    }

    /// Why the row failed, once.
    pub fn take_failure(&mut self) -> Option<PyErr> {
        self.failure.take()
    }

    /// Runs one pass.
    pub fn step(&mut self) -> Result<()> {
        let Some(decoder) = &mut self.decoder else { return Ok(()) };
        decoder.step(&mut self.events)?;
        for event in self.events.iter() {
            self.failure = self.outcome.take(event).or(self.failure.take());
        }
        match self.outcome.finish {
            Some(reason) => self.settle(reason),
            None => {
                self.outcome.stats = decoder.stats(self.row).unwrap_or_default();
                Ok(())
            }
        }
    }

    /// Ends the row, at once: no further pass is run.
    pub fn close(&mut self) -> Result<()> {
        if let Some(decoder) = &mut self.decoder {
            decoder.cancel(self.row);
        }
        self.step()
    }

    /// Ends the row as if it had never been: a session stays where it was.
    pub fn abandon(&mut self) -> Result<()> {
        if let Some(session) = self.session.take() {
            lock(&session)?.active = Weak::new();
        }
        self.close()
    }

    /// After the end: the state goes to the session and the decoder to whom it may serve next.
    fn settle(&mut self, reason: FinishReason) -> Result<()> {
        let Some(mut decoder) = self.decoder.take() else { return Ok(()) };
        if let Some(session) = self.session.take() {
            let mut rest = lock(&session)?;
            rest.active = Weak::new();
            if reason != FinishReason::Error {
                rest.state = Some(Arc::new(decoder.take_state(self.row)?));
            }
        }
        self.shared.give_back(decoder);
        Ok(())
    }
}
