//! How many tokens to draft, from which source: whatever makes the coming round give most tokens per second.
//!
//! A round that emits E tokens and takes S seconds has the rate E / S. Drafts raise both. What they add to E is expected from
//! history, what they add to S from measurement ([`LiveCosts`]); nothing else is known before a draft is
//! verified, so the choice cannot bend the text. A round of the decoder:
//!
//! 1. [`begin`](Chooser::begin), then for each decoding row [`row`](Chooser::row) and what it could draft from:
//!    [`offer_ready`](Chooser::offer_ready) for drafts that were looked up already, as those of n-grams,
//!    [`offer`](Chooser::offer) for sources that would have to compute.
//! 2. [`plan`](Chooser::plan) says what each row gets. Ready drafts are cut to that length; the others are drafted, while
//!    [`more`](Chooser::more) says so.
//! 3. If anything was drafted: `begin`, `row`, `offer_ready` once more and [`settle`](Chooser::settle), which knows how sure the
//!    drafter was and cuts what does not pay.
//! 4. After the pass [`observe`](Chooser::observe) for every draft, also for those that were cut, even to nothing: a guess that
//!    was not verified is put to the test by the token that came in its place.
//! 5. What things took goes to [`costs_mut`](Chooser::costs_mut).
//!
//! It never costs much: without a gain of 3 % nothing is drafted, and a source that loses is only tried again now and then,
//! for a half of a percent of the time at most. It is never given up for good.

mod belief;
mod offer;
mod probe;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BinaryHeap;
use std::sync::Arc;

pub use belief::RowRecord;

use belief::Belief;
use offer::{Next, Offer, Row};
use probe::Probe;

use super::cost::{CostTable, LiveCosts};
use super::{MAX_DRAFT, Source};

/// Drafts have to promise so much more than none.
const HYSTERESIS: f64 = 1.03;
/// Guesses that come true less often than this are not looked at: nothing is as cheap as that.
const HOPELESS: f64 = 0.02;
/// What reaches this share of the speed without drafts might pay if the cost of a pass is wrong.
const NEARLY: f64 = 0.7;
/// Share of the time that trying out what loses may take: at most, while it begins to win ..
const PROBE_SHARE: f64 = 0.004;
/// .. and in the long run.
const REST_SHARE: f64 = 0.001;
/// Guesses that are looked at beyond the best number of them: what a pass costs grows in steps of fewer tokens than that.
const LOOK_AHEAD: usize = 16;
/// Rounds between two looks at a source that loses, or at what changes as slowly.
const SLEEP: u32 = 7;
const SOURCES: usize = Source::ALL.len();

/// What a row does in the coming round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Where its draft comes from, if it gets one.
    pub source: Option<Source>,
    /// Length to cut a ready draft to; of any other, most tokens to draft.
    pub length: usize,
}

/// Where a finished draft may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Anywhere: its tokens were certain, or drawn with the noise that the row draws with.
    Anywhere,
    /// The last token may go, and for its confidence alone, which was known before it was drawn. To drop a token after
    /// having seen it, or what follows it, would change the distribution of the text.
    Last,
}

/// Chooses drafts. It may serve any number of decoders, one after another: what it has learnt of the sources stays of use.
///
/// It has no clock and no noise: equal calls lead to equal choices. After the first rounds it allocates nothing.
#[derive(Debug)]
pub struct Chooser {
    costs: LiveCosts,
    beliefs: [Belief; SOURCES],
    probes: [Probe; SOURCES],
    /// Rounds without any draft, by which the cost of one is known.
    base_probe: Probe,
    /// Rounds with drafts that do not seem to pay, by which the cost of passes over several tokens is known.
    pass_probe: Probe,
    /// Seconds that probes may take.
    credit: f64,
    /// Rounds since the last plan that were decoded without a look at drafts.
    skipped: u32,
    /// The source that a row tries out in this round.
    probing: Option<Source>,
    /// Whether this round has drafts that do not seem to pay.
    testing: bool,
    /// Of the round.
    other: f64,
    room: usize,
    rows: Vec<Row>,
    offers: Vec<Offer>,
    choices: Vec<Choice>,
    /// How sure guesses of a source must be to be kept, by class, and rounds until that is looked at again.
    gates: [(usize, u32); SOURCES],
    next: BinaryHeap<Next>,
    order: Vec<usize>,
    /// Tokens per second: what a second is worth.
    rate: f64,
    base_rate: f64,
    /// The rate of the last plan, in those without drafts: the best guess at that of the next.
    last_speedup: f64,
    /// Rows that get guess number 0, 1, 2 ... from a source.
    rows_at: [[f64; MAX_DRAFT]; SOURCES],
    /// Rounds in which an offer of a source that has just lost, and of which nothing was learnt since, is not looked at.
    sleep: [u32; SOURCES],
    /// A row that could draft from a source, and may be made to.
    idle: [Option<usize>; SOURCES],
}

