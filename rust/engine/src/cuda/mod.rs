//! Generation on NVIDIA GPUs: the driver, and a model in a card's memory.
//!
//! Nothing here touches the driver before a device is asked for, and without one all else of this crate works the same.

pub mod driver;
