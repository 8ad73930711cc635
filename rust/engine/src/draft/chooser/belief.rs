//! How often guesses come true: estimates from history alone.
//!
//! A guess is known by its source, by how sure the drafter is of it and by its place in the draft. Its chance is a share
//! counted per class of confidence, shifted by two leanings, of the source and of the row, that follow every outcome
//! quickly, and corrected for its place. All of it fades, because texts change.

use crate::draft::{MAX_DRAFT, Source};

/// Classes of confidence, of equal width.
pub(super) const CLASSES: usize = 8;
/// Outcomes that a class remembers.
const WINDOW: f64 = 128.0;
/// A class without outcomes counts as so many of what its confidence says.
const PRIOR: f64 = 4.0;
/// A place in the draft counts as so many outcomes of what the guesses' confidence says.
const DEPTH_PRIOR: f64 = 12.0;
/// Outcomes that stay when a source has not been used for long: then a few new ones decide.
const AGED: f64 = 12.0;

/// What a row adds to what is known of the sources: in some texts they do better than in others.
#[derive(Clone, Copy, Debug, Default)]
pub struct RowRecord {
    /// In log odds.
    lean: [f64; Source::ALL.len()],
}

/// Guesses whose confidence is of a class or of a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Gate {
    /// The lowest class.
    pub class: usize,
    /// Their share of all guesses.
    pub share: f64,
    /// How many of them come true, in log odds.
    pub odds: f64,
}

/// What is known of one source.
#[derive(Clone, Debug)]
pub(super) struct Belief {
    source: Source,
    /// Guesses that came true and all, by class.
    classes: [(f64, f64); CLASSES],
    /// Share of the guesses that are of a class.
    shares: [f64; CLASSES],
    /// Guesses that came true, and those expected to, by place in the draft.
    depths: [(f64, f64); MAX_DRAFT],
    lean: f64,
    /// Outcomes so far.
    seen: f64,
}

impl Belief {
    pub fn new(source: Source) -> Self {
        let share = 1.0 / CLASSES as f64;
        Self {
            source,
            classes: [(0.0, 0.0); CLASSES],
            shares: [share; CLASSES],
            depths: [(0.0, 0.0); MAX_DRAFT],
            lean: 0.0,
            seen: 0.0,
        }
    }

    /// Chance of a guess of this confidence at this place, if all before it came true.
    pub fn chance(&self, record: &RowRecord, confidence: f32, depth: usize) -> f64 {
        self.placed(self.odds(class(confidence)), record, depth)
    }

    /// Chance of a guess that passes `gate`, of which nothing else is known.
    pub fn chance_behind(&self, gate: Gate, record: &RowRecord, depth: usize) -> f64 {
        self.placed(gate.odds, record, depth)
    }

    fn placed(&self, odds: f64, record: &RowRecord, depth: usize) -> f64 {
        let (hits, expected) = self.depths[depth.min(MAX_DRAFT - 1)];
        let place = (hits + DEPTH_PRIOR) / (expected + DEPTH_PRIOR);
        (logistic(odds + record.lean[self.source as usize]) * place).clamp(1e-3, 0.999)
    }

    /// Log odds of a class.
    fn odds(&self, class: usize) -> f64 {
        let (hits, tries) = self.classes[class];
        let prior = logistic(logit((class as f64 + 0.5) / CLASSES as f64) + self.lean);
        logit((hits + PRIOR * prior) / (tries + PRIOR))
    }

    /// A gate at every class that guesses reach.
    pub fn gates(&self) -> impl Iterator<Item = Gate> {
        let (mut share, mut hits) = (0.0, 0.0);
        (0..CLASSES).rev().filter_map(move |class| {
            share += self.shares[class];
            hits += self.shares[class] * logistic(self.odds(class));
            // The last one is open whatever the rounding.
            let gate = Gate { class, share: if class == 0 { 1.0 } else { share.min(1.0) }, odds: logit(hits / share) };
            (self.shares[class] > 1e-3 || class == 0).then_some(gate)
        })
    }

    /// The gate that all guesses pass.
    pub fn open_gate(&self) -> Gate {
        self.gates().last().unwrap_or_default()
    }

    /// Takes note of a draft: of its guesses the first `judged` were put to the test and the first `accepted` came true.
    pub fn observe(&mut self, record: &mut RowRecord, confidence: &[f32], judged: usize, accepted: usize) {
        for &confidence in confidence {
            self.shares.iter_mut().for_each(|share| *share *= 1.0 - 1.0 / WINDOW);
            self.shares[class(confidence)] += 1.0 / WINDOW;
        }
        for (depth, &confidence) in confidence.iter().enumerate().take(judged) {
            self.learn(record, confidence, depth, depth < accepted);
        }
    }

