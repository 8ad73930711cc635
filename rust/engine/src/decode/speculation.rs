//! Drafting for the rows of a decoder: which drafters there are, who asks which, and what came of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RowId;
use super::plan::{Demand, PROMPT_TOKENS_WHILE_DECODING};
use super::row::Row;
use crate::backend::Runner;
use crate::draft::chooser::{Chooser, Cut, RowRecord};
use crate::draft::{
    Companions, Draft, DraftRow, Drafter, MAX_DRAFT, Method, NGram, ProphetDrafter, SecondModel, SpeculativeConfig,
    Table, Verify,
};
use crate::error::{Error, Result};
use crate::model::Model;

/// What speculation means for one row.
#[derive(Clone, Debug, Default)]
pub(super) struct Speculation {
    /// The drafters it may ask, by index, best first.
    drafters: Vec<usize>,
    /// Guesses per draft; `None`: as many as pay.
    num_tokens: Option<usize>,
    pub(super) verify: Verify,
    pub(super) forced_acceptance: Option<f64>,
    /// How well its own drafts did.
    record: RowRecord,
}

/// What tells one drafter of a decoder from the others.
#[derive(Clone)]
enum Kind {
    /// The caller's own.
    Own,
    NGram {
        min: usize,
        max: usize,
    },
    Table,
    Prophet,
    Model(Arc<Model>),
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NGram { min, max }, Self::NGram { min: a, max: b }) => (min, max) == (a, b),
            (Self::Model(this), Self::Model(other)) => Arc::ptr_eq(this, other),
            (this, other) => std::mem::discriminant(this) == std::mem::discriminant(other),
        }
    }
}

struct Seat {
    kind: Kind,
    drafter: Box<dyn Drafter>,
    /// Time of the current round's drafts.
    seconds: f64,
}

impl Seat {
    /// Whether its guesses are looked up rather than computed.
    fn is_free(&self) -> bool {
        self.drafter.source().is_free()
    }
}

/// The drafters of a decoder, each made when first asked for, and who chooses between them.
#[derive(Default)]
pub(super) struct Drafting {
    companions: Option<Arc<Companions>>,
    seats: Vec<Seat>,
    /// Made when a row that leaves the choice open has the first chance of a draft.
    chooser: Option<Chooser>,
    /// Rounds in a row that had a look at what could be drafted, and in which nothing was worth it.
    idle: u32,
    /// Whether this round had one.
    looked: bool,
    /// Seconds that such a look takes, and those of a round.
    look: f64,
    round: f64,
    /// Rounds that pass without a look, and those that have, since the last.
    asleep: u32,
    slept: u32,
    /// Tokens that a drafter is told of.
    read: Vec<u32>,
}

/// After so many looks that led to no guesses, rounds are decoded as if there were no drafters ..
const IDLE: u32 = 4;
/// .. as many as make looking take this share of the time: it costs some microseconds, which count where a round has a hundred ..
const LOOK_SHARE: f64 = 0.005;
/// .. but not more.
const LONGEST_SLEEP: u32 = 15;
/// Rounds before it wakes from which drafters hear again what is read.
const STIRRING: u32 = 4;

impl Drafting {
    pub(super) fn new(companions: Option<Arc<Companions>>) -> Self {
        Self { companions, ..Self::default() }
    }