impl Chooser {
    /// Knows nothing but what things cost.
    pub fn new(costs: Arc<CostTable>) -> Self {
        Self {
            costs: LiveCosts::new(costs),
            beliefs: Source::ALL.map(Belief::new),
            probes: [Probe::of_source(); SOURCES],
            base_probe: Probe::of_base(),
            pass_probe: Probe::of_source(),
            credit: 0.0,
            skipped: 0,
            probing: None,
            testing: false,
            other: 0.0,
            room: 0,
            rows: Vec::new(),
            offers: Vec::new(),
            choices: Vec::new(),
            gates: [(0, 0); SOURCES],
            next: BinaryHeap::new(),
            order: Vec::new(),
            rate: 0.0,
            base_rate: 0.0,
            last_speedup: 1.0,
            rows_at: [[0.0; MAX_DRAFT]; SOURCES],
            sleep: [0; SOURCES],
            idle: [None; SOURCES],
        }
    }

    /// Expected costs.
    pub fn costs(&self) -> &LiveCosts {
        &self.costs
    }

    /// Expected costs, to be told of what things took.
    pub fn costs_mut(&mut self) -> &mut LiveCosts {
        &mut self.costs
    }

    /// So many rounds have passed, before the one that begins, of which it was told nothing.
    pub fn skip(&mut self, rounds: u32) {
        self.skipped = rounds;
        self.pass_probe.skip(rounds);
        self.probes.iter_mut().for_each(|probe| probe.skip(rounds));
    }

    /// Begins a round whose pass holds `other` tokens beside the decoding rows', and `room` tokens in all at most.
    pub fn begin(&mut self, other: usize, room: usize) {
        self.other = other as f64;
        self.room = room.saturating_sub(other);
        self.rows.clear();
        self.offers.clear();
        self.idle = [None; SOURCES];
        self.beliefs.iter_mut().for_each(Belief::refresh);
    }

    /// Adds a decoding row that may draft so many tokens, and shall draft `fixed`, if given, whether that pays or not. Rows
    /// are numbered in this order. Offers that follow are its own.
    pub fn row(&mut self, max_tokens: usize, fixed: Option<usize>) {
        let max_tokens = max_tokens.min(fixed.unwrap_or(MAX_DRAFT)).min(MAX_DRAFT);
        let offers = self.offers.len()..self.offers.len();
        self.rows.push(Row { max_tokens, fixed: fixed.is_some(), offers, ..Row::default() });
    }

    /// The last row has a draft with guesses of such `confidence`.
    pub fn offer_ready(&mut self, source: Source, record: &RowRecord, confidence: &[f32], cut: Cut) {
        let Some(row) = self.rows.last_mut() else { return };
        if confidence.is_empty() || row.max_tokens == 0 {
            return;
        }
        let mut offer = Offer::new(source, record, true, confidence.len().min(row.max_tokens));
        offer.expect_known(&self.beliefs[source as usize], confidence);
        offer.fixed = match cut {
            _ if row.fixed => offer.len,
            Cut::Anywhere => 0,
            Cut::Last => offer.len - 1,
        };
        self.offers.push(offer);
        row.offers.end = self.offers.len();
    }

    /// The last row could have a draft, which is still to be made.
    pub fn offer(&mut self, source: Source, record: &RowRecord) {
        let number = self.rows.len().saturating_sub(1);
        let Some(row) = self.rows.last_mut() else { return };
        if row.max_tokens == 0 {
            return;
        }
        if !row.fixed {
            self.idle[source as usize] = Some(number);
            if self.sleep[source as usize] > 0 {
                return;
            }
        }
        let mut offer = Offer::new(source, record, false, row.max_tokens);
        offer.fixed = if row.fixed { offer.len } else { 0 };
        self.offers.push(offer);
        row.offers.end = self.offers.len();
    }

