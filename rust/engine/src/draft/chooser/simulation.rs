//! The chooser against synthetic texts, drafters and machines: never slower than no drafts, close to the best fixed length,
//! and back when a text changes.

use super::*;
use crate::draft::cost::{Curve, DraftCost};

/// A documented generator (splitmix64).
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Costs of a pass against one token, as measured with blocked and naive kernels, from memory and from cache.
const CURVES: [(&str, &[(usize, f64)]); 5] = [
    ("bf16, blocked", &[(1, 1.0), (2, 1.0), (3, 1.08), (4, 1.08), (6, 1.28), (8, 1.82), (16, 2.94), (64, 11.0)]),
    ("q8, blocked", &[(1, 1.0), (4, 1.06), (5, 1.12), (6, 1.16), (7, 1.26), (8, 1.42), (16, 2.64), (64, 10.0)]),
    ("in cache", &[(1, 1.0), (2, 1.17), (3, 1.4), (4, 1.58), (6, 1.86), (8, 2.58), (16, 4.79), (64, 18.0)]),
    ("naive", &[(1, 1.0), (2, 1.46), (3, 2.17), (4, 2.7), (6, 3.74), (8, 4.4), (16, 9.6), (64, 38.0)]),
    ("flat", &[(1, 1.0), (64, 1.02)]),
];
/// Seconds of a pass over one token.
const ONE: f64 = 5e-3;

/// How guesses come true.
#[derive(Clone, Copy)]
enum Text {
    /// With one probability.
    Even(f64),
    /// With one probability in the first half of the text, and with another one in the second.
    Changing(f64, f64),
    /// With one that differs from guess to guess, 1 or 0.1 with a mean, and the drafter has an idea of which.
    Uneven(f64),
}

impl Text {
    /// Chance and confidence of a guess, `done` of the text being written.
    fn guess(self, done: f64, random: &mut Random) -> (f64, f32) {
        match self {
            Self::Even(chance) => (chance, 0.5),
            Self::Changing(before, after) => (if done < 0.5 { before } else { after }, 0.5),
            Self::Uneven(mean) => {
                let sure = random.uniform() < (mean - 0.1) / 0.85;
                let noise = 0.2 * random.uniform() as f32;
                if sure { (0.95, 0.8 + noise) } else { (0.1, 0.1 + noise) }
            }
        }
    }
}

struct World {
    curve: Curve,
    /// What the table says, where it is wrong.
    believed: Curve,
    source: Source,
    /// Of a guess for one row, against a pass over one token.
    step: f64,
    text: Text,
    rows: usize,
    tokens: usize,
    seed: u64,
}

impl World {
    fn new(points: &[(usize, f64)], text: Text, rows: usize) -> Self {
        let scaled: Vec<_> = points.iter().map(|&(n, cost)| (n, cost * ONE)).collect();
        let curve = Curve::through(&scaled);
        let believed = curve.clone();
        Self { curve, believed, source: Source::Prophet, step: 0.06, text, rows, tokens: 4000, seed: 1 }
    }

    fn step(&self) -> Curve {
        // Rows share the drafter's weights, too.
        Curve::through(&[(1, self.step * ONE), (16, 2.0 * self.step * ONE)])
    }

    fn chooser(&self) -> Chooser {
        let mut table = CostTable::new(self.believed.clone(), 1e-3 * ONE);
        if self.step > 0.0 {
            table.set_draft(self.source, DraftCost { first: self.step(), next: self.step() });
        }
        Chooser::new(Arc::new(table))
    }

    fn base_seconds(&self) -> f64 {
        let round = self.curve.at(self.rows as f64) + self.rows as f64 * 1e-3 * ONE;
        self.tokens as f64 * round
    }

    /// How many times as fast as without drafts a fixed length would be, at best.
    fn best_fixed(&self, chance: f64) -> f64 {
        let rows = self.rows as f64;
        let rate = |length: usize| {
            let emitted: f64 = rows * (0..=length).map(|i| chance.powi(i as i32)).sum::<f64>();
            let drafts = if self.step > 0.0 { self.step().at(rows) * length as f64 } else { 0.0 };
            let rest = if length > 0 { 0.01 * ONE } else { 0.0 };
            emitted / (self.curve.at(rows * (length + 1) as f64) + drafts + rest + emitted * 1e-3 * ONE)
        };
        let best = (0..=MAX_DRAFT).map(rate).fold(0.0, f64::max);
        best / rate(0)
    }

    fn run(&self) -> Outcome {
        self.run_with(&mut self.chooser())
    }

    /// Writes the texts.
    fn run_with(&self, chooser: &mut Chooser) -> Outcome {
        let mut random = Random(self.seed);
        let mut records = vec![RowRecord::default(); self.rows];
        let mut written = vec![0; self.rows];
        let mut out = Outcome::default();
        while written.iter().sum::<usize>() < self.tokens * self.rows {
            let seconds = self.round(chooser, &mut random, &mut records, &mut written);
            out.seconds += seconds;
            out.rounds += 1;
            out.halves[usize::from(written[0] * 2 > self.tokens)] += seconds;
        }
        out.speedup = self.base_seconds() / out.seconds;
        out
    }

