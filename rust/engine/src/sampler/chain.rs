//! The chain from logits to a distribution, and to a token.

use std::sync::{Mutex, PoisonError};

use spikelet_simd::{
    Level, at_least, exp_in_place, first_at_least, greatest_of_16, normalise, sum, survey, units, weigh,
};

use super::dist::Dist;
use super::filters::{Candidate, Candidates};
use super::line::Line;
use super::params::{Preset, SamplingParams};
use super::penalties::Penalties;
use super::rng::{Noise, Purpose};
use crate::backend::DrawSpec;
use crate::error::{Error, Result};

/// Scratch memory of the chain, as wide as the vocabulary. One serves any number of rows, one after another.
#[derive(Debug)]
pub struct Workspace {
    level: Level,
    scores: Vec<f32>,
    weights: Vec<f32>,
    candidates: Candidates,
    ids: Vec<u32>,
    probs: Vec<f32>,
}

impl Workspace {
    /// Room for logits of `vocab_size` tokens. The chain never allocates after this.
    pub fn new(level: Level, vocab_size: usize) -> Self {
        Self {
            level,
            scores: Vec::with_capacity(vocab_size),
            weights: Vec::with_capacity(vocab_size),
            candidates: Candidates::with_capacity(vocab_size),
            ids: Vec::with_capacity(vocab_size),
            probs: Vec::with_capacity(vocab_size),
        }
    }

    /// The instruction set it computes with. Results do not depend on it.
    pub fn level(&self) -> Level {
        self.level
    }
}

/// A workspace for each of several threads.
#[derive(Debug)]
pub(crate) struct Workspaces {
    level: Level,
    vocab_size: usize,
    idle: Mutex<Vec<Workspace>>,
}

impl Workspaces {
    pub(crate) fn new(level: Level, vocab_size: usize, threads: usize) -> Self {
        let idle = (0..threads).map(|_| Workspace::new(level, vocab_size)).collect();
        Self { level, vocab_size, idle: Mutex::new(idle) }
    }

    pub(crate) fn level(&self) -> Level {
        self.level
    }

    /// Calls `f` with one that nobody else has meanwhile. Allocates if more threads come than were expected.
    pub(crate) fn lend<T>(&self, f: impl FnOnce(&mut Workspace) -> T) -> T {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut work = idle().pop().unwrap_or_else(|| Workspace::new(self.level, self.vocab_size));
        let done = f(&mut work);
        idle().push(work);
        done
    }
}

/// Chooses the tokens of one row.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    noise: Noise,
    penalties: Penalties,
}

impl Sampler {
    /// A sampler for row number `row` of a batch over `vocab_size` tokens. `expected_tokens`, prompt and generated, is a
    /// hint: so many can be observed without allocating.
    ///
    /// # Errors
    /// What [`SamplingParams::validate`] refuses.
    pub fn new(params: &SamplingParams, vocab_size: usize, row: u32, expected_tokens: usize) -> Result<Self> {
        params.validate(vocab_size)?;
        Ok(Self {
            params: params.clone(),
            noise: Noise::new(params.seed, row),
            penalties: Penalties::new(params, vocab_size, expected_tokens),
        })
    }

    /// The settings.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Takes note of tokens of the prompt.
    pub fn observe_prompt(&mut self, ids: &[u32]) {
        ids.iter().for_each(|&id| self.penalties.read(id));
    }

    /// Takes note of a generated token.
    pub fn observe(&mut self, id: u32) {
        self.penalties.generated(id);
    }

    /// Keeps what was observed so far, for tokens to be observed that may not stay.
    pub(crate) fn remember(&mut self) {
        self.penalties.remember();
    }

    /// Forgets all tokens that were observed since [`remember`](Self::remember).
    pub(crate) fn recall(&mut self) {
        self.penalties.recall();
    }

    /// The row's random numbers.
    pub fn noise(&self) -> Noise {
        self.noise
    }