    /// What each row gets.
    pub fn plan(&mut self) -> &[Choice] {
        self.probing = None;
        self.testing = false;
        self.base_rate = self.rate_without();
        self.rate = self.base_rate * self.last_speedup;
        self.pick_sources();
        self.allocate(HYSTERESIS);
        let round = self.rows.len() as f64 / self.rate.max(1e-9);
        let rounds = f64::from(std::mem::take(&mut self.skipped) + 1);
        self.credit = (self.credit + PROBE_SHARE * round * rounds).min(round);
        self.last_speedup = self.expected_speedup();
        if self.rows.iter().all(|row| row.planned == 0) {
            self.base_probe.seen();
            self.try_losing();
        } else {
            self.pass_probe.used();
            if self.base_probe.is_due() {
                self.base_probe.tried(false, Probe::MOST);
                // Nothing but what is fixed.
                self.allocate(f64::INFINITY);
                return self.choose();
            }
        }
        self.probe();
        self.choose()
    }

    /// Lengths to cut drafts to, when all are made and have been offered as ready.
    pub fn settle(&mut self) -> &[Choice] {
        self.base_rate = self.rate_without();
        self.rate = self.rate.max(self.base_rate);
        self.pick_sources();
        self.allocate(if self.testing { 0.0 } else { 1.0 });
        self.choose()
    }

    /// Whether row number `row` shall draft another token after guesses of such `confidence`.
    pub fn more(&self, row: usize, confidence: &[f32]) -> bool {
        let (Some(row), Some(choice)) = (self.rows.get(row), self.choices.get(row)) else { return false };
        let drafted = confidence.len();
        let Some(offer) = self.chosen(row).filter(|offer| !offer.ready && drafted < choice.length) else {
            return false;
        };
        if row.fixed {
            return true;
        }
        let belief = &self.beliefs[offer.source as usize];
        let gate = belief.gates()[self.gates[offer.source as usize].0];
        let chances = confidence.iter().enumerate().map(|(depth, &c)| belief.chance(&offer.record, c, depth));
        let mut alive: f64 = chances.product();
        let tokens = self.tokens() + self.guesses() - self.guesses_of(row) + drafted as f64;
        let pass = self.costs.expect_pass(tokens);
        let (mut gain, mut reached, mut added, mut seconds) = (0.0, 1.0, 0.0, 0.0);
        // One more may not pay where two or three do: passes grow in steps.
        for depth in drafted..choice.length {
            seconds += reached * self.share_of_step(offer.source, depth);
            alive *= gate.share * belief.chance_behind(gate, &offer.record, depth);
            reached *= gate.share;
            (gain, added) = (gain + alive, added + reached);
            if gain > self.rate * (self.costs.expect_pass(tokens + added) - pass + seconds) {
                return true;
            }
            if alive < HOPELESS * reached {
                break;
            }
        }
        false
    }

    /// Takes note of a draft of a row, as long as it was before it was cut: of its guesses the first `judged` were put to the
    /// test, and the first `accepted` came true.
    pub fn observe(
        &mut self,
        source: Source,
        record: &mut RowRecord,
        confidence: &[f32],
        judged: usize,
        accepted: usize,
    ) {
        let belief = &mut self.beliefs[source as usize];
        if self.probing == Some(source) && judged > 0 {
            let rounds =
                self.costs.expect_step(source, 0, 1.0) * self.rate / (REST_SHARE * self.rows.len().max(1) as f64);
            self.probes[source as usize].tried(accepted > 0, (rounds as u32).clamp(Probe::FIRST, Probe::MOST));
            belief.age(record);
            self.probing = None;
        }
        belief.observe(record, confidence, judged.min(confidence.len()), accepted.min(judged));
        self.sleep[source as usize] = 0;
    }

    /// How many times as fast as without drafts the planned round is expected to be.
    pub fn expected_speedup(&self) -> f64 {
        if self.base_rate > 0.0 { self.rate / self.base_rate } else { 1.0 }
    }

    /// Tokens in the pass without any draft.
    fn tokens(&self) -> f64 {
        self.rows.len() as f64 + self.other
    }

    /// Tokens per second of a round, given those it emits and reads, and the seconds of its drafts.
    fn rate_of(&self, emitted: f64, tokens: f64, drafts: f64, drafted: bool) -> f64 {
        let lines = emitted * self.costs.expect_line();
        emitted / (self.costs.expect_pass(tokens) + drafts + lines + self.costs.expect_rest(drafted)).max(1e-12)
    }

    fn rate_without(&self) -> f64 {
        self.rate_of(self.rows.len() as f64, self.tokens(), 0.0, false)
    }

    /// Seconds of a guess for one row, of those that all rows take which are planned to get it.
    fn share_of_step(&self, source: Source, depth: usize) -> f64 {
        let rows = self.rows_at[source as usize][depth].max(1.0);
        self.costs.expect_step(source, depth, rows) / rows
    }