    /// One round; its seconds.
    fn round(
        &self,
        chooser: &mut Chooser,
        random: &mut Random,
        records: &mut [RowRecord],
        written: &mut [usize],
    ) -> f64 {
        let ready = self.step == 0.0;
        let mut drafts: Vec<Vec<(f64, f32)>> = vec![Vec::new(); self.rows];
        let guess = |row: usize, random: &mut Random| self.text.guess(written[row] as f64 / self.tokens as f64, random);
        chooser.begin(0, 512);
        for row in 0..self.rows {
            chooser.row(MAX_DRAFT, None);
            if ready {
                drafts[row].extend((0..MAX_DRAFT).map(|_| guess(row, random)));
                chooser.offer_ready(self.source, &records[row], &sure(&drafts[row]), Cut::Anywhere);
            } else {
                chooser.offer(self.source, &records[row]);
            }
        }
        let mut choices = chooser.plan().to_vec();
        let mut drafting = 0.0;
        if !ready {
            for row in 0..self.rows {
                while drafts[row].len() < choices[row].length
                    && (drafts[row].is_empty() || chooser.more(row, &sure(&drafts[row])))
                {
                    drafts[row].push(guess(row, random));
                }
            }
            let rows_at = |depth: usize| drafts.iter().filter(|draft| draft.len() > depth).count() as f64;
            drafting = (0..MAX_DRAFT).map(|depth| self.step().at(rows_at(depth))).sum();
            chooser.costs_mut().note_draft(self.source, drafts.iter().map(Vec::len), drafting);
            if drafting > 0.0 {
                chooser.begin(0, 512);
                for row in 0..self.rows {
                    chooser.row(MAX_DRAFT, None);
                    chooser.offer_ready(self.source, &records[row], &sure(&drafts[row]), Cut::Anywhere);
                }
                choices = chooser.settle().to_vec();
            }
        }
        let mut emitted = 0;
        for row in 0..self.rows {
            let right: Vec<bool> = drafts[row].iter().map(|(chance, _)| random.uniform() < *chance).collect();
            let all = right.iter().take_while(|right| **right).count();
            let accepted = all.min(choices[row].length);
            let judged = (accepted + 1).min(right.len());
            chooser.observe(self.source, &mut records[row], &sure(&drafts[row]), judged, all.min(judged));
            written[row] += accepted + 1;
            emitted += accepted + 1;
        }
        let tokens = self.rows + choices.iter().map(|choice| choice.length).sum::<usize>();
        // Now and then a pass is interrupted, and all jitter.
        let noise = if random.uniform() < 0.02 { 3.0 } else { 0.97 + 0.06 * random.uniform() };
        let pass = self.curve.at(tokens as f64);
        chooser.costs_mut().note_pass(tokens, pass * noise);
        let lines = emitted as f64 * 1e-3 * ONE;
        chooser.costs_mut().note_lines(emitted, lines);
        let drafted = tokens > self.rows || drafting > 0.0;
        let rest = if drafted { 0.01 * ONE } else { 0.0 };
        chooser.costs_mut().note_round(drafted, pass * noise + drafting + lines + rest);
        // What is compared is free of noise.
        pass + drafting + lines + rest
    }
}

fn sure(draft: &[(f64, f32)]) -> Vec<f32> {
    draft.iter().map(|(_, confidence)| *confidence).collect()
}

#[derive(Default)]
struct Outcome {
    speedup: f64,
    seconds: f64,
    rounds: usize,
    halves: [f64; 2],
}

/// Runs of every curve, chance and batch; prints what `--no-capture` shows.
fn each_world(rows: &[usize], chances: &[f64], check: impl Fn(&str, &World, f64, &Outcome)) {
    for (name, points) in CURVES {
        for &rows in rows {
            for &chance in chances {
                let tokens = 3000 / rows.isqrt();
                let world = World { tokens, ..World::new(points, Text::Even(chance), rows) };
                let outcome = world.run();
                let label = format!("{name}, {rows} rows, {chance}");
                println!("{label}: {:.3} of {:.3}", outcome.speedup, world.best_fixed(chance));
                check(&label, &world, chance, &outcome);
            }
        }
    }
}

fn is_close_to_the_best(label: &str, world: &World, chance: f64, outcome: &Outcome) {
    assert!(outcome.speedup > 0.98, "{label}: {:.3}", outcome.speedup);
    let best = world.best_fixed(chance);
    assert!(outcome.speedup > 0.93 * best, "{label}: {:.3} of {best:.3}", outcome.speedup);
}