    /// The distribution of the next token. Depends on the logits, the settings and the observed tokens, on nothing else.
    ///
    /// # Errors
    /// [`Error::Logits`] if a logit is not finite, or bias and penalties leave no token to draw.
    pub fn distribution<'l, 'w>(&self, line: impl Into<Line<'l>>, work: &'w mut Workspace) -> Result<Dist<'w>> {
        let line = line.into();
        let left = self.weigh(line, work)?;
        Ok(left.distribution(line, work))
    }

    /// Draws the token at `position` of the sequence, the number of tokens before it: one with probability p in
    /// [`distribution`](Self::distribution) wins the row's [`race`](Noise::race) there with probability p.
    ///
    /// # Errors
    /// Those of [`distribution`](Self::distribution).
    pub fn sample<'l>(&self, line: impl Into<Line<'l>>, position: u64, work: &mut Workspace) -> Result<u32> {
        let line = line.into();
        let left = self.weigh(line, work)?;
        Ok(self.winner(left, line, position, work))
    }

    /// The token of [`sample`](Self::sample), and the [`distribution`](Self::distribution) it was drawn from.
    ///
    /// # Errors
    /// Those of [`distribution`](Self::distribution).
    pub fn drawn<'l, 'w>(
        &self,
        line: impl Into<Line<'l>>,
        position: u64,
        work: &'w mut Workspace,
    ) -> Result<(u32, Dist<'w>)> {
        let line = line.into();
        let left = self.weigh(line, work)?;
        let id = self.winner(left, line, position, work);
        Ok((id, left.distribution(line, work)))
    }

    /// What a device has to know to draw as [`sample`](Self::sample) does, from line number `line` of which the first `known` logits stand for
    /// tokens. None: the settings ask for what only the CPU does.
    pub(crate) fn draw_spec(&self, line: usize, known: usize, position: u64) -> Option<DrawSpec> {
        let SamplingParams { preset, temperature, top_k, top_p, min_p, typical_p, ref logit_bias, .. } = self.params;
        let plain = self.penalties.are_off() && logit_bias.is_empty();
        if !plain || !self.params.is_greedy() && (min_p > 0.0 || typical_p < 1.0) {
            return None;
        }
        let (seed, row) = self.noise.name();
        let late_temperature = preset == Preset::Rwkv && self.filters();
        Some(DrawSpec { line, known, seed, row, position, temperature, late_temperature, top_k, top_p })
    }

    /// The number that a drafter draws its guess number `index` with, for a draft that begins at position `start`. Not the
    /// row's own noise, which must know nothing of guesses where they are accepted or refused at random.
    pub fn draft_uniform(&self, start: u64, index: usize) -> f64 {
        self.noise.uniform(start, index as u32, Purpose::Draft)
    }

    /// The number that decides on guess number `index` of the draft that begins at position `start`.
    pub fn accept_uniform(&self, start: u64, index: usize) -> f64 {
        self.noise.uniform(start, index as u32, Purpose::Accept)
    }
}

/// Where the chain has left the tokens that may be drawn.
#[derive(Clone, Copy)]
enum Left {
    /// There is but one.
    Certain(u32),
    /// All of the line, with `Workspace::weights`.
    Every,
    /// `Workspace::ids`, with the weights `Workspace::probs`.
    Some,
}

impl Left {
    /// From weights to probabilities, in place.
    fn distribution<'w>(self, line: Line<'_>, work: &'w mut Workspace) -> Dist<'w> {
        let Workspace { level, weights, ids, probs, .. } = work;
        match self {
            Self::Certain(id) => {
                ids.clear();
                ids.push(id);
                probs.clear();
                probs.push(1.0);
            }
            Self::Every => {
                ids.clear();
                match line.ids {
                    Some(all) => ids.extend_from_slice(all),
                    None => ids.extend(0..line.logits.len() as u32),
                }
                std::mem::swap(probs, weights);
                normalise(*level, probs);
            }
            Self::Some => normalise(*level, probs),
        }
        Dist { ids, probs }
    }
}

/// The parts of the chain.
impl Sampler {
    /// All but the draw.
    fn weigh(&self, line: Line<'_>, work: &mut Workspace) -> Result<Left> {
        if let Some(ids) = line.ids {
            assert_eq!(ids.len(), line.logits.len(), "a logit for every id (left: ids, right: logits)");
        }
        let level = work.level;
        let (mut greatest, finite) = survey(level, line.logits);
        if !finite {
            let (index, logit) =
                line.logits.iter().enumerate().find(|(_, logit)| !logit.is_finite()).unwrap_or((0, &f32::NAN));
            return Err(Error::Logits { reason: format!("that of token {} is {logit}", line.id(index)) });
        }
        // Scores: logits with bias and penalties.
        let mut scores = std::mem::take(&mut work.scores);
        let adjusted = self.adjust(line, level, &mut scores);
        let left = adjusted.map(|adjusted| {
            greatest = adjusted.unwrap_or(greatest);
            self.choose_from(if adjusted.is_some() { Line { logits: &scores, ..line } } else { line }, greatest, work)
        });
        work.scores = scores;
        left
    }