    /// The offer that a row looks at.
    fn chosen(&self, row: &Row) -> Option<&Offer> {
        row.chosen.map(|index| &self.offers[index])
    }

    /// Guesses of a row in the pass, as expected.
    fn guesses_of(&self, row: &Row) -> f64 {
        self.chosen(row).map_or(0.0, |offer| offer.tokens[row.planned])
    }

    /// Those of all rows.
    fn guesses(&self) -> f64 {
        self.rows.iter().map(|row| self.guesses_of(row)).sum()
    }

    /// Has every row look at the offer that promises most.
    fn pick_sources(&mut self) {
        let mut asked = [0; SOURCES];
        self.offers.iter().filter(|offer| !offer.ready).for_each(|offer| asked[offer.source as usize] += 1);
        for source in Source::ALL.into_iter().filter(|&source| asked[source as usize] > 0) {
            // How many will draft is not known; in a batch of equals all do.
            self.rows_at[source as usize] = [f64::from(asked[source as usize]); MAX_DRAFT];
            self.pick_gate(source);
        }
        let beside = self.tokens();
        for row in 0..self.rows.len() {
            let offers = self.rows[row].offers.clone();
            let best = match offers.len() {
                0 => None,
                1 => Some(offers.start),
                _ => {
                    let value = |&index: &usize| self.value(&self.offers[index], beside);
                    offers.max_by(|a, b| value(a).total_cmp(&value(b)))
                }
            };
            self.rows[row].chosen = best;
        }
    }

    /// Chooses how sure guesses of a source must be to be kept, and what its offers promise then.
    fn pick_gate(&mut self, source: Source) {
        let belief = &self.beliefs[source as usize];
        let asked = |offer: &Offer| offer.source == source && !offer.ready;
        let (mut class, mut fresh) = self.gates[source as usize];
        if fresh == 0
            && let Some(mut first) = self.offers.iter().copied().find(asked)
        {
            let tokens = self.tokens();
            let mut best = f64::NEG_INFINITY;
            for (index, &gate) in belief.gates().iter().enumerate() {
                first.expect(belief, gate);
                let value = self.value(&first, tokens);
                if value > best {
                    (best, class) = (value, index);
                }
            }
        }
        fresh = if fresh == 0 { SLEEP } else { fresh - 1 };
        self.gates[source as usize] = (class, fresh);
        for offer in self.offers.iter_mut().filter(|offer| asked(offer)) {
            // What is fixed passes whatever the drafter says.
            offer.expect(belief, belief.gates()[if offer.fixed > 0 { 0 } else { class }]);
        }
    }

    /// What an offer is worth, in tokens, at its best length and beside so many tokens in the pass.
    fn value(&self, offer: &Offer, beside: f64) -> f64 {
        let pass = self.costs.expect_pass(beside);
        let (mut best, mut drafting) = (f64::NEG_INFINITY, 0.0);
        for depth in 0..offer.len {
            if !offer.ready {
                drafting += offer.reach(depth) * self.share_of_step(offer.source, depth);
            }
            let reading = self.costs.expect_pass(beside + offer.tokens[depth + 1]) - pass;
            best = best.max(offer.gain[depth + 1] - self.rate * (reading + drafting));
            if offer.chance(depth) < HOPELESS {
                break;
            }
        }
        best
    }

