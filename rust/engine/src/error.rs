//! The one error type of the engine.
//!
//! Every variant carries its data, and its message says which file, tensor, option or value is meant, what was found and what is needed.

use std::io;
use std::path::{Path, PathBuf};

/// What every fallible function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not what its name or its first bytes promise.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found and what is needed.
        reason: String,
    },
    /// One tensor of a file is missing, misshapen or holds unusable values.
    #[error("{}: tensor `{tensor}`: {reason}", path.display())]
    Tensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, by the name the original authors use.
        tensor: String,
        /// What was found and what is needed.
        reason: String,
    },
    /// A model's configuration is unreadable, contradicts its tensors or asks for something unknown.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The configuration file, or the model it should belong to.
        path: PathBuf,
        /// What was found and what is needed.
        reason: String,
    },
    /// A tokenizer is missing, unreadable or does not fit the model.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file or folder.
        path: PathBuf,
        /// What was found and what is needed.
        reason: String,
    },
    /// A model has no tokenizer beside it. Token ids work all the same.
    #[error("{}: {reason}", path.display())]
    NoTokenizer {
        /// The folder that was searched.
        path: PathBuf,
        /// What was looked for, and what would help.
        reason: String,
    },
    /// Something that this version does not do.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not, or what to do instead.
        reason: String,
    },
    /// An option was given a value that it cannot take, or is needed and was not given.
    #[error("option `{name}`: found {value}, needed {needed}")]
    Option {
        /// The option's name.
        name: String,
        /// The value found.
        value: String,
        /// The values it takes.
        needed: String,
    },
    /// A token id that the model does not have.
    #[error("token id {id} is outside the model's vocabulary of {vocab_size}")]
    TokenId {
        /// The id.
        id: u64,
        /// How many ids there are.
        vocab_size: usize,
    },
    /// A saved or given state does not belong to the model.
    #[error("state: {reason}")]
    State {
        /// What was found and what is needed.
        reason: String,
    },
    /// Logits from which no token can be drawn, or that are not numbers.
    #[error("logits: {reason}")]
    Logits {
        /// Which ones, and what they are.
        reason: String,
    },
    /// A GPU that cannot be used, or no longer.
    #[error("device {device}: {reason}")]
    Device {
        /// Which one, such as `cuda:0`.
        device: String,
        /// What is missing, or what its driver says.
        reason: String,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// For `map_err`: an operating system error with the file it is about.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
        move |source| Error::Io { path: path.to_owned(), source }
    }

    /// A file that is not what it promises.
    pub(crate) fn format(path: &Path, reason: impl Into<String>) -> Error {
        Error::Format { path: path.to_owned(), reason: reason.into() }
    }

    /// A tensor that cannot be used.
    pub(crate) fn tensor(path: &Path, tensor: &str, reason: impl Into<String>) -> Error {
        Error::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), reason: reason.into() }
    }

    /// A configuration that cannot be used.
    pub(crate) fn config(path: &Path, reason: impl Into<String>) -> Error {
        Error::Config { path: path.to_owned(), reason: reason.into() }
    }
}
