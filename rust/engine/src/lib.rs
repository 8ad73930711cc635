//! spikelet: text generation with SpikeGPT and RWKV models.
//!
//! The way of a token: a [`Decoder`](decode::Decoder) packs what its rows have to read into one pass; a
//! [`Runner`](backend::Runner) takes the pass through a [`Model`](model::Model), from state slots to state slots; the row's
//! [`Sampler`](sampler::Sampler) draws from the logits; a [`StreamDecoder`](tokenizer::StreamDecoder) turns bytes into whole
//! characters.
//!
//! # Logits
//!
//! A model never changes and may be shared by any number of threads; each brings a runner with states of its own.
//!
//! ```
//! use std::path::Path;
//!
//! use spikelet::backend::{LogitsWanted, PassRow, Runner};
//! use spikelet::model::{LoadOptions, Model};
//!
//! # fn main() -> spikelet::Result<()> {
//! let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/spikegpt-tiny");
//! let model = Model::load(&folder, &LoadOptions::default())?;
//! let mut runner = model.runner()?;
//! let (start, fork) = (runner.alloc_slot()?, runner.alloc_slot()?);
//! let last = LogitsWanted::Last;
//!
//! // Three tokens, the state left where it was found.
//! runner.forward(&[PassRow { slot: start, tokens: &[1, 2, 3], logits: last, keep: &[start] }])?;
//! assert_eq!(runner.logits().len(), model.config().vocab_size);
//!
//! // Two continuations of it in one pass: each gives what it would give alone, bit for bit.
//! runner.copy_slot(start, fork)?;
//! runner.forward(&[
//!     PassRow { slot: start, tokens: &[4], logits: last, keep: &[start] },
//!     PassRow { slot: fork, tokens: &[5, 6], logits: last, keep: &[fork] },
//! ])?;
//! # Ok(())
//! # }
//! ```
//!
//! # Text
//!
//! ```
//! # fn main() -> spikelet::Result<()> {
//! use std::path::Path;
//!
//! use spikelet::decode::{Decoder, Event, Events, Request, StopRules};
//! use spikelet::model::{LoadOptions, Model};
//! use spikelet::tokenizer::{Tokenizer, load_tokenizer};
//!
//! // A folder without tokenizer files whose config names the built-in one.
//! let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/spikegpt-tiny");
//! let model = Model::load(&golden, &LoadOptions::default())?;
//! let mut config = model.config().clone();
//! config.tokenizer_class = Some("bytes".into());
//! let tokenizer = load_tokenizer(&golden, Some(&config))?;
//!
//! let mut decoder = Decoder::new(model.runner()?, tokenizer.clone());
//! let stop = StopRules { max_new_tokens: 8, ..StopRules::default() };
//! decoder.add(&Request { prompt: tokenizer.encode("A fox")?, stop, ..Request::default() })?;
//! let (mut events, mut tokens) = (Events::new(), 0);
//! while !decoder.is_idle() {
//!     decoder.step(&mut events)?;
//!     tokens += events.iter().filter(|event| matches!(event, Event::Token { .. })).count();
//! }
//! assert_eq!(tokens, 8);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod backend;
pub mod config;
pub mod cuda;
pub mod decode;
pub mod draft;
pub mod error;
pub mod generation_config;
pub mod model;
pub mod ops;
pub mod sampler;
pub mod session_file;
pub mod state;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