    /// Finds or makes the drafters of a request.
    ///
    /// # Errors
    /// [`Error::Option`] for settings that make no sense, or that need what the model does not have; those of reading it.
    pub(super) fn admit(&mut self, config: &SpeculativeConfig, runner: &impl Runner) -> Result<Speculation> {
        config.validate()?;
        let mut drafters = Vec::new();
        let method = config.method;
        let asked = |methods: &[Method]| methods.contains(&method);
        if asked(&[Method::NGram, Method::ProphetNGram, Method::Auto]) {
            let (min, max) = (config.lookup_min, config.lookup_max);
            drafters.push(self.find(Kind::NGram { min, max }, || NGram::new(min, max))?);
        }
        if asked(&[Method::Table, Method::Auto]) {
            match self.companions.as_ref().map_or(Ok(None), |companions| companions.table())? {
                Some(table) => drafters.push(self.find(Kind::Table, || Ok(Table::new(table)))?),
                None if method == Method::Auto => {}
                None => {
                    return Err(missing(method, "an n-gram table in the model's folder: build_ngram_table makes one"));
                }
            }
        }
        if asked(&[Method::Prophet, Method::ProphetNGram, Method::Auto]) {
            match self.companions.as_ref().map_or(Ok(None), |companions| companions.prophet())? {
                Some(prophet) => drafters.push(self.find(Kind::Prophet, || Ok(ProphetDrafter::new(prophet)))?),
                None if method == Method::Auto => {}
                None => {
                    return Err(missing(method, "a prophet in the model's folder: spikelet train-prophet makes one"));
                }
            }
        }
        if let (Method::DraftModel, Some(model)) = (method, &config.draft_model) {
            let make = || SecondModel::new(Arc::clone(model), runner.config());
            drafters.push(self.find(Kind::Model(Arc::clone(model)), make)?);
        }
        if method == Method::Own {
            let own = self.seats.iter().position(|seat| seat.kind == Kind::Own);
            drafters.push(own.ok_or_else(|| missing(method, "a drafter, given to the decoder"))?);
        }
        Ok(Speculation {
            drafters,
            num_tokens: config.num_tokens,
            verify: config.verify,
            forced_acceptance: config.forced_acceptance,
            record: RowRecord::default(),
        })
    }

    /// Puts the caller's own drafter in the place of the one before.
    pub(super) fn set_own(&mut self, drafter: Box<dyn Drafter>) {
        match self.seats.iter_mut().find(|seat| seat.kind == Kind::Own) {
            Some(seat) => seat.drafter = drafter,
            None => self.seats.push(Seat { kind: Kind::Own, drafter, seconds: 0.0 }),
        }
    }