#[test]
fn close_to_the_best_length_and_never_slower() {
    each_world(&[1], &[0.0, 0.3, 0.5, 0.7, 0.8, 0.9], is_close_to_the_best);
}

#[test]
fn close_to_the_best_length_and_never_slower_in_a_batch() {
    each_world(&[4, 16], &[0.0, 0.5, 0.9], is_close_to_the_best);
}

#[test]
fn short_texts_with_a_new_chooser() {
    for (name, points) in CURVES {
        for chance in [0.0, 0.5, 0.9] {
            let world = World { tokens: 200, ..World::new(points, Text::Even(chance), 1) };
            let (speedup, best) = (world.run().speedup, world.best_fixed(chance));
            println!("200 tokens, {name}, {chance}: {speedup:.3} of {best:.3}");
            assert!(speedup > 0.95 && speedup > 0.88 * best, "{name}, {chance}: {speedup:.3} of {best:.3}");
        }
    }
}

#[test]
fn what_was_learnt_serves_the_next_text() {
    for (name, points) in CURVES {
        let world = World { tokens: 200, ..World::new(points, Text::Even(0.0), 1) };
        let mut chooser = world.chooser();
        world.run_with(&mut chooser);
        let speedup = world.run_with(&mut chooser).speedup;
        assert!(speedup > 0.975, "{name}: {speedup:.3}");
    }
}

#[test]
fn confidence_is_made_use_of() {
    for (name, points) in CURVES {
        for mean in [0.2, 0.4, 0.6] {
            let world = World::new(points, Text::Uneven(mean), 1);
            let blind = World::new(points, Text::Even(mean), 1);
            let [seeing, blind] = [world, blind].map(|world| world.run().speedup);
            println!("confidence, {name}, {mean}: {seeing:.3} against {blind:.3}");
            assert!(seeing > 0.98 && seeing > 0.97 * blind, "{name}, {mean}: {seeing:.3} against {blind:.3}");
            assert!(mean < 0.3 || seeing > 1.02 * blind, "{name}, {mean}: {seeing:.3} against {blind:.3}");
        }
    }
}

#[test]
fn changes_of_the_text_are_followed() {
    for (name, points) in CURVES {
        for (before, after) in [(0.0, 0.9), (0.9, 0.0), (0.2, 0.8)] {
            let world = World::new(points, Text::Changing(before, after), 1);
            let outcome = world.run();
            let half = world.base_seconds() / 2.0;
            for (part, chance) in [(0, before), (1, after)] {
                let (speedup, best) = (half / outcome.halves[part], world.best_fixed(chance));
                println!("change, {name}, {before} to {after}, half {part}: {speedup:.3} of {best:.3}");
                assert!(speedup > 0.98, "{name}, {before} to {after}, half {part}: {speedup:.3}");
                // Following a change costs what so many tokens without drafts cost.
                let lost = 2000.0 * (1.0 / speedup - 1.0 / best);
                assert!(lost < 200.0, "{name}, {before} to {after}, half {part}: {lost:.0} tokens lost");
            }
        }
    }
}

#[test]
fn a_table_that_is_wrong_is_found_out() {
    for (name, points) in CURVES {
        for (wrong, from) in [(1.4, 1), (0.7, 1), (1.4, 2), (0.7, 2)] {
            for chance in [0.1, 0.5, 0.9] {
                // All passes of `from` tokens and more, or only those of one, are believed to cost `wrong` times as much.
                let bend = |&(n, cost): &(usize, f64)| {
                    let bent = if from == 1 { n == 1 } else { n > 1 };
                    (n, if bent { cost * wrong * ONE } else { cost * ONE })
                };
                let believed = Curve::through(&points.iter().map(bend).collect::<Vec<_>>());
                let world = World { believed, ..World::new(points, Text::Even(chance), 1) };
                let (speedup, best) = (world.run().speedup, world.best_fixed(chance));
                println!("wrong, {name}, {wrong} from {from}, {chance}: {speedup:.3} of {best:.3}");
                assert!(speedup > 0.97, "{name}, {wrong} from {from}, {chance}: {speedup:.3}");
                assert!(speedup > 0.9 * best, "{name}, {wrong} from {from}, {chance}: {speedup:.3} of {best:.3}");
            }
        }
    }
}

#[test]
fn drafts_that_cost_nothing_are_judged_in_every_round() {
    for (name, points) in CURVES {
        for chance in [0.0, 0.2, 0.5, 0.9] {
            let start = World::new(points, Text::Even(chance), 1);
            let world = World { source: Source::NGram, step: 0.0, ..start };
            let (speedup, best) = (world.run().speedup, world.best_fixed(chance));
            println!("n-gram, {name}, {chance}: {speedup:.3} of {best:.3}");
            assert!(speedup > 0.98 && speedup > 0.93 * best, "{name}, {chance}: {speedup:.3} of {best:.3}");
        }
    }
}
