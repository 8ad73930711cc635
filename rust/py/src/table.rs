//! The table of a training text.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use spikelet::draft::{OrderReport, TableFile, TableOptions, build_table};
use spikelet::error::Result;
use spikelet::tokenizer::load_tokenizer;
use spikelet::weights::Checkpoint;

use crate::args::{Int, Prompt, Prompts};
use crate::errors::{bad_option, engine};
use crate::progress::Listener;

/// Writes the table that speculative decoding with `method="table"` guesses from: what mostly followed each run of tokens in
/// some texts, best those that the model was trained on.
///
/// The same texts give the same file. It appears when it is complete; until then what was there stays.
///
/// Args:
///     path: the model's folder; its tokenizer splits the texts.
///     texts: texts, or their token ids.
///     dst: the file to write; None: `prophet/ngram.safetensors` in the model's folder, where generation looks for it.
///     max_bytes: most bytes of the table; None: 4194304. The runs whose guesses come true most often stay.
///     min_order: tokens of the shortest runs; None: 2.
///     max_order: tokens of the longest runs, at most 8; None: 5.
///     progress: is called with how many lengths of runs are done, and how many there are. What it raises stops the work.
///
/// Returns:
///     A dict per length of runs: `order`, `entries`, `bytes`.
///
/// Raises:
///     FormatError, UnsupportedError: `path` is no model that this version reads.
///     TokenizerError: there is a text and the model has no tokenizer.
///     FileError: a file cannot be read or written.
#[pyfunction]
#[pyo3(signature = (path, texts, *, dst=None, max_bytes=None, min_order=None, max_order=None, progress=None))]
#[expect(clippy::too_many_arguments, reason = "the keywords of a Python function")]
pub fn build_ngram_table<'py>(
    py: Python<'py>,
    path: PathBuf,
    texts: Prompts,
    dst: Option<PathBuf>,
    max_bytes: Option<Int>,
    min_order: Option<Int>,
    max_order: Option<Int>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let mut listener = Listener::new(progress);
    let built = engine(py, || {
        let options = options(max_bytes, min_order, max_order)?;
        let checkpoint = Checkpoint::open(&path)?;
        let vocab_size = checkpoint.config().vocab_size;
        let mut tokenizer = None;
        let mut ids = Vec::with_capacity(texts.0.len());
        for text in &texts.0 {
            ids.push(match text {
                Prompt::Ids(ids) => ids.resolve("texts", vocab_size)?,
                Prompt::Text(text) => {
                    let tokenizer = match &tokenizer {
                        Some(tokenizer) => tokenizer,
                        None => tokenizer.insert(load_tokenizer(&path, Some(checkpoint.config()))?),
                    };
                    tokenizer.encode(text)?
                }
            });
        }
        if ids.iter().all(Vec::is_empty) {
            return Err(bad_option("texts", "no tokens", "texts of some thousand tokens"));
        }
        let dst = dst.unwrap_or_else(|| TableFile::path(&checkpoint));
        build_table(&dst, &ids, vocab_size, &options, &mut |done, total| listener.tell((done, total)))
    });
    let report = listener.outcome(built)?;
    let entry = |OrderReport { order, entries, bytes }| {
        let dict = PyDict::new(py);
        dict.set_item("order", order)?;
        dict.set_item("entries", entries)?;
        dict.set_item("bytes", bytes)?;
        Ok(dict)
    };
    report.into_iter().map(entry).collect()
}

fn options(max_bytes: Option<Int>, min_order: Option<Int>, max_order: Option<Int>) -> Result<TableOptions> {
    let mut options = TableOptions::default();
    if let Some(bytes) = max_bytes {
        options.max_bytes = bytes.to("max_bytes", "a number of bytes")?;
    }
    if let Some(order) = min_order {
        options.min_order = order.to("min_order", "a number of tokens, at least 1")?;
    }
    if let Some(order) = max_order {
        options.max_order = order.to("max_order", "a number of tokens, 1 to 8")?;
    }
    Ok(options)
}