    /// The drafter of a kind, made if there is none.
    fn find<D: Drafter + 'static>(&mut self, kind: Kind, make: impl FnOnce() -> Result<D>) -> Result<usize> {
        if let Some(index) = self.seats.iter().position(|seat| seat.kind == kind) {
            return Ok(index);
        }
        self.seats.push(Seat { kind, drafter: Box::new(make()?), seconds: 0.0 });
        Ok(self.seats.len() - 1)
    }

    /// Lets the rows that speculate have their drafts. A pass holds `most_tokens`.
    ///
    /// # Errors
    /// Of a drafter. No row has a draft then.
    pub(super) fn propose(&mut self, rows: &mut [Row], most_tokens: usize) -> Result<()> {
        rows.iter_mut().for_each(Row::clear_draft);
        self.seats.iter_mut().for_each(|seat| seat.seconds = 0.0);
        self.looked = false;
        if !rows.iter().any(|row| !row.speculation.drafters.is_empty() && row.most_guesses() > 0) {
            return Ok(());
        }
        if self.asleep > 0 && rows.iter().all(Row::is_open) {
            self.asleep -= 1;
            self.slept += 1;
            return Ok(());
        }
        let slept = std::mem::take(&mut self.slept);
        let knows_costs = self.chooser.is_some();
        if let Some(chooser) = &mut self.chooser {
            chooser.skip(slept);
        }
        let proposed = self.propose_all(rows, most_tokens);
        // The round that measures costs tells nothing of what a look takes.
        self.looked = knows_costs;
        if proposed.is_err() {
            rows.iter_mut().for_each(Row::clear_draft);
        }
        proposed
    }

    fn propose_all(&mut self, rows: &mut [Row], most_tokens: usize) -> Result<()> {
        // Every row reads one token at least, so guesses share what is left of a pass.
        let most = most_tokens.saturating_sub(rows.len()) / rows.len();
        let Self { companions, seats, chooser, .. } = self;
        for (index, seat) in seats.iter_mut().enumerate().filter(|(_, seat)| seat.is_free()) {
            ask(seat, rows, |_, row| row.wants(index, most), &mut |_, _| true)?;
        }
        // Measuring takes a moment, so it waits until there is something to choose.
        if let Some(companions) = companions
            && chooser.is_none()
            && rows.iter().any(|row| row.is_open() && row.has_chance(seats))
        {
            *chooser = Some(Chooser::new(companions.costs()?));
        }
        // Rows with drafts of a given length, and all where nothing is known of costs.
        let choosing = chooser.is_some();
        for (index, seat) in seats.iter_mut().enumerate().filter(|(_, seat)| !seat.is_free()) {
            let wants = |_, row: &Row| if choosing && row.is_open() { 0 } else { row.wants(index, most) };
            ask(seat, rows, wants, &mut |_, _| true)?;
        }
        let Some(chooser) = chooser else {
            rows.iter_mut().for_each(Row::use_whole_draft);
            return Ok(());
        };
        rows.iter_mut().filter(|row| !row.is_open()).for_each(Row::use_whole_draft);
        let open: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].is_open() && rows[i].has_chance(seats)).collect();
        if open.is_empty() {
            return Ok(());
        }
        let (decoding, prompts): (Vec<Demand>, Vec<Demand>) = rows.iter().map(Row::demand).partition(|d| d.decoding);
        let tokens = |demands: &[Demand]| demands.iter().map(|demand| demand.tokens).sum::<usize>();
        let other = tokens(&decoding) - open.len() + tokens(&prompts).min(PROMPT_TOKENS_WHILE_DECODING);
        Open { chooser, rows: open, other, room: most_tokens }.choose(seats, rows)
    }

    /// Whether any drafter asks for the model's hidden states.
    pub(super) fn wants_hidden(&self) -> bool {
        self.seats.iter().any(|seat| seat.drafter.wants_hidden())
    }

    /// Tells of what became of a row's part of a pass: `accepted` of its guesses stay; `hidden` are the residual streams at
    /// the tokens that led to logits and stay.
    pub(super) fn observe(&mut self, row: &mut Row, accepted: usize, hidden: &[f32]) {
        if let (Some(source), 1..) = (row.draft.source, row.used) {
            row.stats.speculation.note(source, row.used, accepted);
        }
        if let (Some(source), Some(chooser)) = (row.draft.source, &mut self.chooser) {
            // A guess that was cut off is put to the test, too, if all before it came true.
            let beyond = row.draft.tokens.get(row.used).filter(|_| accepted == row.used);
            let came_true = beyond.is_some() && beyond.copied() == row.last_drawn();
            let judged = (accepted + 1).min(row.used + usize::from(beyond.is_some()));
            let accepted = accepted + usize::from(came_true);
            chooser.observe(source, &mut row.speculation.record, &row.draft.confidence, judged, accepted);
        }
        if self.asleep > STIRRING && row.is_open() {
            return;
        }
        self.read.clear();
        self.read.extend_from_slice(row.last_read(1));
        self.read.extend_from_slice(&row.draft.tokens[..accepted]);
        for &index in &row.speculation.drafters {
            let drafter = &mut self.seats[index].drafter;
            drafter.observe(row.id, &self.read, if drafter.wants_hidden() { hidden } else { &[] });
        }
    }

    /// Books the times of a step, of drafting, of the pass and of drawing, on the rows that were decoding.
    pub(super) fn book(&mut self, rows: &mut [Row], demands: &[Demand], shares: &[usize], times: [Duration; 3]) {
        let [draft, verify, accept] = times.map(|time| time.as_secs_f64());
        let decoding = |(demand, share): (&Demand, &usize)| demand.decoding && *share > 0;
        let num_decoding = demands.iter().zip(shares).filter(|&pair| decoding(pair)).count();
        if num_decoding == 0 {
            return;
        }
        let tokens: usize = shares.iter().sum();
        let lines: usize = rows.iter().map(Row::num_drawn).sum();
        let drafted = rows.iter().any(|row| row.used > 0);
        self.rest(drafted, draft, verify + accept);
        let mut predicted = None;
        if let Some(chooser) = &mut self.chooser {
            let lengths = |source| {
                let of_source = move |row: &&Row| row.draft.source == Some(source);
                rows.iter().filter(of_source).map(|row| row.draft.tokens.len())
            };
            let costs = chooser.costs_mut();
            let table = costs.table();
            let sources = self.seats.iter().filter(|seat| seat.seconds > 0.0).map(|seat| seat.drafter.source());
            let drafts: f64 = sources.map(|source| table.predict_draft(source, lengths(source))).sum();
            let round = drafts + table.predict_pass(tokens as f64) + table.predict_lines(lines as f64);
            let base = table.predict_pass(num_decoding as f64) + table.predict_lines(num_decoding as f64);
            predicted = Some((round, base));
            // A pass that also reads prompts has fewer lines of logits than tokens, and says nothing of those that have as many.
            if demands.iter().zip(shares).all(|pair| *pair.1 == 0 || decoding(pair)) {
                for seat in self.seats.iter().filter(|seat| seat.seconds > 0.0) {
                    costs.note_draft(seat.drafter.source(), lengths(seat.drafter.source()), seat.seconds);
                }
                costs.note_pass(tokens, verify);
                costs.note_lines(lines, accept);
                costs.note_round(drafted, draft + verify + accept);
            }
        }
        for ((row, demand), share) in rows.iter_mut().zip(demands).zip(shares) {
            if decoding((demand, share)) {
                let drawn = row.num_drawn() as f64;
                let stats = &mut row.stats.speculation;
                stats.draft_seconds += draft;
                stats.verify_seconds += verify;
                stats.accept_seconds += accept;
                if let Some((round, base)) = predicted {
                    stats.predicted_seconds += round;
                    stats.predicted_base_seconds += base * drawn;
                }
            }
        }
    }

    /// After a round, decides how many pass without a look. `drafted`: guesses were verified in this one.
    fn rest(&mut self, drafted: bool, draft: f64, others: f64) {
        if drafted {
            self.idle = 0;
            self.asleep = 0;
        } else if self.looked {
            // Slowly, and whatever came between takes little part.
            let learn = |known: &mut f64, seconds: f64| {
                *known = if *known > 0.0 { *known + (seconds.min(4.0 * *known) - *known) / 8.0 } else { seconds };
            };
            learn(&mut self.look, draft);
            learn(&mut self.round, others);
            self.idle += 1;
            if self.idle >= IDLE {
                let rounds = self.look / (LOOK_SHARE * self.round.max(1e-9));
                self.asleep = (rounds as u32).min(LONGEST_SLEEP);
            }
        }
    }

    /// A row has left.
    pub(super) fn forget(&mut self, row: RowId) {
        self.seats.iter_mut().for_each(|seat| seat.drafter.forget(row));
    }
}

