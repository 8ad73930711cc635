//! What a request asks of speculative decoding.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::MAX_DRAFT;
use crate::error::{Error, Result};
use crate::model::Model;

/// Where drafts come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// No drafts: one token per pass.
    #[default]
    Off,
    /// Whatever the model brings along, and the text's own repetitions.
    Auto,
    /// Repetitions of prompt and output.
    NGram,
    /// The table of the training text in the model's folder.
    Table,
    /// The prophet in the model's folder.
    Prophet,
    /// Repetitions where there are any, else the prophet.
    ProphetNGram,
    /// A second model.
    DraftModel,
    /// The drafter given to [`Decoder::set_drafter`](crate::decode::Decoder::set_drafter).
    Own,
}

impl Method {
    /// Those that can be asked for by name.
    pub const ALL: [Self; 7] =
        [Self::Off, Self::Auto, Self::NGram, Self::Table, Self::Prophet, Self::ProphetNGram, Self::DraftModel];

    /// The name users type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::NGram => "ngram",
            Self::Table => "table",
            Self::Prophet => "prophet",
            Self::ProphetNGram => "prophet+ngram",
            Self::DraftModel => "draft_model",
            Self::Own => "own",
        }
    }
}

/// How drafted tokens are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// A guess stays if it is the token that the row draws anyway: the text is that of decoding without drafts.
    #[default]
    Coupled,
    /// Leviathan et al. 2023, algorithm 1: texts have the model's distribution, but are others than without drafts.
    Token,
    /// Sun et al. 2024, block verification: likewise, and never fewer tokens accepted on average.
    Block,
}

impl Verify {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Coupled, Self::Token, Self::Block];

    /// The name users type.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coupled => "coupled",
            Self::Token => "token",
            Self::Block => "block",
        }
    }
}

/// Finds a choice by its name.
fn by_name<T: Copy, const N: usize>(option: &str, all: [T; N], name: fn(T) -> &'static str, text: &str) -> Result<T> {
    all.into_iter().find(|&choice| name(choice) == text).ok_or_else(|| Error::Option {
        name: option.into(),
        value: format!("{text:?}"),
        needed: all.map(name).join(", "),
    })
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("method", Self::ALL, Self::name, text)
    }
}

impl FromStr for Verify {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        by_name("verify", Self::ALL, Self::name, text)
    }
}

/// The settings.
#[derive(Clone)]
pub struct SpeculativeConfig {
    /// Where drafts come from.
    pub method: Method,
    /// Tokens per draft; chosen by what pays when `None`.
    pub num_tokens: Option<usize>,
    /// How they are accepted.
    pub verify: Verify,
    /// The shortest repetition, in tokens, that n-gram drafts go on from.
    pub lookup_min: usize,
    /// The longest that is looked for.
    pub lookup_max: usize,
    /// The model of [`Method::DraftModel`].
    pub draft_model: Option<Arc<Model>>,
    /// Accepts each guess with this probability, whatever the model says: to measure a machine apart from a draft. The
    /// text is not the model's.
    pub forced_acceptance: Option<f64>,
}

impl Default for SpeculativeConfig {
    fn default() -> Self {
        Self {
            method: Method::Off,
            num_tokens: None,
            verify: Verify::Coupled,
            lookup_min: 2,
            lookup_max: 8,
            draft_model: None,
            forced_acceptance: None,
        }
    }
}

impl fmt::Debug for SpeculativeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpeculativeConfig")
            .field("method", &self.method)
            .field("num_tokens", &self.num_tokens)
            .field("verify", &self.verify)
            .field("lookup", &(self.lookup_min..=self.lookup_max))
            .field("draft_model", &self.draft_model.as_ref().map(|model| model.path()))
            .field("forced_acceptance", &self.forced_acceptance)
            .finish()
    }
}

impl SpeculativeConfig {
    /// Checks every value but the lengths of repetitions, which [`NGram::new`](super::NGram::new) checks.
    ///
    /// # Errors
    /// [`Error::Option`] names the one that makes no sense.
    pub fn validate(&self) -> Result<()> {
        let bad = |name: &str, value: String, needed: String| Err(Error::Option { name: name.into(), value, needed });
        if let Some(n) = self.num_tokens.filter(|n| !(1..=MAX_DRAFT).contains(n)) {
            return bad("num_speculative_tokens", n.to_string(), format!("1 to {MAX_DRAFT}, or \"auto\""));
        }
        if let Some(p) = self.forced_acceptance.filter(|p| !(0.0..=1.0).contains(p)) {
            return bad("forced_acceptance", p.to_string(), "0 to 1".into());
        }
        match (self.method, &self.draft_model) {
            (Method::DraftModel, None) => {
                bad("draft_model", "None".into(), "a model, for method \"draft_model\"".into())
            }
            (Method::DraftModel, Some(_)) | (_, None) => Ok(()),
            (method, Some(_)) => bad("draft_model", "a model".into(), format!("none, for method {:?}", method.name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_choices() {
        for method in Method::ALL {
            assert_eq!(method.name().parse::<Method>().expect("its own name"), method);
        }
        for verify in Verify::ALL {
            assert_eq!(verify.name().parse::<Verify>().expect("its own name"), verify);
        }
        let error = "eagle".parse::<Method>().expect_err("unknown").to_string();
        assert!(error.contains("eagle") && error.contains("prophet+ngram"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let good = SpeculativeConfig::default();
        assert!(good.validate().is_ok());
        for (config, name) in [
            (SpeculativeConfig { num_tokens: Some(0), ..good.clone() }, "num_speculative_tokens"),
            (SpeculativeConfig { num_tokens: Some(MAX_DRAFT + 1), ..good.clone() }, "num_speculative_tokens"),
            (SpeculativeConfig { forced_acceptance: Some(1.5), ..good.clone() }, "forced_acceptance"),
            (SpeculativeConfig { forced_acceptance: Some(f64::NAN), ..good.clone() }, "forced_acceptance"),
            (SpeculativeConfig { method: Method::DraftModel, ..good.clone() }, "draft_model"),
        ] {
            let error = config.validate().expect_err("refused").to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
