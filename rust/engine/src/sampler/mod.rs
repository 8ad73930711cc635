//! From logits to the next token.
//!
//! A [`Sampler`] holds one row's settings and what it has said; a [`Workspace`] holds scratch memory that all rows share.
//! [`Sampler::sample`] draws a token and [`Sampler::distribution`] tells what from: whoever verifies drafts needs the second
//! without the first. Which token is drawn depends on the logits, the settings, the row's own history and
//! (seed, row, position), and is the same on every machine.

mod chain;
mod dist;
mod filters;
mod line;
mod logprobs;
mod params;
mod penalties;
mod rng;

pub(crate) use chain::Workspaces;
pub use chain::{Sampler, Workspace};
pub use dist::Dist;
pub use line::Line;
pub use logprobs::{Logprobs, TokenLogprob};
pub use params::{Preset, SamplingParams};
pub use rng::{Noise, Purpose};