impl Row {
    /// Whether the length of its drafts is left open.
    fn is_open(&self) -> bool {
        self.speculation.num_tokens.is_none()
    }

    /// Guesses that it wants of a drafter, if it has none yet.
    fn wants(&self, drafter: usize, most: usize) -> usize {
        if !self.draft.tokens.is_empty() || !self.speculation.drafters.contains(&drafter) {
            return 0;
        }
        self.most_guesses().min(self.speculation.num_tokens.unwrap_or(MAX_DRAFT)).min(most)
    }

    /// Whether it has a draft, or may ask one who computes drafts.
    fn has_chance(&self, seats: &[Seat]) -> bool {
        let computes = self.speculation.drafters.iter().any(|&index| !seats[index].is_free());
        !self.draft.tokens.is_empty() || computes && self.most_guesses() > 0
    }
}

/// Asks a drafter for as many guesses per row as `wanted` says.
fn ask(
    seat: &mut Seat,
    rows: &mut [Row],
    wanted: impl Fn(usize, &Row) -> usize,
    more: &mut dyn FnMut(usize, &Draft) -> bool,
) -> Result<()> {
    let mut indices = Vec::new();
    let mut asks: Vec<DraftRow<'_>> = Vec::new();
    for (i, row) in rows.iter_mut().enumerate() {
        let n = wanted(i, row);
        if n > 0 {
            indices.push(i);
            asks.push(row.ask(n));
        }
    }
    if asks.is_empty() {
        return Ok(());
    }
    let started = Instant::now();
    let source = seat.drafter.source();
    seat.drafter.propose(&mut asks, &mut |ask, draft| more(indices[ask], draft))?;
    for ask in asks {
        let drafted = !ask.draft.tokens.is_empty();
        ask.draft.source = drafted.then_some(source);
    }
    seat.seconds += started.elapsed().as_secs_f64();
    Ok(())
}