    /// Logits with bias and penalties into `scores`; returns the greatest. None: there are none, the logits stand.
    fn adjust(&self, line: Line<'_>, level: Level, scores: &mut Vec<f32>) -> Result<Option<f32>> {
        if self.params.logit_bias.is_empty() && self.penalties.is_empty() {
            return Ok(None);
        }
        scores.clear();
        scores.extend_from_slice(line.logits);
        for &(id, bias) in &self.params.logit_bias {
            if let Some(index) = line.index(id) {
                scores[index] += bias;
            }
        }
        self.penalties.apply(line, scores);
        if scores.iter().fold(false, |nan, score| nan | score.is_nan()) {
            return Err(Error::Logits { reason: "bias and penalties make NaN of some".into() });
        }
        let (greatest, _) = survey(level, scores);
        if !greatest.is_finite() {
            let reason = format!("bias and penalties leave {greatest} as the greatest, so there is no token to draw");
            return Err(Error::Logits { reason });
        }
        Ok(Some(greatest))
    }

    /// From scores to weights, up to a factor, of what the filters leave.
    fn choose_from(&self, scores: Line<'_>, greatest: f32, work: &mut Workspace) -> Left {
        let level = work.level;
        if self.params.is_greedy() {
            let index = first_at_least(level, scores.logits, greatest).expect("the greatest is among them");
            return Left::Certain(scores.id(index));
        }
        weigh(level, scores.logits, greatest, self.early_temperature(), &mut work.weights);
        if !self.filters() {
            return Left::Every;
        }
        self.filter(scores, greatest, work);
        Left::Some
    }

    /// Who wins the race at `position`.
    fn winner(&self, left: Left, line: Line<'_>, position: u64, work: &Workspace) -> u32 {
        let Workspace { level, weights, ids, probs, .. } = work;
        let race = self.noise.race(position);
        let first_of = |ids: &[u32], weights: &[f32]| race.winner_among(*level, ids, weights).map(|index| ids[index]);
        let winner = match (left, line.ids) {
            (Left::Certain(id), _) => Some(id),
            (Left::Some, _) => first_of(ids, probs),
            (Left::Every, Some(ids)) => first_of(ids, weights),
            (Left::Every, None) => race.winner(*level, weights).map(|index| index as u32),
        };
        winner.expect("the filters keep tokens with weights above 0")
    }

    /// Whether any filter is on.
    fn filters(&self) -> bool {
        let SamplingParams { top_k, top_p, min_p, typical_p, .. } = self.params;
        top_k > 0 || top_p < 1.0 || min_p > 0.0 || typical_p < 1.0
    }

    /// The temperature before the filters. Without filters before and after are the same.
    fn early_temperature(&self) -> f32 {
        if self.params.preset == Preset::OpenAi || !self.filters() { self.params.temperature } else { 1.0 }
    }

    /// Fills the candidates, runs the filters in the preset's order and writes what is left, up to a factor.
    fn filter(&self, scores: Line<'_>, greatest: f32, work: &mut Workspace) {
        let SamplingParams { preset, top_k, top_p, min_p, typical_p, .. } = self.params;
        self.collect(scores, greatest, work);
        let candidates = &mut work.candidates;
        let keep_top_k = |candidates: &mut Candidates| {
            if top_k > 0 {
                candidates.top_k(top_k);
            }
        };
        if preset == Preset::OpenAi {
            keep_top_k(candidates);
        }
        if top_p < 1.0 {
            candidates.top_p(top_p);
        }
        if preset == Preset::Rwkv {
            keep_top_k(candidates);
        }
        if min_p > 0.0 {
            candidates.min_p(min_p);
        }
        if typical_p < 1.0 {
            candidates.typical(typical_p);
        }
        work.ids.clear();
        work.ids.extend(candidates.list.iter().map(|c| c.id));
        work.probs.clear();
        if self.early_temperature() == self.params.temperature {
            work.probs.extend(candidates.list.iter().map(|c| c.weight));
        } else {
            // p to the power 1/temperature is exp(score / temperature) up to a factor.
            let greatest = candidates.list.iter().map(|c| c.score).fold(f32::NEG_INFINITY, f32::max);
            work.probs.extend(candidates.list.iter().map(|c| (c.score - greatest) / self.params.temperature));
            exp_in_place(work.level, &mut work.probs);
        }
    }

