//! Long work tells a Python function how far it is.

use std::ops::ControlFlow;

use pyo3::call::PyCallArgs;
use pyo3::prelude::*;

/// A `progress` argument, and what it raised: that stops the work. Without one, Ctrl-C still does.
pub struct Listener {
    progress: Option<Py<PyAny>>,
    raised: Option<PyErr>,
}

impl Listener {
    pub fn new(progress: Option<Py<PyAny>>) -> Self {
        Self { progress, raised: None }
    }

    /// Calls the function; `Break` if it raised.
    pub fn tell(&mut self, args: impl for<'py> PyCallArgs<'py>) -> ControlFlow<()> {
        let told = Python::attach(|py| match &self.progress {
            Some(progress) => progress.call1(py, args).map(drop),
            None => py.check_signals(),
        });
        match told {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.raised = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// What came of the work: what the function raised goes first.
    pub fn outcome<T>(self, result: PyResult<T>) -> PyResult<T> {
        self.raised.map_or(result, Err)
    }
}
