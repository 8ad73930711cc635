//! Rules that accept guesses at random, so that what comes out has the distribution p of the row, whatever the distribution q
//! was that the guesses were drawn from.
//!
//! [`token`] judges guess by guess (Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative
//! Decoding", arXiv:2211.17192, algorithm 1). [`block`] judges the draft as a whole and never accepts fewer on average (Sun
//! et al., "Block Verification Accelerates Speculative Decoding", arXiv:2403.10444).
//!
//! The rules know neither logits nor random numbers: distributions come from [`Targets`], decisions from [`Chances`]. A test
//! can therefore go through all decisions and compare the distribution of the output with p itself, without drawing.

use spikelet_simd::{Level, sum};

use crate::draft::Drawn;
use crate::error::Result;
use crate::sampler::{Dist, Noise, Purpose};

/// The distributions that the output shall have.
pub trait Targets {
    /// That of the token after the first `guesses` guesses. Asked for in ascending order.
    ///
    /// # Errors
    /// If there is none.
    fn after(&mut self, guesses: usize) -> Result<Dist<'_>>;
}

/// What decides.
pub trait Chances {
    /// True with this probability; asked at most once for each guess.
    fn happens(&mut self, guess: usize, probability: f64) -> bool;

    /// The token after the accepted guesses.
    fn token(&mut self, left: &Leftover<'_>) -> u32;
}

/// The chances of the draft that begins at position `start` of a row.
#[derive(Clone, Copy, Debug)]
pub struct RowChances {
    /// The row's noise.
    pub noise: Noise,
    /// Position of the first guess.
    pub start: u64,
}

impl Chances for RowChances {
    fn happens(&mut self, guess: usize, probability: f64) -> bool {
        self.noise.uniform(self.start, guess as u32, Purpose::Accept) < probability
    }

    fn token(&mut self, left: &Leftover<'_>) -> u32 {
        left.draw(self.noise.uniform(self.start, 0, Purpose::Residual))
    }
}

/// What a rule has decided.
#[derive(Debug)]
pub struct Verdict {
    /// So many guesses stay.
    pub accepted: usize,
    /// The token after them, or why there is none.
    pub next: Result<u32>,
}

/// Accepts a guess with probability min(1, p / q), for as long as one is accepted. The token in the place of the first that
/// is not comes from what p has beyond q; after the last guess it comes from p.
pub fn token(
    guesses: &[u32],
    drawn: &[Drawn],
    level: Level,
    targets: &mut impl Targets,
    chances: &mut impl Chances,
) -> Verdict {
    for i in 0..=guesses.len() {
        let p = match targets.after(i) {
            Ok(p) => p,
            Err(error) => return Verdict { accepted: i, next: Err(error) },
        };
        let q = guesses.get(i).map(|guess| drawn_from(guess, &drawn[i]));
        let stays = q.is_some_and(|q| chances.happens(i, ratio(&p, &q, guesses[i]).min(1.0)));
        if !stays {
            return Verdict { accepted: i, next: Ok(chances.token(&Leftover::new(p, q, 1.0, level))) };
        }
    }
    unreachable!("nothing stays after the last guess")
}

/// Accepts as many guesses as the last position allows at which the draft may end.
///
/// With r the product of p / q over the guesses before a position, cut to 1 after each factor, and S the sum of what r p has
/// beyond q there, the draft may end with probability S / (S + 1 - r); after the last guess with probability r, before the
/// first always. The token that follows comes from what r p has beyond q, at the end from p. All positions count: a later one
/// may succeed where an earlier one did not. One whose p cannot be had ends them.
pub fn block(
    guesses: &[u32],
    drawn: &[Drawn],
    level: Level,
    targets: &mut impl Targets,
    chances: &mut impl Chances,
) -> Verdict {
    let mut ends: Option<(usize, u32)> = None;
    let mut r = 1.0_f64;
    for i in 0..=guesses.len() {
        let p = match (targets.after(i), ends) {
            (Ok(p), _) => p,
            (Err(error), None) => return Verdict { accepted: 0, next: Err(error) },
            (Err(_), Some(_)) => break,
        };
        let q = guesses.get(i).map(|guess| drawn_from(guess, &drawn[i]));
        let left = Leftover::new(p, q, r, level);
        // Where r is 1 the formula gives 1, or 0 / 0 for p = q: there the draft may end too.
        let may_end = if q.is_none() || r == 1.0 { r } else { left.excess / (left.excess + 1.0 - r) };
        if i == 0 || chances.happens(i - 1, may_end) {
            ends = Some((i, chances.token(&left)));
        }
        let Some(q) = q else { break };
        r = (r * ratio(&p, &q, guesses[i])).min(1.0);
        if r == 0.0 {
            // Nothing after this guess has a chance.
            break;
        }
    }
    let (accepted, next) = ends.expect("the draft may always end before the first guess");
    Verdict { accepted, next: Ok(next) }
}

/// What a guess was drawn from.
fn drawn_from<'a>(guess: &'a u32, drawn: &'a Drawn) -> Dist<'a> {
    match drawn {
        Drawn::Certain => Dist { ids: std::slice::from_ref(guess), probs: &[1.0] },
        Drawn::From(ids, probs) => Dist { ids, probs },
    }
}

/// p / q of a token that was drawn from q.
fn ratio(p: &Dist<'_>, q: &Dist<'_>, token: u32) -> f64 {
    let (p, q) = (f64::from(p.prob(token)), f64::from(q.prob(token)));
    // A token that q could not give was not drawn from it: refused.
    if q > 0.0 { p / q } else { 0.0 }
}

/// What is left to draw from where a draft ends: what `scale` p has beyond q, or p itself.
#[derive(Clone, Copy, Debug)]
pub struct Leftover<'a> {
    p: Dist<'a>,
    q: Dist<'a>,
    scale: f64,
    /// Sum of what `scale` p has beyond q.
    excess: f64,
    /// Sum of the weights.
    total: f64,
}

