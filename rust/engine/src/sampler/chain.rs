//! The chain from logits to a distribution.

use spikelet_simd::{Level, exp_in_place};

use super::dist::Dist;
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
        if scores.iter().fold(false, |nan, score| nan | score.is_nan()) {
            return Err(Error::Logits { reason: "bias and penalties make NaN of some".into() });
        }
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

    /// Fills the candidates, runs the filters in the preset's order and writes what is left, up to a factor.
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
        let logits: Vec<f32> = (0..1000).map(|i| (noise.uniform(i) * 24.0 - 12.0) as f32).collect();
        let changes =
            [(1.0, 0, 1.0, 1.0), (0.7, 0, 0.9, 1.0), (1.4, 50, 1.0, 0.8), (0.9, 200, 0.95, 0.9), (0.0, 0, 1.0, 1.0)];
        for (preset, (temperature, top_k, top_p, typical_p)) in
            Preset::ALL.into_iter().flat_map(|preset| changes.map(|change| (preset, change)))
        {
            let params = SamplingParams { preset, temperature, top_k, top_p, typical_p, ..OFF };
            let sampler = Sampler::new(&params, logits.len(), 0, 0).expect("good values");
            let mut all = Level::available().into_iter().map(|level| {
                let mut work = Workspace::new(level, logits.len());
                let dist = sampler.distribution(&logits, &mut work).expect("finite");
                let bits: Vec<u32> = dist.probs.iter().map(|p| p.to_bits()).collect();
                (dist.ids.to_vec(), bits, Logprobs::new(level, &logits).of(7).to_bits())
            });
            let first = all.next().expect("at least the portable level");
            assert!(all.all(|other| other == first), "{params:?}");
        }
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
        assert_eq!(sampler.sample(&logits, 0, &mut work).expect("finite"), 0);
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
                let error = sampler.distribution(&[0.0, bad, 1.0], &mut work).expect_err("refused").to_string();
                assert!(error.contains("token 1") && error.contains(&bad.to_string()), "{error}");
            }
            let logit_bias = (0..3).map(|id| (id, f32::NEG_INFINITY)).collect();
            let all_banned = SamplingParams { temperature, logit_bias, ..OFF };
            let sampler = Sampler::new(&all_banned, 3, 0, 0).expect("good values");
            let error = sampler.distribution(&[0.0; 3], &mut work).expect_err("refused").to_string();
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
            let error = sampler.distribution(&[0.0; 3], &mut work).expect_err("NaN").to_string();
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
                counts[sampler.sample(&logits, position, &mut work).expect("finite") as usize] += 1;
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
