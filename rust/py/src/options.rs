//! The options of generation: as Python gives them, over the model's own, over the engine's.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use spikelet::decode::{Request, StopRules};
use spikelet::draft::Method;
use spikelet::error::Result;
use spikelet::generation_config::GenerationConfig;
use spikelet::sampler::SamplingParams;

use crate::args::{Bias, Ids, Int, Prompt, Seeds, Strings, shortest};
use crate::errors::bad_option;
use crate::shared::Shared;
use crate::speculative::Speculative;

/// The options that every way of generating shares. What is `None` is left to the model, then to the engine.
#[derive(Default)]
pub struct Options {
    pub max_new_tokens: Option<Int>,
    pub temperature: Option<f64>,
    pub top_k: Option<Int>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub typical_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub penalty_decay: Option<f64>,
    pub logit_bias: Option<Bias>,
    pub stop: Option<Strings>,
    pub stop_ids: Option<Ids>,
    pub ignore_eos: Option<bool>,
    pub include_stop: Option<bool>,
    pub logprobs: Option<Int>,
    pub preset: Option<String>,
    pub speculative: Option<Speculative>,
}

const COUNT: &str = "a whole number, 0 or more";

impl Options {
    /// What the engine is told, but for the seed: these options over the model's own over the engine's.
    fn resolve(&self, model: &GenerationConfig, vocab_size: usize) -> Result<(SamplingParams, StopRules)> {
        let (mut sampling, mut stop) = (SamplingParams::default(), StopRules::default());
        model.apply(&mut sampling, &mut stop)?;
        if let Some(name) = &self.preset {
            sampling.preset = name.parse()?;
        }
        let numbers = [
            (&mut sampling.temperature, self.temperature),
            (&mut sampling.top_p, self.top_p),
            (&mut sampling.min_p, self.min_p),
            (&mut sampling.typical_p, self.typical_p),
            (&mut sampling.repetition_penalty, self.repetition_penalty),
            (&mut sampling.presence_penalty, self.presence_penalty),
            (&mut sampling.frequency_penalty, self.frequency_penalty),
            (&mut sampling.penalty_decay, self.penalty_decay),
        ];
        for (place, value) in numbers {
            *place = value.map_or(*place, |value| value as f32);
        }
        let counts = [
            ("max_new_tokens", &mut stop.max_new_tokens, self.max_new_tokens),
            ("top_k", &mut sampling.top_k, self.top_k),
            ("logprobs", &mut sampling.logprobs, self.logprobs),
        ];
        for (name, place, value) in counts {
            if let Some(value) = value {
                *place = value.to(name, COUNT)?;
            }
        }
        if let Some(bias) = &self.logit_bias {
            sampling.logit_bias = bias.resolve("logit_bias", vocab_size)?;
        }
        if let Some(Strings(strings)) = &self.stop {
            stop.strings.clone_from(strings);
        }
        if let Some(ids) = &self.stop_ids {
            stop.ids = ids.resolve("stop_ids", vocab_size)?;
        }
        stop.ignore_eos = self.ignore_eos.unwrap_or(stop.ignore_eos);
        stop.include_stop = self.include_stop.unwrap_or(stop.include_stop);
        sampling.validate(vocab_size)?;
        stop.validate(vocab_size)?;
        Ok((sampling, stop))
    }

    /// What the engine is asked to do with one prompt.
    pub fn request(&self, shared: &Shared, prompt: &[u32], seed: Option<Int>, row: Option<Int>) -> Result<Request> {
        let (mut sampling, stop) = self.resolve(&shared.settings, shared.vocab_size())?;
        sampling.seed = resolve_seed(seed)?;
        let row = row.map_or(Ok(0), |row| row.to("row", "a whole number from 0 to 2**32 - 1"))?;
        let speculative = Speculative::resolve(self.speculative.as_ref())?;
        Ok(Request { prompt: prompt.to_vec(), sampling, stop, row, speculative, ..Request::default() })
    }

    /// What the engine is asked to do with several, all of it checked.
    pub fn requests(&self, shared: &Shared, prompts: &[Prompt], seeds: Option<Seeds>) -> Result<Vec<Request>> {
        let (sampling, stop) = self.resolve(&shared.settings, shared.vocab_size())?;
        let keys = keys(prompts.len(), seeds)?;
        let speculative = Speculative::resolve(self.speculative.as_ref())?;
        let request = |(prompt, (seed, row)): (&Prompt, (u64, u32))| {
            let sampling = SamplingParams { seed, ..sampling.clone() };
            let request = Request {
                prompt: shared.ids("prompts", prompt)?,
                sampling,
                stop: stop.clone(),
                row,
                speculative: speculative.clone(),
                ..Request::default()
            };
            shared.check(&request)?;
            Ok(request)
        };
        prompts.iter().zip(keys).map(request).collect()
    }
}

/// Seed and row number of each row of a batch.
fn keys(rows: usize, seeds: Option<Seeds>) -> Result<Vec<(u64, u32)>> {
    match seeds {
        Some(Seeds::Each(each)) if each.len() == rows => {
            each.into_iter().map(|seed| Ok((resolve_seed(Some(seed))?, 0))).collect()
        }
        Some(Seeds::Each(each)) => {
            let found = format!("{} seeds", each.len());
            Err(bad_option("seed", found, &format!("one seed, or one for each of the {rows} prompts")))
        }
        Some(Seeds::One(seed)) => (0u32..).take(rows).map(|row| Ok((resolve_seed(Some(seed))?, row))).collect(),
        None => {
            let seed = random_seed();
            Ok((0u32..).take(rows).map(|row| (seed, row)).collect())
        }
    }
}

/// A given seed, or a random one.
fn resolve_seed(given: Option<Int>) -> Result<u64> {
    given.map_or_else(|| Ok(random_seed()), |seed| seed.to("seed", "a whole number from 0 to 2**64 - 1"))
}

/// Few enough digits to be written down and typed again.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one("seed") >> 32
}

/// The engine's own value of every option, by the option's name in Python.
pub fn default_options(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    options_dict(py, &SamplingParams::default(), &StopRules::default())
}

/// Options by their names in Python.
fn options_dict<'py>(py: Python<'py>, sampling: &SamplingParams, stop: &StopRules) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("max_new_tokens", stop.max_new_tokens)?;
    dict.set_item("temperature", shortest(sampling.temperature))?;
    dict.set_item("top_k", sampling.top_k)?;
    dict.set_item("top_p", shortest(sampling.top_p))?;
    dict.set_item("min_p", shortest(sampling.min_p))?;
    dict.set_item("typical_p", shortest(sampling.typical_p))?;
    dict.set_item("repetition_penalty", shortest(sampling.repetition_penalty))?;
    dict.set_item("presence_penalty", shortest(sampling.presence_penalty))?;
    dict.set_item("frequency_penalty", shortest(sampling.frequency_penalty))?;
    dict.set_item("penalty_decay", shortest(sampling.penalty_decay))?;
    dict.set_item("logit_bias", PyDict::new(py))?;
    dict.set_item("stop", &stop.strings)?;
    dict.set_item("stop_ids", &stop.ids)?;
    dict.set_item("ignore_eos", stop.ignore_eos)?;
    dict.set_item("include_stop", stop.include_stop)?;
    dict.set_item("seed", py.None())?;
    dict.set_item("row", 0)?;
    dict.set_item("logprobs", sampling.logprobs)?;
    dict.set_item("preset", sampling.preset.name())?;
    dict.set_item("speculative", Method::Auto.name())?;
    Ok(dict)
}
