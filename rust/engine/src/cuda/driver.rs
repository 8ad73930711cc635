//! The CUDA driver behind safe calls: a card, its memory, its kernels.
//!
//! Nothing of CUDA is needed but the driver, which is looked for when a device is asked for. The kernels come as PTX inside this crate;
//! `kernels/build_ptx.py` makes it.
//!
//! All work of a device goes to one stream, in the order in which it is asked for. Whatever goes wrong is
//! [`Error::Device`](crate::Error::Device) with the driver's words, and never a panic: a device may be lost in the middle of
//! anything.
//!
//! The `unsafe` of this crate's GPU side is in this module, and in the callers of [`Device::launch`].
#![allow(unsafe_code)]

mod api;
mod buffer;
mod context;
mod launch;

use std::ffi::CStr;
use std::sync::Arc;

pub use buffer::Buffer;
pub use launch::{Graph, Kernel};

use api::Api;
use buffer::Staging;
use context::{Context, failure};

use crate::error::Result;

/// The oldest driver that reads our PTX, as it numbers itself: CUDA 12.0, which came with 525.
const OLDEST_DRIVER: u32 = 12_000;
/// The oldest cards whose kernels there are.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);

const PTX_80: &str = concat!(include_str!("../../../../kernels/ptx/generate.compute_80.ptx"), "\0");
const PTX_90: &str = concat!(include_str!("../../../../kernels/ptx/generate.compute_90.ptx"), "\0");

/// A card, ready to compute.
pub struct Device {
    context: Arc<Context>,
    staging: Staging,
    card: Card,
    driver_version: u32,
}

/// What a card says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of shared memory that a block can have, if it asks.
    pub shared_memory_per_block: u32,
}

impl Device {
    /// How many cards this process sees; 0 without a driver.
    pub fn count() -> usize {
        driver().and_then(|(api, _)| count(api)).unwrap_or(0)
    }

    /// Makes a card ready. The first time after an installation its driver compiles the kernels, which may take some seconds.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): there is no driver, or one that is too old; no such card is to be seen, or it is too
    /// old; the driver refuses the kernels, or its memory is used up.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let refuse = |reason| failure(ordinal, reason);
        let (api, driver_version) = driver().map_err(refuse)?;
        let (device, card) = card(api, ordinal).map_err(refuse)?;
        if card.capability < OLDEST_CAPABILITY {
            let (major, minor) = card.capability;
            return Err(refuse(format!(
                "{} has compute capability {major}.{minor}; 8.0 or later is needed",
                card.name
            )));
        }
        let mut context = Context::new(api, ordinal, device)?;
        context.load(if card.capability >= (9, 0) { PTX_90 } else { PTX_80 })?;
        let context = Arc::new(context);
        Ok(Arc::new(Self { staging: Staging::new(&context), context, card, driver_version }))
    }

    /// Which of the cards it is.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal
    }

    /// What the card says of itself.
    pub fn card(&self) -> &Card {
        &self.card
    }

    /// Such as `NVIDIA H200`.
    pub fn name(&self) -> &str {
        &self.card.name
    }

    /// Compute capability, major and minor.
    pub fn capability(&self) -> (u32, u32) {
        self.card.capability
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.card.multiprocessors
    }

    /// Bytes of shared memory that a block can have, if it asks.
    pub fn shared_memory_per_block(&self) -> u32 {
        self.card.shared_memory_per_block
    }

    /// The newest CUDA that the driver knows, as it numbers itself: 12080 for 12.8.
    pub fn driver_version(&self) -> u32 {
        self.driver_version
    }

    /// Waits until all is done that was asked for.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device): something of it went wrong; the device is lost.
    pub fn synchronize(&self) -> Result<()> {
        self.context.synchronize()
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("ordinal", &self.ordinal()).field("card", &self.card).finish_non_exhaustive()
    }
}

/// The newest CUDA that the driver knows, as it numbers itself. None: there is no driver.
pub(super) fn version() -> Option<u32> {
    version_of(api::api().ok()?).ok()
}

/// What the cards that this process sees say of themselves, or why there are none.
pub(super) fn cards() -> std::result::Result<Vec<std::result::Result<Card, String>>, String> {
    let (api, _) = driver()?;
    let cards: Vec<_> = (0..count(api)?).map(|ordinal| card(api, ordinal).map(|(_, card)| card)).collect();
    if cards.is_empty() { Err(NO_CARD.into()) } else { Ok(cards) }
}