    /// Makes candidates of all tokens that the first filter may keep, so that the rest is never sorted.
    fn collect(&self, scores: Line<'_>, greatest: f32, work: &mut Workspace) {
        let SamplingParams { preset, top_k, top_p, min_p, .. } = self.params;
        let Workspace { level, weights, candidates, ids, probs, .. } = work;
        let n = weights.len();
        candidates.total = sum(*level, weights);
        candidates.units = units(*level, weights);
        let least = if top_k > 0 && top_k < n && (preset == Preset::OpenAi || top_p == 1.0) {
            self.least_of_top_k(*level, weights, probs)
        } else if top_p < 1.0 && (preset == Preset::Rwkv || top_k == 0) {
            // Tokens less probable than (1 - top_p) / n hold less than 1 - top_p together, so the others reach top_p without
            // them. Half of it, to be far from all rounding.
            (0.5 * (1.0 - f64::from(top_p)) * candidates.total / n as f64) as f32
        } else if min_p > 0.0 && top_k == 0 && top_p == 1.0 {
            // The greatest weight is exp(0). Half, as above.
            0.5 * min_p
        } else {
            0.0
        };
        ids.clear();
        // A weight of 0 is none.
        at_least(*level, weights, least.max(f32::MIN_POSITIVE), ids);
        let temperature = self.early_temperature();
        candidates.list.clear();
        candidates.list.extend(ids.iter().map(|&index| {
            let index = index as usize;
            // The bits that `weigh` took the exponential of.
            let score = (scores.logits[index] - greatest) / temperature;
            Candidate { id: scores.id(index), score, weight: weights[index] }
        }));
    }

    /// A weight that at least `top_k` tokens reach, and not many more: the one of that rank among the greatest of every 16,
    /// of which there are far fewer, or among all where these are too few.
    fn least_of_top_k(&self, level: Level, weights: &[f32], ranked: &mut Vec<f32>) -> f32 {
        let top_k = self.params.top_k;
        greatest_of_16(level, weights, ranked);
        if ranked.len() < top_k {
            ranked.clear();
            ranked.extend_from_slice(weights);
        }
        *ranked.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a)).1
    }
}

#[cfg(test)]
mod tests {
    use super::super::logprobs::Logprobs;
    use super::*;
    use proptest::prelude::*;

    const OFF: SamplingParams = SamplingParams {
        preset: Preset::OpenAi,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        typical_p: 1.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        penalty_decay: 1.0,
        logit_bias: Vec::new(),
        seed: 0,
        logprobs: 0,
    };

    /// The distribution as (id, probability).
    fn distribution(params: &SamplingParams, logits: &[f32]) -> Vec<(u32, f32)> {
        let sampler = Sampler::new(params, logits.len(), 0, 0).expect("good values");
        let mut work = Workspace::new(Level::best(), logits.len());
        let dist = sampler.distribution(logits, &mut work).expect("finite logits");
        assert!(dist.ids.is_sorted_by(|a, b| a < b));
        dist.ids.iter().copied().zip(dist.probs.iter().copied()).collect()
    }

