//! Counts and times of a generation.

use std::fmt::Write;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use spikelet::decode::{RowStats, SpeculationStats};
use spikelet::draft::Source;

/// Counts and times of a generation.
///
/// Times are those of the passes, not of the caller's work between them. A *round* is a pass past the prompt: it verifies a
/// draft of some guesses, or has none. In a batch, times hold what was done for other rows in the same passes.
#[pyclass(frozen, module = "spikelet")]
pub struct GenerationStats {
    pub stats: RowStats,
    pub seed: u64,
}

impl GenerationStats {
    fn speculation(&self) -> &SpeculationStats {
        &self.stats.speculation
    }
}

#[pymethods]
impl GenerationStats {
    /// Tokens read before the first generated one.
    #[getter]
    fn num_prompt_tokens(&self) -> usize {
        self.stats.num_prompt_tokens
    }

    /// Tokens generated, with the one that stopped it.
    #[getter]
    fn num_generated_tokens(&self) -> usize {
        self.stats.num_generated_tokens
    }

    /// Seconds to the first generated token.
    #[getter]
    fn prefill_seconds(&self) -> f64 {
        self.stats.prefill_seconds
    }

    /// Seconds from the first generated token to the last.
    #[getter]
    fn decode_seconds(&self) -> f64 {
        self.stats.decode_seconds
    }

    /// Tokens read per second; 0 if nothing was timed.
    #[getter]
    fn prefill_tokens_per_second(&self) -> f64 {
        self.stats.prefill_tokens_per_second()
    }

    /// Tokens generated per second after the first; 0 if there was no second.
    #[getter]
    fn decode_tokens_per_second(&self) -> f64 {
        self.stats.decode_tokens_per_second()
    }

    /// The seed of the random numbers.
    #[getter]
    fn seed(&self) -> u64 {
        self.seed
    }

    /// Rounds, those without a draft included.
    #[getter]
    fn num_rounds(&self) -> usize {
        self.speculation().num_rounds
    }

    /// Rounds with a draft.
    #[getter]
    fn num_drafts(&self) -> usize {
        self.speculation().num_drafts
    }

    /// Tokens guessed.
    #[getter]
    fn num_draft_tokens(&self) -> usize {
        self.speculation().num_draft_tokens
    }

    /// Guesses accepted.
    #[getter]
    fn num_accepted_tokens(&self) -> usize {
        self.speculation().num_accepted_tokens
    }

    /// Accepted guesses per guess; 0 without drafts.
    #[getter]
    fn acceptance_rate(&self) -> f64 {
        self.speculation().acceptance_rate()
    }

    /// Of the drafts with a guess at position 0, 1, and so on: the share in which it was accepted.
    #[getter]
    fn acceptance_rate_per_position(&self) -> Vec<f64> {
        self.speculation().acceptance_rate_per_position().collect()
    }

    /// Tokens that a draft's round brought on average, with the one that the model adds; 0 without drafts.
    #[getter]
    fn mean_acceptance_length(&self) -> f64 {
        self.speculation().mean_acceptance_length()
    }

    /// Accepted guesses per draft; 0 without drafts.
    #[getter]
    fn mean_accepted(&self) -> f64 {
        self.speculation().mean_accepted()
    }

    /// Drafts of which 0, 1, .. 16 guesses were accepted.
    #[getter]
    fn accepted_histogram(&self) -> Vec<usize> {
        self.speculation().accepted_lengths.to_vec()
    }

    /// `num_draft_tokens` and `num_accepted_tokens` of every source that guessed, by its name.
    #[getter]
    fn by_source<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let sources = PyDict::new(py);
        for source in Source::ALL {
            let (drafted, accepted) = self.speculation().by_source[source as usize];
            if drafted > 0 {
                let counts = PyDict::new(py);
                counts.set_item("num_draft_tokens", drafted)?;
                counts.set_item("num_accepted_tokens", accepted)?;
                sources.set_item(source.name(), counts)?;
            }
        }
        Ok(sources)
    }

    /// Share of the rounds without a draft.
    #[getter]
    fn chose_base(&self) -> f64 {
        self.speculation().chose_base()
    }

    /// Seconds spent guessing.
    #[getter]
    fn time_draft(&self) -> f64 {
        self.speculation().draft_seconds
    }

    /// Seconds of the passes past the prompt.
    #[getter]
    fn time_verify(&self) -> f64 {
        self.speculation().verify_seconds
    }

    /// Seconds spent drawing and accepting.
    #[getter]
    fn time_accept(&self) -> f64 {
        self.speculation().accept_seconds
    }

    /// Seconds that the rounds should have taken by the costs measured beforehand; 0 where none were.
    #[getter]
    fn predicted_seconds(&self) -> f64 {
        self.speculation().predicted_seconds
    }

    /// Seconds that the same tokens should have taken one by one.
    #[getter]
    fn predicted_base_seconds(&self) -> f64 {
        self.speculation().predicted_base_seconds
    }

    fn __repr__(&self) -> String {
        let RowStats { num_prompt_tokens, num_generated_tokens, prefill_seconds, decode_seconds, speculation } =
            &self.stats;
        let mut text = format!(
            "GenerationStats(num_prompt_tokens={num_prompt_tokens}, num_generated_tokens={num_generated_tokens}, \
             prefill_seconds={prefill_seconds:.4}, decode_seconds={decode_seconds:.4}, "
        );
        if speculation.num_drafts > 0 {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "acceptance_rate={:.3}, mean_acceptance_length={:.2}, ",
                speculation.acceptance_rate(),
                speculation.mean_acceptance_length()
            );
        }
        let _ = write!(text, "seed={})", self.seed);
        text
    }
}