/// Rows that leave it open how much is drafted, and from what.
struct Open<'a> {
    chooser: &'a mut Chooser,
    /// Their indices, ascending.
    rows: Vec<usize>,
    /// Tokens that others have in the pass, and that it holds at most.
    other: usize,
    room: usize,
}

impl Open<'_> {
    /// Has the chooser decide for them.
    fn choose(&mut self, seats: &mut [Seat], rows: &mut [Row]) -> Result<()> {
        self.offer(seats, rows, false);
        let choices = self.chooser.plan().to_vec();
        for (&i, choice) in self.rows.iter().zip(&choices) {
            let row = &mut rows[i];
            if row.draft.source == choice.source {
                row.used = choice.length.min(row.draft.tokens.len());
            } else if choice.source.is_some() {
                row.clear_draft();
            }
        }
        let mut computed = false;
        for (index, seat) in seats.iter_mut().enumerate().filter(|(_, seat)| !seat.is_free()) {
            let source = Some(seat.drafter.source());
            let wanted = |i: usize, row: &Row| match self.rows.binary_search(&i) {
                Ok(k) if choices[k].source == source && row.speculation.drafters.contains(&index) => choices[k].length,
                _ => 0,
            };
            let chooser = &*self.chooser;
            let place = |i: usize| self.rows.binary_search(&i).expect("only these rows were asked for");
            ask(seat, rows, wanted, &mut |i, draft| chooser.more(place(i), &draft.confidence))?;
            computed |= seat.seconds > 0.0;
        }
        if computed {
            self.offer(seats, rows, true);
            for (&i, choice) in self.rows.iter().zip(self.chooser.settle()) {
                rows[i].used = choice.length.min(rows[i].draft.tokens.len());
            }
        }
        Ok(())
    }

    /// Tells the chooser what there is. `made`: drafts are made, and no others can be had.
    fn offer(&mut self, seats: &[Seat], rows: &[Row], made: bool) {
        self.chooser.begin(self.other, self.room);
        for row in self.rows.iter().map(|&i| &rows[i]) {
            self.chooser.row(row.most_guesses(), None);
            let record = &row.speculation.record;
            if let Some(source) = row.draft.source {
                let cut = if source.is_free() || row.speculation.verify == Verify::Coupled {
                    Cut::Anywhere
                } else {
                    Cut::Last
                };
                self.chooser.offer_ready(source, record, &row.draft.confidence, cut);
            }
            for seat in
                row.speculation.drafters.iter().map(|&index| &seats[index]).filter(|seat| !seat.is_free() && !made)
            {
                self.chooser.offer(seat.drafter.source(), record);
            }
        }
    }
}

fn missing(method: Method, needed: &str) -> Error {
    Error::Option { name: "speculative".into(), value: format!("{:?}", method.name()), needed: needed.into() }
}