    fn softmax(logits: &[f64]) -> Vec<f64> {
        let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|l| (l - greatest).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|w| w / total).collect()
    }

    /// Sets to 0 what is not in the shortest beginning of the order of `key` that holds `share`, and renormalises.
    fn naive_share(p: &mut [f64], share: f64, key: impl Fn(f64) -> f64) {
        let mut order: Vec<usize> = (0..p.len()).filter(|&i| p[i] > 0.0).collect();
        order.sort_by(|&a, &b| key(p[a]).total_cmp(&key(p[b])));
        let mut sum = 0.0;
        for i in order {
            let drop = sum >= share;
            sum += p[i];
            if drop {
                p[i] = 0.0;
            }
        }
        renormalise(p);
    }

    fn renormalise(p: &mut [f64]) {
        let total: f64 = p.iter().sum();
        p.iter_mut().for_each(|p| *p /= total);
    }

    /// The chain as the presets' tables tell it, on full probability vectors.
    fn naive(params: &SamplingParams, logits: &[f32]) -> Vec<f64> {
        let wide: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        let temperature = f64::from(params.temperature);
        let (mut p, steps) = match params.preset {
            Preset::OpenAi => {
                (softmax(&wide.iter().map(|l| l / temperature).collect::<Vec<_>>()), ["k", "p", "m", "t", ""])
            }
            Preset::Rwkv => (softmax(&wide), ["p", "k", "m", "t", "temperature"]),
        };
        for step in steps {
            match step {
                "k" if params.top_k > 0 => {
                    let mut order: Vec<usize> = (0..p.len()).collect();
                    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
                    order.iter().skip(params.top_k).for_each(|&i| p[i] = 0.0);
                    renormalise(&mut p);
                }
                "p" if params.top_p < 1.0 => naive_share(&mut p, f64::from(params.top_p), |p| -p),
                "m" => {
                    let least = p.iter().copied().fold(0.0, f64::max) * f64::from(params.min_p);
                    p.iter_mut().filter(|p| **p < least).for_each(|p| *p = 0.0);
                    renormalise(&mut p);
                }
                "t" if params.typical_p < 1.0 => {
                    let entropy: f64 = p.iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum();
                    naive_share(&mut p, f64::from(params.typical_p), |p| (-p.ln() - entropy).abs());
                }
                "temperature" => {
                    p.iter_mut().for_each(|p| *p = p.powf(1.0 / temperature));
                    renormalise(&mut p);
                }
                _ => {}
            }
        }
        p
    }

    /// Whether a change of logits and shares near f32's precision changes what is kept: then either answer is right.
    fn on_the_border(params: &SamplingParams, logits: &[f32], kept: &[f64]) -> bool {
        [-1e-5_f32, 1e-5].into_iter().any(|shift| {
            let moved: Vec<f32> =
                logits.iter().zip([1.0, -1.0, 0.5].iter().cycle()).map(|(l, d)| l + d * shift).collect();
            let mut params = params.clone();
            for share in [&mut params.top_p, &mut params.min_p, &mut params.typical_p] {
                if (0.01..0.99).contains(share) {
                    *share += shift;
                }
            }
            naive(&params, &moved).iter().zip(kept).any(|(a, b)| (*a > 0.0) != (*b > 0.0))
        })
    }

    fn params() -> impl Strategy<Value = SamplingParams> {
        let share = || prop_oneof![Just(1.0_f32), 0.05..1.0_f32];
        let kind = (prop::sample::select(&Preset::ALL[..]), 0.2..3.0_f32, 0..60_usize);
        (kind, share(), prop_oneof![Just(0.0_f32), 0.0..0.9_f32], share()).prop_map(
            |((preset, temperature, top_k), top_p, min_p, typical_p)| SamplingParams {
                preset,
                temperature,
                top_k,
                top_p,
                min_p,
                typical_p,
                ..OFF
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_chain_equals_its_naive_twin(params in params(), logits in prop::collection::vec(-8.0..8.0_f32, 1..50)) {
            let twin = naive(&params, &logits);
            prop_assume!(!on_the_border(&params, &logits, &twin));
            let mut dense = vec![0.0; logits.len()];
            for (id, p) in distribution(&params, &logits) {
                dense[id as usize] = p;
            }
            for (fast, slow) in dense.iter().zip(&twin) {
                prop_assert!((f64::from(*fast) - slow).abs() < 1e-5, "{dense:?} {twin:?}");
            }
        }

        #[test]
        fn every_distribution_has_a_token_and_sums_to_one(
            params in params(),
            logits in prop::collection::vec(prop_oneof![-100.0..100.0_f32, -1e38..1e38_f32, Just(0.0)], 1..50),
            temperature in prop_oneof![Just(1e-30_f32), Just(1e30_f32), 0.01..2.0_f32],
            uniform in 0.0..1.0_f64,
        ) {
            let params = SamplingParams { temperature, ..params };
            let dist = distribution(&params, &logits);
            let sum: f64 = dist.iter().map(|(_, p)| f64::from(*p)).sum();
            prop_assert!((sum - 1.0).abs() < 1e-5, "{sum}");
            let (ids, probs): (Vec<u32>, Vec<f32>) = dist.into_iter().unzip();
            let dist = Dist { ids: &ids, probs: &probs };
            prop_assert!(dist.prob(dist.draw(uniform)) > 0.0);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let noise = Noise::new(1, 0);
        let logits: Vec<f32> = (0..1000).map(|i| (noise.uniform(i, 0, Purpose::Draft) * 24.0 - 12.0) as f32).collect();
        let changes =
            [(1.0, 0, 1.0, 1.0), (0.7, 0, 0.9, 1.0), (1.4, 50, 1.0, 0.8), (0.9, 200, 0.95, 0.9), (0.0, 0, 1.0, 1.0)];
        for (preset, (temperature, top_k, top_p, typical_p)) in
            Preset::ALL.into_iter().flat_map(|preset| changes.map(|change| (preset, change)))
        {
            let params = SamplingParams { preset, temperature, top_k, top_p, typical_p, ..OFF };
            let sampler = Sampler::new(&params, logits.len(), 0, 0).expect("good values");
            let mut all = Level::available().into_iter().map(|level| {
                let mut work = Workspace::new(level, logits.len());
                let dist = sampler.distribution(&logits[..], &mut work).expect("finite");
                let bits: Vec<u32> = dist.probs.iter().map(|p| p.to_bits()).collect();
                let ids = dist.ids.to_vec();
                let drawn = [0, 1, 2, 3].map(|i| sampler.sample(&logits[..], i, &mut work).expect("finite"));
                (ids, bits, drawn, Logprobs::new(level, &logits).of(7).to_bits())
            });
            let first = all.next().expect("at least the portable level");
            assert!(all.all(|other| other == first), "{params:?}");
        }
    }

    /// Tokens without a logit are tokens that cannot be: what a small vocabulary gives is what the large one gives when it
    /// bans all others.
    #[test]
    fn a_line_of_some_tokens_is_one_with_all_others_banned() {
        let all: Vec<f32> = (0..200).map(|i| (i * 37 % 101) as f32 * 0.1).collect();
        let ids: Vec<u32> = (0..200).filter(|id| id % 3 == 1 || id % 7 == 0).collect();
        let some: Vec<f32> = ids.iter().map(|&id| all[id as usize]).collect();
        let line = Line { logits: &some, ids: Some(&ids) };
        let mut work = Workspace::new(Level::best(), 200);
        for (temperature, top_k, top_p) in [(0.0, 0, 1.0), (1.0, 0, 1.0), (0.8, 20, 1.0), (1.2, 0, 0.9)] {
            let penalised = SamplingParams {
                temperature,
                top_k,
                top_p,
                presence_penalty: 3.0,
                // The greatest of all, one that the line lacks, and one more.
                logit_bias: vec![(ids[5], 2.0), (2, 50.0), (ids[9], f32::NEG_INFINITY)],
                seed: 5,
                ..OFF
            };
            let bans = (0..200).filter(|id| !ids.contains(id)).map(|id| (id, f32::NEG_INFINITY));
            let logit_bias = penalised.logit_bias.iter().copied().chain(bans).collect();
            let banned = SamplingParams { logit_bias, ..penalised.clone() };
            let mut samplers = [&penalised, &banned].map(|p| Sampler::new(p, 200, 0, 0).expect("good values"));
            for id in [3, 7, 49, 199] {
                samplers.iter_mut().for_each(|sampler| sampler.observe(id));
            }
            let [small, large] = &samplers;
            let wanted = large.distribution(&all[..], &mut work).expect("finite");
            let wanted: Vec<(u32, f32)> = wanted.ids.iter().copied().zip(wanted.probs.iter().copied()).collect();
            let wanted: Vec<_> = wanted.into_iter().filter(|(_, p)| *p > 0.0).collect();
            for position in 0..20 {
                let drawn = large.sample(&all[..], position, &mut work).expect("finite");
                assert_eq!(small.sample(line, position, &mut work).expect("finite"), drawn);
                let (id, dist) = small.drawn(line, position, &mut work).expect("finite");
                assert_eq!(id, drawn);
                for (id, p) in dist.ids.iter().zip(dist.probs) {
                    let wanted = wanted.iter().find(|(wanted, _)| wanted == id).map_or(0.0, |(_, p)| *p);
                    assert!((p - wanted).abs() < 1e-6, "token {id}: {p}, wanted {wanted}");
                }
                assert!(wanted.iter().all(|(id, _)| dist.ids.contains(id)));
            }
        }
        let greedy = Sampler::new(&SamplingParams { temperature: 0.0, ..OFF }, 200, 0, 0).expect("good values");
        let error = greedy.sample(Line { logits: &[1.0, f32::NAN], ids: Some(&[4, 9]) }, 0, &mut work);
        assert!(error.expect_err("refused").to_string().contains("token 9"));
    }

    #[test]
    fn greedy_takes_the_first_of_the_greatest_after_bias_and_penalties() {
        let logits = [1.0, 3.0, 3.0, -1.0];
        let greedy = SamplingParams { temperature: 0.0, top_p: 0.0, ..OFF };
        assert_eq!(distribution(&greedy, &logits), [(1, 1.0)]);
        let ban = SamplingParams { logit_bias: vec![(1, f32::NEG_INFINITY)], ..greedy.clone() };
        assert_eq!(distribution(&ban, &logits), [(2, 1.0)]);
        let penalty = SamplingParams { presence_penalty: 2.5, ..ban };
        let mut sampler = Sampler::new(&penalty, 4, 0, 0).expect("good values");
        sampler.observe(2);
        let mut work = Workspace::new(Level::best(), 4);
        assert_eq!(sampler.sample(&logits[..], 0, &mut work).expect("finite"), 0);
    }

    #[test]
    fn presets_filter_before_and_after_temperature() {
        // p = 1/2, 1/3, 1/6. Nucleus of 0.7: at T = 1 two tokens, at T = 1/4 (p^4: 0.83, 0.16, 0.01) one.
        let logits = [3.0_f32.ln(), 2.0_f32.ln(), 1.0_f32.ln()];
        let openai = SamplingParams { temperature: 0.25, top_p: 0.7, ..OFF };
        assert_eq!(distribution(&openai, &logits), [(0, 1.0)]);
        let rwkv = distribution(&SamplingParams { preset: Preset::Rwkv, ..openai }, &logits);
        assert_eq!(rwkv.len(), 2);
        assert!((rwkv[0].1 - 81.0 / 97.0).abs() < 1e-6 && (rwkv[1].1 - 16.0 / 97.0).abs() < 1e-6, "{rwkv:?}");
    }

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        let mut work = Workspace::new(Level::best(), 3);
        for temperature in [0.0, 1.0] {
            let sampler = Sampler::new(&SamplingParams { temperature, ..OFF }, 3, 0, 0).expect("good values");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let error = sampler.distribution(&[0.0, bad, 1.0][..], &mut work).expect_err("refused").to_string();
                assert!(error.contains("token 1") && error.contains(&bad.to_string()), "{error}");
            }
            let logit_bias = (0..3).map(|id| (id, f32::NEG_INFINITY)).collect();
            let all_banned = SamplingParams { temperature, logit_bias, ..OFF };
            let sampler = Sampler::new(&all_banned, 3, 0, 0).expect("good values");
            let error = sampler.distribution(&[0.0; 3][..], &mut work).expect_err("refused").to_string();
            assert!(error.contains("no token to draw"), "{error}");
            // A penalty so absurd that infinities meet.
            let absurd = SamplingParams {
                temperature,
                logit_bias: vec![(0, f32::NEG_INFINITY)],
                frequency_penalty: -3e38,
                ..OFF
            };
            let mut sampler = Sampler::new(&absurd, 3, 0, 0).expect("good values");
            (0..2).for_each(|_| sampler.observe(0));
            let error = sampler.distribution(&[0.0; 3][..], &mut work).expect_err("NaN").to_string();
            assert!(error.contains("NaN"), "{error}");
        }
    }

    #[test]
    fn tokens_come_as_often_as_the_distribution_says() {
        let logits = [0.3, -1.0, 2.0, 0.0, 1.0, -2.5];
        for preset in Preset::ALL {
            let params = SamplingParams { preset, temperature: 1.5, top_k: 5, seed: 11, ..OFF };
            let sampler = Sampler::new(&params, 6, 3, 0).expect("good values");
            let mut work = Workspace::new(Level::best(), 6);
            let mut counts = [0_u32; 6];
            let draws = 20_000;
            for position in 0..draws {
                counts[sampler.sample(&logits[..], position, &mut work).expect("finite") as usize] += 1;
            }
            let expected = distribution(&params, &logits);
            assert_eq!(counts[5], 0, "filtered");
            // Chi-square with 4 degrees of freedom: 18.5 is passed once in a thousand.
            let chi: f64 = expected
                .iter()
                .map(|&(id, p)| (f64::from(p) * draws as f64, f64::from(counts[id as usize])))
                .map(|(expected, seen)| (seen - expected).powi(2) / expected)
                .sum();
            assert!(chi < 18.5, "{preset:?} {chi} {counts:?}");
        }
    }
}
