//! What there is of GPUs, for people who wonder why one is not used.

use super::driver::{self, Card, Device};
use crate::error::Error;

/// What the driver shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// The newest CUDA that the driver knows, such as `12.8`. None: there is no driver.
    pub driver: Option<String>,
    /// Why no card can be used, where that is the driver's doing.
    pub problem: Option<String>,
    /// The cards that this process sees.
    pub cards: Vec<CardSurvey>,
}

/// One card, and whether it can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct CardSurvey {
    /// Such as `cuda:0`.
    pub device: String,
    /// What it says of itself, if it does.
    pub card: Option<Card>,
    /// Bytes that are free, and bytes that there are.
    pub memory: Option<(usize, usize)>,
    /// Why it cannot be used; None: the kernels are loaded and ready.
    pub problem: Option<String>,
}

impl Survey {
    /// Asks the driver, and tries every card. Never fails: what is wrong is part of the answer.
    pub fn take() -> Self {
        let driver = driver::version().map(driver::cuda_version);
        let cards = driver::cards();
        let problem = cards.as_ref().err().cloned();
        let cards = cards.unwrap_or_default().into_iter().enumerate().map(|(ordinal, card)| examine(ordinal, card));
        Self { driver, problem, cards: cards.collect() }
    }
}

fn examine(ordinal: usize, card: Result<Card, String>) -> CardSurvey {
    let (memory, problem) = match Device::open(ordinal) {
        Ok(device) => (device.memory().ok(), None),
        Err(Error::Device { reason, .. }) => (None, Some(reason)),
        Err(error) => (None, Some(error.to_string())),
    };
    CardSurvey { device: format!("cuda:{ordinal}"), card: card.ok(), memory, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_makes_sense_with_and_without_a_driver() {
        let survey = Survey::take();
        assert_eq!(survey.cards.is_empty(), survey.problem.is_some(), "{survey:?}");
        assert!(survey.driver.is_some() || survey.problem.as_ref().is_some_and(|problem| problem.contains("driver")));
        assert!(survey.cards.iter().all(|card| card.problem.is_some() || card.memory.is_some()), "{survey:?}");
    }
}