fn version_of(api: &Api) -> std::result::Result<u32, String> {
    let mut version = 0;
    // SAFETY: `version` is written. This call alone may come before cuInit.
    match unsafe { (api.cuDriverGetVersion)(&raw mut version) } {
        0 => Ok(version.unsigned_abs()),
        code => Err(format!("the NVIDIA driver does not tell its version: {}", api.words(code))),
    }
}

/// A driver that is new enough and its version, or why there is none.
fn driver() -> std::result::Result<(&'static Api, u32), String> {
    let api = api::api()?;
    let version = version_of(api)?;
    if version < OLDEST_DRIVER {
        return Err(format!(
            "the NVIDIA driver is too old: it is for CUDA {}; 12.0 (driver 525) or later is needed",
            cuda_version(version)
        ));
    }
    // SAFETY: 0 is the only flag there is.
    match unsafe { (api.cuInit)(0) } {
        0 => Ok((api, version)),
        api::NO_DEVICE => Err(NO_CARD.into()),
        api::STUB_LIBRARY => Err("there is no NVIDIA driver: the libcuda found is the stub of a CUDA toolkit".into()),
        code => Err(format!("the NVIDIA driver does not start: {}", api.words(code))),
    }
}

const NO_CARD: &str = "the NVIDIA driver shows no GPU to this process; CUDA_VISIBLE_DEVICES may hide it";

fn count(api: &Api) -> std::result::Result<usize, String> {
    let mut count = 0;
    // SAFETY: `count` is written.
    match unsafe { (api.cuDeviceGetCount)(&raw mut count) } {
        0 => Ok(count.unsigned_abs() as usize),
        code => Err(format!("the NVIDIA driver does not count its GPUs: {}", api.words(code))),
    }
}

/// A card's handle, and what it says of itself.
fn card(api: &Api, ordinal: usize) -> std::result::Result<(i32, Card), String> {
    let there = count(api)?;
    if there == 0 {
        return Err(NO_CARD.into());
    }
    if ordinal >= there {
        let cards =
            if there == 1 { "1 GPU, cuda:0".into() } else { format!("{there} GPUs, cuda:0 to cuda:{}", there - 1) };
        return Err(format!("there is no such GPU; this process sees {cards}"));
    }
    let failed = |code| format!("it does not describe itself: {}", api.words(code));
    let mut device = 0;
    // SAFETY: `device` is written.
    match unsafe { (api.cuDeviceGet)(&raw mut device, ordinal as i32) } {
        0 => {}
        code => return Err(failed(code)),
    }
    let mut name = [0_u8; 256];
    // SAFETY: the driver writes so many bytes at most, the last of them NUL.
    match unsafe { (api.cuDeviceGetName)(name.as_mut_ptr().cast(), name.len() as i32, device) } {
        0 => {}
        code => return Err(failed(code)),
    }
    let attribute = |number| {
        let mut value = 0;
        // SAFETY: `value` is written.
        match unsafe { (api.cuDeviceGetAttribute)(&raw mut value, number, device) } {
            0 => Ok(value.unsigned_abs()),
            code => Err(failed(code)),
        }
    };
    let name = CStr::from_bytes_until_nul(&name).map_or_else(|_| "a GPU".into(), |name| name.to_string_lossy().into());
    let [major, minor] = api::CAPABILITY;
    let card = Card {
        name,
        capability: (attribute(major)?, attribute(minor)?),
        multiprocessors: attribute(api::MULTIPROCESSORS)?,
        shared_memory_per_block: attribute(api::SHARED_PER_BLOCK)?,
    };
    Ok((device, card))
}

/// A version as people write it: 12080 is 12.8.
pub fn cuda_version(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_well() {
        assert_eq!([11_040, 12_000, 12_080, 13_000].map(cuda_version), ["11.4", "12.0", "12.8", "13.0"]);
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_in_words() {
        // With and without a driver: no machine has so many.
        let error = Device::open(1 << 20).expect_err("refused").to_string();
        assert!(error.starts_with("device cuda:1048576: "), "{error}");
        if Device::count() == 0 {
            assert!(error.contains("driver"), "{error}");
        }
    }

    #[test]
    fn kernels_come_with_the_crate() {
        for (ptx, target) in [(PTX_80, "sm_80"), (PTX_90, "sm_90")] {
            assert!(ptx.contains(&format!("\n.target {target}")), "{target}");
            assert!(ptx.contains("\n.version 8.0\n"), "what the oldest driver reads");
            assert!(ptx.contains(".entry spk_fill("), "{target}");
        }
    }
}
