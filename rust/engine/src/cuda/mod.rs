//! Generation on NVIDIA GPUs: the driver, and a model in a card's memory.
//!
//! Nothing here touches the driver before a device is asked for, and without one all else of this crate works the same.

mod draw;
pub mod driver;
mod model;
mod narrow;
mod pass;
mod runner;
mod slots;
mod survey;
mod weights;
mod wide;

pub use draw::DeviceSampler;
pub use model::CudaModel;
pub use narrow::Driver;
pub use runner::CudaRunner;
pub use survey::{CardSurvey, Survey};