impl<'a> Leftover<'a> {
    fn new(p: Dist<'a>, q: Option<Dist<'a>>, scale: f64, level: Level) -> Self {
        let all = sum(level, p.probs);
        let itself = Self { p, q: Dist { ids: &[], probs: &[] }, scale: 1.0, excess: 0.0, total: all };
        let Some(q) = q else { return itself };
        // What both have is found among the tokens of q, which are often fewer.
        let common = |(&id, &q): (&u32, &f32)| (scale * f64::from(p.prob(id))).min(f64::from(q));
        let common: f64 = q.ids.iter().zip(q.probs).map(common).sum();
        let excess = scale * all - common;
        // Nothing is left where p = q: then every guess is as good as a draw from p.
        if excess > 0.0 { Self { p, q, scale, excess, total: excess } } else { itself }
    }

    /// Probability of a token.
    pub fn prob(&self, id: u32) -> f64 {
        self.weight(self.p.prob(id), self.q.prob(id)) / self.total
    }

    fn weight(&self, p: f32, q: f32) -> f64 {
        (self.scale * f64::from(p) - f64::from(q)).max(0.0)
    }

    /// The token at `uniform`, a number in [0, 1), when probabilities are laid end to end in order of ids.
    ///
    /// Where rounding leaves their sum below `uniform`, the last token with a probability above 0.
    pub fn draw(&self, uniform: f64) -> u32 {
        let (mut sum, enough) = (0.0, uniform * self.total);
        let (mut last, mut next) = (None, 0);
        for (&id, &p) in self.p.ids.iter().zip(self.p.probs) {
            while self.q.ids.get(next).is_some_and(|&other| other < id) {
                next += 1;
            }
            let q = if self.q.ids.get(next) == Some(&id) { self.q.probs[next] } else { 0.0 };
            let weight = self.weight(p, q);
            if weight > 0.0 {
                last = Some(id);
                sum += weight;
                if enough < sum {
                    return id;
                }
            }
        }
        // Without a weight the sums differ in their last bits only, p and q likewise.
        last.unwrap_or_else(|| self.p.draw(uniform))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Dist<'_> = Dist { ids: &[1, 2, 4, 9], probs: &[0.5, 0.25, 0.125, 0.125] };

    /// The middle of each token's part of the unit interval.
    fn draws(left: &Leftover<'_>) -> Vec<u32> {
        (0..16).map(|i| left.draw((f64::from(i) + 0.5) / 16.0)).collect()
    }

    #[test]
    fn what_is_left_is_drawn_as_often_as_its_probability_says() {
        let q = Dist { ids: &[0, 1, 4, 7], probs: &[0.125, 0.25, 0.5, 0.125] };
        // Left of p: 1/4 of token 1, 1/4 of 2, 1/8 of 9. Left of p / 2: 1/8 of 2, 1/16 of 9.
        for (scale, probs) in [(1.0, [0.4, 0.4, 0.2]), (0.5, [0.0, 2.0 / 3.0, 1.0 / 3.0])] {
            let left = Leftover::new(P, Some(q), scale, Level::best());
            let mut end = 0.0;
            for (id, p) in [1, 2, 9].into_iter().zip(probs) {
                assert!((left.prob(id) - p).abs() < 1e-15, "{scale} {id}");
                if p > 0.0 {
                    assert_eq!((left.draw(end + 1e-9), left.draw(end + p - 1e-9)), (id, id));
                }
                end += p;
            }
            assert!([0, 4, 5, 7].iter().all(|&id| left.prob(id) == 0.0));
        }
    }

    #[test]
    fn without_an_excess_it_is_p() {
        for q in [None, Some(P)] {
            let left = Leftover::new(P, q, 1.0, Level::best());
            assert_eq!(draws(&left), [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 9, 9]);
            assert_eq!(left.prob(1), 0.5);
        }
        // A sum below 1 by rounding: the last one.
        let short = Dist { ids: &[3, 5, 8], probs: &[0.5, 0.4, 0.0] };
        assert_eq!(Leftover { total: 1.0, ..Leftover::new(short, None, 1.0, Level::best()) }.draw(0.95), 5);
    }

    #[test]
    fn a_row_decides_by_its_noise_for_the_draft() {
        let noise = Noise::new(3, 1);
        let mut chances = RowChances { noise, start: 17 };
        let u = noise.uniform(17, 2, Purpose::Accept);
        assert!(!chances.happens(2, u) && chances.happens(2, u + 1e-12) && chances.happens(2, 1.0));
        assert!(!chances.happens(2, 0.0));
        let left = Leftover::new(P, None, 1.0, Level::best());
        assert_eq!(chances.token(&left), left.draw(noise.uniform(17, 0, Purpose::Residual)));
    }
}