    /// Gives guesses to rows, the likeliest first, and keeps as many as make the best rate: passes grow in steps, so a guess
    /// that does not pay may be followed by one with which both do.
    fn allocate(&mut self, needed: f64) {
        self.next.clear();
        self.order.clear();
        // Whatever is learnt, later rounds of as many rows take no memory.
        self.order.reserve(self.rows.len() * MAX_DRAFT);
        self.offers.reserve(SOURCES);
        self.rows_at = [[0.0; MAX_DRAFT]; SOURCES];
        let (mut emitted, mut tokens, mut drafting) = (self.rows.len() as f64, self.tokens(), 0.0);
        let mut left = self.room.saturating_sub(self.rows.len());
        for (index, row) in self.rows.iter_mut().enumerate() {
            row.planned = 0;
            let Some(offer) = row.chosen.map(|index| &self.offers[index]) else { continue };
            row.planned = offer.fixed.min(left);
            left -= row.planned;
            (emitted, tokens) = (emitted + offer.gain[row.planned], tokens + offer.tokens[row.planned]);
            for depth in (0..row.planned).filter(|_| !offer.ready) {
                self.rows_at[offer.source as usize][depth] += offer.reach(depth);
            }
            if row.planned < offer.len {
                self.next.push(Next { chance: offer.chance(row.planned), row: index });
            }
        }
        for source in Source::ALL {
            let rows = self.rows_at[source as usize].iter().enumerate().take_while(|(_, rows)| **rows > 0.0);
            drafting += rows.map(|(depth, &rows)| self.costs.expect_step(source, depth, rows)).sum::<f64>();
        }
        let without = self.rate_of(emitted, tokens, drafting, tokens > self.tokens());
        let mut best = (without * needed, 0);
        while let Some(Next { chance, row: index }) = self.next.pop() {
            if chance < HOPELESS || self.order.len() >= left.min(best.1 + LOOK_AHEAD) {
                break;
            }
            let row = &mut self.rows[index];
            let Some(offer) = row.chosen.map(|index| &self.offers[index]) else { continue };
            let depth = row.planned;
            row.planned += 1;
            emitted += offer.gain[depth + 1] - offer.gain[depth];
            tokens += offer.tokens[depth + 1] - offer.tokens[depth];
            if !offer.ready {
                let rows = &mut self.rows_at[offer.source as usize][depth];
                let before = self.costs.expect_step(offer.source, depth, *rows);
                *rows += offer.reach(depth);
                drafting += self.costs.expect_step(offer.source, depth, *rows) - before;
            }
            self.order.push(index);
            if row.planned < offer.len {
                self.next.push(Next { chance: offer.chance(row.planned), row: index });
            }
            let rate = self.rate_of(emitted, tokens, drafting, true);
            if rate > best.0 {
                best = (rate, self.order.len());
            }
        }
        for &row in &self.order[best.1..] {
            self.rows[row].planned -= 1;
        }
        self.rate = if best.1 > 0 { best.0 } else { without };
        self.count_rows();
    }

    /// How many rows draft a first, a second ... guess in the plan.
    fn count_rows(&mut self) {
        self.rows_at = [[0.0; MAX_DRAFT]; SOURCES];
        for row in &self.rows {
            let Some(offer) = row.chosen.map(|index| &self.offers[index]).filter(|offer| !offer.ready) else {
                continue;
            };
            for depth in 0..row.planned {
                self.rows_at[offer.source as usize][depth] += offer.reach(depth);
            }
        }
    }

    /// Drafts now and then although it does not seem to pay, if it nearly does: what is known of longer passes may be wrong,
    /// and would stay so.
    fn try_losing(&mut self) {
        let offered = !self.offers.is_empty() || self.idle.iter().any(Option::is_some);
        if !offered || !self.pass_probe.is_due() || self.offers.is_empty() {
            return;
        }
        self.allocate(0.0);
        let loss = self.rows.len() as f64 * (1.0 / self.rate - 1.0 / self.base_rate);
        if self.rate > NEARLY * self.base_rate && loss < self.credit {
            self.credit -= loss.max(0.0);
            self.pass_probe.tried(false, Probe::MOST);
            self.testing = true;
        } else {
            self.allocate(f64::INFINITY);
        }
    }

    /// Has a source that no row uses show now and then what it would do.
    fn probe(&mut self) {
        for source in Source::ALL {
            let index = source as usize;
            if self.rows_at[index][0] > 0.0 {
                self.probes[index].used();
                continue;
            }
            let Some(row) = self.idle[index].filter(|&row| self.rows[row].planned == 0) else { continue };
            // What it promises does not change while nothing is learnt; what things cost does, slowly.
            self.sleep[index] = self.sleep[index].checked_sub(1).unwrap_or(SLEEP);
            let cost = self.costs.expect_step(source, 0, 1.0);
            if self.probes[index].is_due() && self.probing.is_none() && cost <= self.credit {
                self.credit = (self.credit - cost).min(cost);
                self.probing = Some(source);
                self.rows[row].planned = 1;
                self.rows[row].chosen = Some(self.offers.len());
                self.offers.push(Offer::new(source, &RowRecord::default(), false, 1));
            }
        }
    }

    /// Choices from what is planned.
    fn choose(&mut self) -> &[Choice] {
        let Self { rows, offers, choices, .. } = self;
        let given = |row: &Row| row.chosen.filter(|_| row.planned > 0).map(|index| &offers[index]);
        let most: usize = rows.iter().filter_map(given).map(|offer| offer.len).sum();
        let fits = most + rows.len() <= self.room;
        choices.clear();
        choices.extend(rows.iter().map(|row| match given(row) {
            // While drafting one knows better.
            Some(offer) if fits && !offer.ready => Choice { source: Some(offer.source), length: offer.len },
            Some(offer) => Choice { source: Some(offer.source), length: row.planned },
            None => Choice::default(),
        }));
        choices
    }
}
