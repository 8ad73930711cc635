//! What a user can ask of sampling, with every default in one place.

use std::str::FromStr;

use crate::error::{Error, Result};

/// In which order the parts of the chain act.
///
/// Both start with `logit_bias` and the penalties and end with the draw.
///
/// | preset | order | where it comes from |
/// | --- | --- | --- |
/// | [`OpenAi`](Self::OpenAi) | temperature, top-k, top-p, min-p, typical | Hugging Face's and OpenAI's meaning: filters see the tempered distribution |
/// | [`Rwkv`](Self::Rwkv) | top-p, top-k, min-p, typical, temperature | `sample_logits` of the `rwkv` package: filters see the model's own distribution, what is left is raised to the power 1/temperature |
///
/// Each filter sees what the one before it left, renormalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// Temperature first.
    #[default]
    OpenAi,
    /// Temperature last.
    Rwkv,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 2] = [Self::OpenAi, Self::Rwkv];

    /// The name users write.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Rwkv => "rwkv",
        }
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|preset| preset.name() == name)
            .ok_or_else(|| option("preset", name, "openai or rwkv"))
    }
}

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Order of the chain.
    pub preset: Preset,
    /// Logits are divided by it; 0 takes the most probable token, the lowest id among equals, and ignores the filters.
    pub temperature: f32,
    /// Keep only so many of the most probable tokens; among equals at the border the lowest ids stay. 0 is off.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens that holds this share of the probability (Holtzman et al. 2019,
    /// *The Curious Case of Neural Text Degeneration*); among equals at the border the lowest ids stay. 1 is off.
    pub top_p: f32,
    /// Keep tokens at least this fraction as probable as the most probable one (Nguyen et al. 2024, *Turning Up the
    /// Heat: Min-p Sampling*). 0 is off.
    pub min_p: f32,
    /// Keep the smallest set that holds this share of the probability, taking first the tokens whose surprise is
    /// nearest to the expected surprise (Meister et al. 2022, *Locally Typical Sampling*). 1 is off.
    pub typical_p: f32,
    /// Positive logits of tokens in the prompt or generated so far are divided by it, negative ones multiplied (Keskar
    /// et al. 2019, *CTRL*, as in Hugging Face). 1 is off.
    pub repetition_penalty: f32,
    /// Taken from the logit of every token generated so far (OpenAI; `alpha_presence` of the `rwkv` package).
    pub presence_penalty: f32,
    /// Taken from a token's logit for every time it was generated so far (OpenAI; `alpha_frequency` of `rwkv`).
    pub frequency_penalty: f32,
    /// The counts behind `frequency_penalty` are multiplied by it whenever a token is generated, so that long gone
    /// repetitions weigh less (`alpha_decay` of `rwkv`, there 0.996). 1 is off.
    pub penalty_decay: f32,
    /// Added to the logits of these tokens; minus infinity bans one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Key of the random numbers. The same seed, row number and text before give the same token.
    pub seed: u64,
    /// How many of the most probable tokens to report with each token.
    pub logprobs: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
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
        }
    }
}

impl SamplingParams {
    /// Whether the most probable token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks every value, for a vocabulary of `vocab_size` tokens.
    ///
    /// # Errors
    /// [`Error::Option`] naming the first value that makes no sense, and [`Error::TokenId`] for a biased token that does
    /// not exist.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let number = |name: &str, value: f32, ok: bool, needed: &str| {
            if ok { Ok(()) } else { Err(option(name, value, needed)) }
        };
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let positive = |value: f32| value.is_finite() && value > 0.0;
        let Self { temperature, top_p, min_p, typical_p, .. } = *self;
        let zero_or_more = temperature.is_finite() && temperature >= 0.0;
        number("temperature", temperature, zero_or_more, "a finite number, 0 or more")?;
        number("top_p", top_p, share(top_p), "a number from 0 to 1")?;
        number("min_p", min_p, share(min_p), "a number from 0 to 1")?;
        number("typical_p", typical_p, share(typical_p), "a number from 0 to 1")?;
        let Self { repetition_penalty, presence_penalty, frequency_penalty, penalty_decay, .. } = *self;
        number("repetition_penalty", repetition_penalty, positive(repetition_penalty), "a finite number above 0")?;
        number("presence_penalty", presence_penalty, presence_penalty.is_finite(), "a finite number")?;
        number("frequency_penalty", frequency_penalty, frequency_penalty.is_finite(), "a finite number")?;
        number("penalty_decay", penalty_decay, share(penalty_decay), "a number from 0 to 1")?;
        if self.logprobs > vocab_size {
            return Err(option("logprobs", self.logprobs, &format!("at most the vocabulary's {vocab_size}")));
        }
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab_size {
                return Err(Error::TokenId { id: id.into(), vocab_size });
            }
            let ok = bias.is_finite() || bias == f32::NEG_INFINITY;
            number("logit_bias", bias, ok, "finite numbers, or minus infinity to ban a token")?;
        }
        Ok(())
    }
}

fn option(name: &str, value: impl ToString, needed: &str) -> Error {
    Error::Option { name: name.into(), value: value.to_string(), needed: needed.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_found_by_name() {
        for preset in Preset::ALL {
            assert_eq!(preset.name().parse::<Preset>().expect("known"), preset);
        }
        let error = "gpt".parse::<Preset>().expect_err("refused").to_string();
        assert!(error.contains("preset") && error.contains("gpt") && error.contains("openai or rwkv"), "{error}");
    }

    #[test]
    fn every_bad_value_is_refused_by_name() {
        assert!(SamplingParams::default().validate(5).is_ok());
        type Break = fn(&mut SamplingParams);
        let cases: [(&str, Break); 14] = [
            ("temperature", |p| p.temperature = -0.1),
            ("temperature", |p| p.temperature = f32::INFINITY),
            ("top_p", |p| p.top_p = 1.01),
            ("top_p", |p| p.top_p = f32::NAN),
            ("min_p", |p| p.min_p = -1.0),
            ("typical_p", |p| p.typical_p = 2.0),
            ("repetition_penalty", |p| p.repetition_penalty = 0.0),
            ("presence_penalty", |p| p.presence_penalty = f32::NAN),
            ("frequency_penalty", |p| p.frequency_penalty = f32::INFINITY),
            ("penalty_decay", |p| p.penalty_decay = 1.5),
            ("logprobs", |p| p.logprobs = 6),
            ("token id 5", |p| p.logit_bias = vec![(4, 1.0), (5, 1.0)]),
            ("logit_bias", |p| p.logit_bias = vec![(0, f32::INFINITY)]),
            ("logit_bias", |p| p.logit_bias = vec![(0, f32::NAN)]),
        ];
        for (name, break_it) in cases {
            let mut params = SamplingParams::default();
            break_it(&mut params);
            let error = params.validate(5).expect_err(name).to_string();
            assert!(error.contains(name), "{name}: {error}");
        }
        let ban = SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY)], ..Default::default() };
        assert!(ban.validate(5).is_ok());
    }
}
