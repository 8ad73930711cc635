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
#[derive(Clone, Copy, Debug)]
pub struct RowRecord {
    /// In log odds ..
    lean: [f64; Source::ALL.len()],
    /// .. and as the factor of the odds that it makes.
    factor: [f64; Source::ALL.len()],
}

impl Default for RowRecord {
    fn default() -> Self {
        Self { lean: [0.0; Source::ALL.len()], factor: [1.0; Source::ALL.len()] }
    }
}

/// Guesses whose confidence is of a class or of a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Gate {
    /// Their share of all guesses.
    pub share: f64,
    /// The odds that one of them comes true.
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
    /// Whether something was learnt that is not in what follows, which is used far more often.
    stale: bool,
    odds: [f64; CLASSES],
    /// What a place makes of the chance of a guess.
    places: [f64; MAX_DRAFT],
    gates: [Gate; CLASSES],
}

impl Belief {
    pub fn new(source: Source) -> Self {
        let mut belief = Self {
            source,
            classes: [(0.0, 0.0); CLASSES],
            shares: [1.0 / CLASSES as f64; CLASSES],
            depths: [(0.0, 0.0); MAX_DRAFT],
            lean: 0.0,
            seen: 0.0,
            stale: true,
            odds: [0.0; CLASSES],
            places: [0.0; MAX_DRAFT],
            gates: [Gate::default(); CLASSES],
        };
        belief.refresh();
        belief
    }

    /// Takes what was learnt into account.
    pub fn refresh(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let factor = self.lean.exp();
        for (class, (hits, tries)) in self.classes.iter().enumerate() {
            // Without outcomes a guess is as good as the drafter says, and as it leans.
            let said = (class as f64 + 0.5) / CLASSES as f64;
            let prior = chance(odds(said) * factor);
            self.odds[class] = odds((hits + PRIOR * prior) / (tries + PRIOR));
        }
        for (place, (hits, expected)) in self.places.iter_mut().zip(&self.depths) {
            *place = (hits + DEPTH_PRIOR) / (expected + DEPTH_PRIOR);
        }
        let (mut share, mut hits) = (0.0, 0.0);
        for class in (0..CLASSES).rev() {
            share += self.shares[class];
            hits += self.shares[class] * chance(self.odds[class]);
            self.gates[class] = Gate { share: share.min(1.0), odds: odds(hits / share) };
        }
        // Whatever the rounding.
        self.gates[0].share = 1.0;
    }

    /// Chance of a guess of this confidence at this place, if all before it came true.
    pub fn chance(&self, record: &RowRecord, confidence: f32, depth: usize) -> f64 {
        self.placed(self.odds[class(confidence)], record, depth)
    }

    /// Chance of a guess that passes `gate`, of which nothing else is known.
    pub fn chance_behind(&self, gate: Gate, record: &RowRecord, depth: usize) -> f64 {
        self.placed(gate.odds, record, depth)
    }

    fn placed(&self, odds: f64, record: &RowRecord, depth: usize) -> f64 {
        let place = self.places[depth.min(MAX_DRAFT - 1)];
        (chance(odds * record.factor[self.source as usize]) * place).clamp(1e-3, 0.999)
    }

    /// Gates at all classes, the one that all guesses pass first.
    pub fn gates(&self) -> &[Gate; CLASSES] {
        &self.gates
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
        self.lean_to(record, record.lean[self.source as usize]);
    }

    fn learn(&mut self, record: &mut RowRecord, confidence: f32, depth: usize, hit: bool) {
        let (index, class) = (self.source as usize, class(confidence));
        let expected = chance(self.odds[class] * record.factor[index]);
        let surprise = f64::from(u8::from(hit)) - self.chance(record, confidence, depth);
        let fading = 1.0 - 1.0 / WINDOW;
        let (hits, all) = &mut self.depths[depth.min(MAX_DRAFT - 1)];
        (*hits, *all) = (*hits * fading + f64::from(u8::from(hit)), *all * fading + expected);
        let (hits, tries) = &mut self.classes[class];
        (*hits, *tries) = (*hits * fading + f64::from(u8::from(hit)), *tries * fading + 1.0);
        // Text that repeats itself begins and ends doing so at once; how well a network guesses changes slowly.
        let rate = if matches!(self.source, Source::NGram | Source::Table) { 0.25 } else { 0.12 };
        record.lean[index] = record.lean[index] * fading + rate * surprise;
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
        self.lean_to(record, 0.75 * record.lean[self.source as usize]);
    }

    fn lean_to(&mut self, record: &mut RowRecord, lean: f64) {
        let lean = lean.clamp(-3.0, 3.0);
        (record.lean[self.source as usize], record.factor[self.source as usize]) = (lean, lean.exp());
        self.stale = true;
    }
}

/// The class of a confidence; one that is no number is the lowest.
pub(super) fn class(confidence: f32) -> usize {
    ((confidence * CLASSES as f32) as usize).min(CLASSES - 1)
}

fn chance(odds: f64) -> f64 {
    odds / (1.0 + odds)
}

/// Odds of a chance, which is never taken for certain.
fn odds(chance: f64) -> f64 {
    let chance = chance.clamp(1e-3, 0.999);
    chance / (1.0 - chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in a round.
    fn observe(belief: &mut Belief, record: &mut RowRecord, confidence: &[f32], judged: usize, accepted: usize) {
        belief.observe(record, confidence, judged, accepted);
        belief.refresh();
    }

    /// Drafts of one guess, of which the share `chance` comes true, evenly spread.
    fn feed(belief: &mut Belief, record: &mut RowRecord, confidence: f32, chance: f64, times: usize) {
        for i in 0..times {
            let hit = ((i + 1) as f64 * chance).floor() > (i as f64 * chance).floor();
            observe(belief, record, &[confidence], 1, usize::from(hit));
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
        let [open, .., high] = *belief.gates();
        assert_eq!(open.share, 1.0);
        assert!((high.share - 1.0 / 3.0).abs() < 0.05, "{high:?}");
        assert!((belief.chance_behind(open, &record, 0) - 1.0 / 3.0).abs() < 0.1);
    }

    #[test]
    fn later_places_may_be_worse() {
        let (mut belief, mut record) = (Belief::new(Source::Prophet), RowRecord::default());
        for i in 0..400 {
            let accepted = if i % 5 == 0 { 0 } else { 1 + usize::from(i % 2 == 0) };
            observe(&mut belief, &mut record, &[0.7; 2], (accepted + 1).min(2), accepted);
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
