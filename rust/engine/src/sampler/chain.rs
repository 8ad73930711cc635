//! The chain from logits to a distribution, and the draw from it.

use spikelet_simd::{Level, exp_in_place};

use super::filters::{Candidate, Candidates};
use super::params::{Preset, SamplingParams};
use super::penalties::Penalties;
use super::rng::Noise;
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
            candidates: Candidates { list: Vec::with_capacity(vocab_size), total: 0.0 },
            ids: Vec::with_capacity(vocab_size),
            probs: Vec::with_capacity(vocab_size),
        }
    }

    /// The instruction set it computes with. Results do not depend on it.
    pub fn level(&self) -> Level {
        self.level
    }
}

/// A distribution over some tokens; all others have probability 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dist<'a> {
    /// Token ids, ascending.
    pub ids: &'a [u32],
    /// Their probabilities, which sum to 1 up to rounding.
    pub probs: &'a [f32],
}

impl Dist<'_> {
    /// Probability of a token.
    pub fn prob(&self, id: u32) -> f32 {
        self.ids.binary_search(&id).map_or(0.0, |i| self.probs[i])
    }

    /// The token at `uniform`, a number in [0, 1), when probabilities are laid end to end in order of ids.
    ///
    /// Where rounding leaves their sum below `uniform`, the last token with a probability above 0.
    ///
    /// # Panics
    /// If no token has a probability above 0, which no distribution of a [`Sampler`] is.
    pub fn draw(&self, uniform: f64) -> u32 {
        let mut sum = 0.0;
        for (&id, &p) in self.ids.iter().zip(self.probs) {
            sum += f64::from(p);
            if uniform < sum {
                return id;
            }
        }
        let last = self.probs.iter().rposition(|&p| p > 0.0).expect("a distribution has a token to draw");
        self.ids[last]
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

    /// The distribution of the next token. Depends on the logits, the settings and the observed tokens, on nothing else.
    ///
    /// # Errors
    /// [`Error::Logits`] if a logit is not finite, or bias and penalties leave no token to draw.
    pub fn distribution<'w>(&self, logits: &[f32], work: &'w mut Workspace) -> Result<Dist<'w>> {
        let greatest = self.adjust(logits, &mut work.scores)?;
        if self.params.is_greedy() {
            let id = work.scores.iter().position(|&score| score == greatest).expect("the greatest is among them");
            work.ids.clear();
            work.ids.push(id as u32);
            work.probs.clear();
            work.probs.push(1.0);
            return Ok(Dist { ids: &work.ids, probs: &work.probs });
        }
        let temperature = self.early_temperature();
        for score in &mut work.scores {
            *score = (*score - greatest) / temperature;
        }
        work.weights.clear();
        work.weights.extend_from_slice(&work.scores);
        exp_in_place(work.level, &mut work.weights);
        if self.filters() {
            self.filter(work);
        } else {
            work.ids.clear();
            work.ids.extend(0..logits.len() as u32);
            work.probs.clear();
            work.probs.extend_from_slice(&work.weights);
        }
        let total = sum(&work.probs);
        for p in &mut work.probs {
            *p = (f64::from(*p) / total) as f32;
        }
        Ok(Dist { ids: &work.ids, probs: &work.probs })
    }

    /// Draws the token at `position` of the sequence: [`distribution`](Self::distribution) and [`Dist::draw`] with the
    /// row's noise.
    ///
    /// # Errors
    /// Those of [`distribution`](Self::distribution).
    pub fn sample(&self, logits: &[f32], position: u64, work: &mut Workspace) -> Result<u32> {
        Ok(self.distribution(logits, work)?.draw(self.noise.uniform(position)))
    }
}

/// The parts of the chain.
impl Sampler {
    /// Logits with bias and penalties into `scores`; returns the greatest.
    fn adjust(&self, logits: &[f32], scores: &mut Vec<f32>) -> Result<f32> {
        if !logits.iter().fold(true, |finite, logit| finite & logit.is_finite()) {
            let (id, logit) = logits.iter().enumerate().find(|(_, logit)| !logit.is_finite()).unwrap_or((0, &f32::NAN));
            return Err(Error::Logits { reason: format!("that of token {id} is {logit}") });
        }
        scores.clear();
        scores.extend_from_slice(logits);
        for &(id, bias) in &self.params.logit_bias {
            if let Some(score) = scores.get_mut(id as usize) {
                *score += bias;
            }
        }
        self.penalties.apply(scores);
        let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !greatest.is_finite() {
            let reason = format!("bias and penalties leave {greatest} as the greatest, so there is no token to draw");
            return Err(Error::Logits { reason });
        }
        Ok(greatest)
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

    /// Fills the candidates, runs the filters in the preset's order and writes ids, ascending, and their distribution.
    fn filter(&self, work: &mut Workspace) {
        let SamplingParams { preset, top_k, top_p, min_p, typical_p, .. } = self.params;
        self.collect(work);
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
        candidates.list.sort_unstable_by_key(|c| c.id);
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
    fn collect(&self, work: &mut Workspace) {
        let SamplingParams { preset, top_k, top_p, min_p, .. } = self.params;
        let Workspace { scores, weights, candidates, probs, .. } = work;
        let n = weights.len();
        candidates.total = sum(weights);
        let least = if top_k > 0 && top_k < n && (preset == Preset::OpenAi || top_p == 1.0) {
            probs.clear();
            probs.extend_from_slice(weights);
            *probs.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a)).1
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
        candidates.list.clear();
        for (id, (&score, &weight)) in scores.iter().zip(weights.iter()).enumerate() {
            if weight >= least && weight > 0.0 {
                candidates.list.push(Candidate { id: id as u32, score, weight });
            }
        }
    }
}

/// Sum in f64, in eight lanes and one fixed order.
fn sum(x: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(value);
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}
