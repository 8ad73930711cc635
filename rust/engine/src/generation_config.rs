//! `generation_config.json`: how a model wishes to be sampled. Every key is optional, and none changes what the model computes,
//! so keys that other programs put there are passed over.

use std::path::Path;

use serde::{Deserialize, Deserializer};

use crate::decode::StopRules;
use crate::error::{Error, Result};
use crate::sampler::SamplingParams;

/// Default sampling settings that lie beside a model.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// Sampling temperature; 0 always takes the most likely token.
    pub temperature: Option<f32>,
    /// Keep the most likely tokens, this many.
    pub top_k: Option<u32>,
    /// Keep the most likely tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Keep tokens at least this share as likely as the most likely.
    pub min_p: Option<f32>,
    /// Keep the most typical tokens whose probabilities reach this sum.
    pub typical_p: Option<f32>,
    /// Divides the logits of tokens seen before (1 is off).
    pub repetition_penalty: Option<f32>,
    /// Taken from the logits of tokens seen before.
    pub presence_penalty: Option<f32>,
    /// Taken from the logits of tokens seen before, once per time seen.
    pub frequency_penalty: Option<f32>,
    /// What a token's count is multiplied with at every step.
    pub penalty_decay: Option<f32>,
    /// Tokens to generate at most.
    pub max_new_tokens: Option<u32>,
    /// Strings that end the text; one or a list in the file (also under Hugging Face's name `stop_strings`).
    #[serde(alias = "stop_strings", deserialize_with = "one_or_many")]
    pub stop: Vec<String>,
    /// Ids that end the text; one or a list in the file.
    #[serde(deserialize_with = "one_or_many")]
    pub eos_token_id: Vec<u32>,
    /// Template that turns a conversation into a prompt.
    pub chat_template: Option<String>,
    /// Name of a sampling preset.
    pub preset: Option<String>,
}

impl GenerationConfig {
    /// Reads the text of a `generation_config.json`; `path` is for messages.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<GenerationConfig> {
        let config: GenerationConfig =
            serde_json::from_slice(text).map_err(|e| Error::config(path, format!("not valid: {e}")))?;
        config.check(path)?;
        Ok(config)
    }

    /// Puts the model's wishes over the engine's defaults.
    ///
    /// # Errors
    /// [`Error::Option`] for a preset that does not exist.
    pub fn apply(&self, sampling: &mut SamplingParams, stop: &mut StopRules) -> Result<()> {
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
        for (place, wish) in numbers {
            *place = wish.unwrap_or(*place);
        }
        for (place, wish) in [(&mut sampling.top_k, self.top_k), (&mut stop.max_new_tokens, self.max_new_tokens)] {
            *place = wish.map_or(*place, |n| n as usize);
        }
        stop.strings.clone_from(&self.stop);
        stop.ids.clone_from(&self.eos_token_id);
        Ok(())
    }

    fn check(&self, path: &Path) -> Result<()> {
        let ranges = [
            ("temperature", self.temperature, 0.0..=100.0),
            ("top_p", self.top_p, 0.0..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("typical_p", self.typical_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01..=100.0),
            ("presence_penalty", self.presence_penalty, -100.0..=100.0),
            ("frequency_penalty", self.frequency_penalty, -100.0..=100.0),
            ("penalty_decay", self.penalty_decay, 0.0..=1.0),
        ];
        for (key, value, range) in ranges {
            if let Some(value) = value.filter(|v| !range.contains(v)) {
                let (low, high) = range.into_inner();
                return Err(Error::config(
                    path,
                    format!("key `{key}`: found {value}, needed a number from {low} to {high}"),
                ));
            }
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::config(path, "key `stop`: found an empty string, which every text holds"));
        }
        Ok(())
    }
}

fn one_or_many<'de, D, T>(deserializer: D) -> std::result::Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "needed one value or a list of values")]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => Vec::new(),
        Some(OneOrMany::One(value)) => vec![value],
        Some(OneOrMany::Many(values)) => values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::Preset;

    fn parse(text: &str) -> Result<GenerationConfig> {
        GenerationConfig::parse(Path::new("generation_config.json"), text.as_bytes())
    }

    #[test]
    fn everything_is_optional_and_lists_may_be_single_values() {
        assert_eq!(parse("{}").expect("valid"), GenerationConfig::default());
        let config = parse(
            r#"{"_from_model_config": true, "temperature": 0.8, "top_k": 40, "stop": "\n\n", "eos_token_id": [0, 2],
                "preset": "rwkv", "chat_template": null, "transformers_version": "4"}"#,
        )
        .expect("valid");
        assert_eq!(config.temperature, Some(0.8));
        assert_eq!(config.stop, ["\n\n"]);
        assert_eq!(config.eos_token_id, [0, 2]);
        assert_eq!(config.preset.as_deref(), Some("rwkv"));
        assert_eq!(parse(r#"{"eos_token_id": 3, "stop_strings": ["a", "b"]}"#).expect("valid").stop, ["a", "b"]);
    }

    #[test]
    fn wishes_overrule_defaults_and_nothing_else_changes() {
        let (mut sampling, mut stop) = (SamplingParams::default(), StopRules::default());
        parse("{}").expect("valid").apply(&mut sampling, &mut stop).expect("no preset");
        assert_eq!((&sampling, &stop), (&SamplingParams::default(), &StopRules::default()));
        let config = parse(r#"{"temperature": 0.5, "top_k": 7, "max_new_tokens": 9, "stop": "x", "preset": "rwkv"}"#);
        config.expect("valid").apply(&mut sampling, &mut stop).expect("a known preset");
        let wanted = SamplingParams { temperature: 0.5, top_k: 7, preset: Preset::Rwkv, ..SamplingParams::default() };
        assert_eq!(sampling, wanted);
        assert_eq!(stop, StopRules { max_new_tokens: 9, strings: vec!["x".into()], ..StopRules::default() });
        let unknown = parse(r#"{"preset": "warm"}"#).expect("valid").apply(&mut sampling, &mut stop);
        assert!(unknown.expect_err("no such preset").to_string().contains("`preset`: found warm"));
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        let message = |text: &str| parse(text).expect_err("must be refused").to_string();
        assert!(message(r#"{"top_p": 1.5}"#).contains("key `top_p`: found 1.5, needed a number from 0 to 1"));
        assert!(message(r#"{"temperature": -1}"#).contains("key `temperature`"));
        assert!(message(r#"{"stop": ""}"#).contains("key `stop`"));
        assert!(message(r#"{"eos_token_id": -1}"#).contains("needed one value or a list"));
        assert!(message("[").contains("not valid"));
    }
}
