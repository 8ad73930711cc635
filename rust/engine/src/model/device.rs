//! Where a model computes: what was asked for, and what was found.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use spikelet_simd::WeightFormat;

use crate::cuda::driver::Device;
use crate::error::{Error, Result};

/// Where a model shall compute. The CPU unless something else is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// What the environment variable `SPIKELET_DEVICE` says; else a GPU if one can be used, else the CPU.
    Auto,
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

const NEEDED: &str = "\"auto\", \"cpu\", \"cuda\" or \"cuda:N\"";

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(number).map(Self::Cuda).ok_or_else(|| Error::Option {
                name: "device".into(),
                value: format!("{text:?}"),
                needed: NEEDED.into(),
            }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// Where a model will compute, and why there.
#[derive(Debug)]
pub(crate) struct Place {
    /// None: on the CPU.
    pub device: Option<Arc<Device>>,
    /// A sentence without a full stop.
    pub reason: String,
    /// Whether the CPU serves as well where the GPU turns out not to.
    pub may_fall_back: bool,
}

impl Place {
    pub fn cpu(reason: impl Into<String>) -> Self {
        Self { device: None, reason: reason.into(), may_fall_back: false }
    }
}

impl DeviceChoice {
    /// Looks for a place where matrices of `format` can be computed with. Nothing is asked of the driver where the CPU is wanted.
    pub(crate) fn find(self, format: WeightFormat) -> Result<Place> {
        let (choice, reason) = match self {
            Self::Auto => self.by_environment()?,
            choice => (choice, "it was asked for".into()),
        };
        match choice {
            Self::Cpu => Ok(Place::cpu(reason)),
            Self::Cuda(_) if format == WeightFormat::Q4 => Err(Error::Unsupported {
                what: format!("dtype \"q4\" on {choice}"),
                reason: "GPUs compute with \"q8\", \"bf16\", \"f16\" or \"f32\"; the CPU does with \"q4\", too".into(),
            }),
            Self::Cuda(ordinal) => Ok(Place { device: Some(Device::open(ordinal)?), reason, may_fall_back: false }),
            Self::Auto if format == WeightFormat::Q4 => Ok(Place::cpu("dtype \"q4\" computes on the CPU only")),
            Self::Auto => Ok(match Device::open(0) {
                Ok(device) => Place {
                    reason: format!("{} can be used", device.name()),
                    device: Some(device),
                    may_fall_back: true,
                },
                Err(error) => Place::cpu(why_not(&error)),
            }),
        }
    }

    /// Where a model of floats would be loaded, and why there.
    ///
    /// # Errors
    /// As those of a load: [`Error::Device`] for a GPU that cannot be used, [`Error::Option`] for a `SPIKELET_DEVICE` that is no device.
    pub fn resolve(self) -> Result<(String, String)> {
        let Place { device, reason, .. } = self.find(WeightFormat::F32)?;
        let choice = device.map_or(Self::Cpu, |device| Self::Cuda(device.ordinal()));
        Ok((choice.to_string(), reason))
    }

    /// What `SPIKELET_DEVICE` makes of "auto", and why.
    fn by_environment(self) -> Result<(Self, String)> {
        match std::env::var("SPIKELET_DEVICE") {
            Ok(text) if !text.is_empty() => match text.parse() {
                Ok(choice) => Ok((choice, "SPIKELET_DEVICE asks for it".into())),
                Err(_) => Err(Error::Option {
                    name: "SPIKELET_DEVICE".into(),
                    value: format!("{text:?}"),
                    needed: NEEDED.into(),
                }),
            },
            _ => Ok((self, String::new())),
        }
    }
}

/// Why the CPU has to serve.
pub(crate) fn why_not(error: &Error) -> String {
    match error {
        Error::Device { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_names() {
        let named = |text: &str| text.parse::<DeviceChoice>();
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:12", DeviceChoice::Cuda(12)),
        ] {
            assert_eq!(named(text).expect(text), choice);
        }
        assert_eq!(["auto", "cpu", "cuda"].map(|text| named(text).expect(text).to_string()), ["auto", "cpu", "cuda:0"]);
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x", "cuda:99999999999999999999", "CUDA", " cpu"] {
            let error = named(text).expect_err(text).to_string();
            assert!(error.contains("device") && error.contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn four_bits_are_refused_on_a_gpu_before_one_is_looked_for() {
        let error = DeviceChoice::Cuda(0).find(WeightFormat::Q4).expect_err("refused").to_string();
        for part in ["q4", "cuda:0", "q8", "bf16"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_cpu_needs_no_reason_but_the_wish() {
        let place = DeviceChoice::Cpu.find(WeightFormat::F32).expect("the CPU is there");
        assert!(place.device.is_none() && !place.reason.is_empty());
    }
}