    fn learn(&mut self, record: &mut RowRecord, confidence: f32, depth: usize, hit: bool) {
        let class = class(confidence);
        let lean = &mut record.lean[self.source as usize];
        let expected = logistic(self.odds(class) + *lean);
        let surprise = f64::from(u8::from(hit)) - self.chance(record, confidence, depth);
        let fading = 1.0 - 1.0 / WINDOW;
        let (hits, all) = &mut self.depths[depth.min(MAX_DRAFT - 1)];
        (*hits, *all) = (*hits * fading + f64::from(u8::from(hit)), *all * fading + expected);
        let (hits, tries) = &mut self.classes[class];
        (*hits, *tries) = (*hits * fading + f64::from(u8::from(hit)), *tries * fading + 1.0);
        // Text that repeats itself begins and ends doing so at once; how well a network guesses changes slowly.
        let rate = if matches!(self.source, Source::NGram | Source::Table) { 0.25 } else { 0.12 };
        let lean = &mut record.lean[self.source as usize];
        *lean = (*lean * (1.0 - 1.0 / WINDOW) + rate * surprise).clamp(-3.0, 3.0);
        // The first outcomes say most about a source of which nothing is known.
        self.seen += 1.0;
        self.lean = (self.lean + (2.0 / (2.0 + self.seen)).max(0.05) * surprise).clamp(-3.0, 3.0);
    }

    /// Forgets most of what is long ago.
    pub fn age(&mut self, record: &mut RowRecord) {
        for (hits, tries) in &mut self.classes {
            let kept = (AGED / *tries).min(1.0);
            (*hits, *tries) = (*hits * kept, *tries * kept);
        }
        record.lean[self.source as usize] *= 0.75;
    }
}

/// The class of a confidence; one that is no number is the lowest.
pub(super) fn class(confidence: f32) -> usize {
    ((confidence * CLASSES as f32) as usize).min(CLASSES - 1)
}

fn logistic(odds: f64) -> f64 {
    1.0 / (1.0 + (-odds).exp())
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(1e-3, 0.999);
    (p / (1.0 - p)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drafts of one guess, of which the share `chance` comes true, evenly spread.
    fn feed(belief: &mut Belief, record: &mut RowRecord, confidence: f32, chance: f64, times: usize) {
        for i in 0..times {
            let hit = ((i + 1) as f64 * chance).floor() > (i as f64 * chance).floor();
            belief.observe(record, &[confidence], 1, usize::from(hit));
        }
    }

    #[test]
    fn chances_are_learnt_by_class() {
        let (mut belief, mut record) = (Belief::new(Source::Prophet), RowRecord::default());
        for _ in 0..60 {
            feed(&mut belief, &mut record, 0.9, 0.8, 5);
            feed(&mut belief, &mut record, 0.2, 0.1, 10);
        }
        for (confidence, chance) in [(0.9, 0.8), (0.2, 0.1)] {
            let found = belief.chance(&record, confidence, 0);
            assert!((found - chance).abs() < 0.08, "{confidence}: {found}");
        }
        let gates: Vec<_> = belief.gates().collect();
        let open = &belief.open_gate();
        assert_eq!(gates.last(), Some(open));
        assert_eq!((open.class, open.share), (0, 1.0));
        let high = gates.iter().find(|gate| gate.class == 7).expect("the class of 0.9");
        assert!((high.share - 1.0 / 3.0).abs() < 0.05, "{high:?}");
        assert!((belief.chance_behind(*open, &record, 0) - 1.0 / 3.0).abs() < 0.1);
    }

    #[test]
    fn later_places_may_be_worse() {
        let (mut belief, mut record) = (Belief::new(Source::Prophet), RowRecord::default());
        for i in 0..400 {
            let accepted = if i % 5 == 0 { 0 } else { 1 + usize::from(i % 2 == 0) };
            belief.observe(&mut record, &[0.7; 2], (accepted + 1).min(2), accepted);
        }
        let [first, second] = [0, 1].map(|depth| belief.chance(&record, 0.7, depth));
        assert!((first - 0.8).abs() < 0.1 && (second - 0.5).abs() < 0.1, "{first} {second}");
        let later = belief.chance(&record, 0.7, 5);
        assert!(later > second && later < 0.8, "nothing is known of later places: {later}");
    }

    #[test]
    fn rows_differ() {
        let (mut belief, mut good, mut bad) = (Belief::new(Source::NGram), RowRecord::default(), RowRecord::default());
        for _ in 0..100 {
            feed(&mut belief, &mut good, 0.6, 1.0, 1);
            feed(&mut belief, &mut bad, 0.6, 0.0, 1);
        }
        let [good, bad, new] = [good, bad, RowRecord::default()].map(|record| belief.chance(&record, 0.6, 0));
        assert!(good > 0.8 && bad < 0.2 && (new - 0.5).abs() < 0.15, "{good} {bad} {new}");
    }

    #[test]
    fn strange_confidences_have_a_class() {
        assert_eq!([0.0, 0.124, 0.125, 0.999, 1.0].map(class), [0, 0, 1, 7, 7]);
        assert_eq!([f32::NAN, -1.0, f32::INFINITY].map(class), [0, 0, 7]);
    }
}
