//! Penalties for what was already said.
//!
//! Repetition counts the prompt and the generated text (Hugging Face); presence and frequency count generated text only
//! (OpenAI, the `rwkv` package). The `rwkv` package further spares spaces and digits; that rule is about its own
//! vocabulary and is not repeated here.

use super::line::Line;
use super::params::SamplingParams;

/// What one row has said, as far as penalties care.
#[derive(Clone, Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    decay: f32,
    /// Tokens that occurred, in order of first occurrence.
    seen: Vec<Seen>,
    /// The same as they were at [`remember`](Self::remember).
    remembered: Vec<Seen>,
    /// By id: 1 + index into `seen`, or 0. Empty when no penalty is asked for.
    index: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    id: u32,
    generated: bool,
    /// How often it was generated, older times decayed.
    count: f32,
}

impl Penalties {
    /// Nothing said yet. `expected` is how many tokens are likely to come: room for them is taken now.
    pub(super) fn new(params: &SamplingParams, vocab_size: usize, expected: usize) -> Self {
        let SamplingParams { repetition_penalty, presence_penalty, frequency_penalty, .. } = *params;
        let off = repetition_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0;
        Self {
            repetition: repetition_penalty,
            presence: presence_penalty,
            frequency: frequency_penalty,
            decay: params.penalty_decay,
            seen: Vec::with_capacity(if off { 0 } else { expected.min(vocab_size) }),
            remembered: Vec::new(),
            index: vec![0; if off { 0 } else { vocab_size }],
        }
    }

    /// Keeps what was said so far.
    pub(super) fn remember(&mut self) {
        self.remembered.clone_from(&self.seen);
    }

    /// Goes back to what was kept.
    pub(super) fn recall(&mut self) {
        for seen in self.seen.drain(self.remembered.len()..) {
            self.index[seen.id as usize] = 0;
        }
        self.seen.copy_from_slice(&self.remembered);
    }

    /// Takes note of a token of the prompt.
    pub(super) fn read(&mut self, id: u32) {
        if !self.index.is_empty() {
            self.entry(id);
        }
    }

    /// Takes note of a generated token.
    pub(super) fn generated(&mut self, id: u32) {
        if self.index.is_empty() {
            return;
        }
        if self.decay != 1.0 {
            for seen in &mut self.seen {
                seen.count *= self.decay;
            }
        }
        let seen = self.entry(id);
        seen.generated = true;
        seen.count += 1.0;
    }

    /// Whether none is asked for.
    pub(super) fn are_off(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether there is nothing to change.
    pub(super) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Changes the logits of what was said, repetition first; `line` tells whose logits they are.
    pub(super) fn apply(&self, line: Line<'_>, logits: &mut [f32]) {
        for &Seen { id, generated, count } in &self.seen {
            let Some(index) = line.index(id) else { continue };
            let logit = &mut logits[index];
            if self.repetition != 1.0 {
                *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            }
            if generated {
                *logit -= self.presence + count * self.frequency;
            }
        }
    }

    fn entry(&mut self, id: u32) -> &mut Seen {
        let index = &mut self.index[id as usize];
        if *index == 0 {
            self.seen.push(Seen { id, generated: false, count: 0.0 });
            *index = self.seen.len() as u32;
        }
        &mut self.seen[*index as usize - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// The definition, from the whole history at once.
    fn naive(params: &SamplingParams, prompt: &[u32], generated: &[u32], logits: &mut [f32]) {
        let mut counts: HashMap<u32, f32> = HashMap::new();
        for id in generated {
            counts.values_mut().for_each(|count| *count *= params.penalty_decay);
            *counts.entry(*id).or_default() += 1.0;
        }
        for id in 0..logits.len() as u32 {
            let logit = &mut logits[id as usize];
            if prompt.contains(&id) || generated.contains(&id) {
                let repetition = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
            if let Some(count) = counts.get(&id) {
                *logit -= params.presence_penalty + count * params.frequency_penalty;
            }
        }
    }

    #[test]
    fn penalties_are_what_their_definition_says() {
        let prompt = [1, 2, 2, 5];
        let generated = [3, 2, 3, 3, 7, 0];
        for (repetition_penalty, presence_penalty, frequency_penalty, penalty_decay) in [
            (1.0, 0.0, 0.0, 1.0),
            (1.3, 0.0, 0.0, 1.0),
            (1.0, 0.4, 0.2, 1.0),
            (1.2, 0.4, 0.4, 0.996),
            (0.8, -0.5, 0.1, 0.0),
        ] {
            let params = SamplingParams {
                repetition_penalty,
                presence_penalty,
                frequency_penalty,
                penalty_decay,
                ..Default::default()
            };
            let logits: Vec<f32> = (0..9).map(|i| (i as f32 - 3.5) * 0.7).collect();
            let mut penalties = Penalties::new(&params, 9, 0);
            prompt.iter().for_each(|&id| penalties.read(id));
            for n in 0..=generated.len() {
                let (mut fast, mut slow) = (logits.clone(), logits.clone());
                penalties.apply(logits.as_slice().into(), &mut fast);
                naive(&params, &prompt, &generated[..n], &mut slow);
                assert_eq!(fast, slow, "after {n} tokens, {params:?}");
                // What is only tried leaves no trace.
                let before = penalties.seen.clone();
                penalties.remember();
                [3, 8, 1, 8].into_iter().for_each(|id| penalties.generated(id));
                penalties.recall();
                assert_eq!(penalties.seen, before);
                if let Some(&id) = generated.get(n) {
                    penalties.generated(id);
                }
            }
        }
    }
}
