//! Which instruction set to use: detection, the `SPIKELET_ISA` override, and the one place that enters a kernel.

#[cfg(target_arch = "aarch64")]
use crate::neon::Neon;
use crate::{Op, portable::Portable};
#[cfg(target_arch = "x86_64")]
use crate::{avx2::Avx2, avx512::Avx512};
use std::fmt;

/// Environment variable that forces an instruction set.
const VARIABLE: &str = "SPIKELET_ISA";
/// Best first; those of other processors are known too, so that asking for one says what is wrong.
const NAMES: [&str; 6] = ["avx512", "avx2-vnni", "avx2", "neon-dotprod", "neon", "portable"];

/// An instruction set that this processor has been seen to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level(Kind);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(Avx2<true>),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2<false>),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(Neon<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<false>),
    Portable(Portable),
}

/// An instruction set was asked for that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IsaError {
    /// No instruction set of this name exists.
    Unknown {
        /// The name given.
        name: String,
    },
    /// The instruction set exists, but this processor does not have it.
    Unsupported {
        /// The name given.
        name: String,
    },
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = NAMES.join(", ");
        match self {
            IsaError::Unknown { name } => write!(f, "unknown instruction set {name:?}: expected one of {known}"),
            IsaError::Unsupported { name } => {
                write!(f, "this processor does not have the instruction set {name:?}; it has ")?;
                let have: Vec<_> = Level::available().into_iter().map(Level::name).collect();
                f.write_str(&have.join(", "))
            }
        }
    }
}

impl std::error::Error for IsaError {}

impl Level {
    /// The best instruction set of this processor, or the one that the environment variable `SPIKELET_ISA` names.
    ///
    /// # Errors
    /// If the variable holds an unknown name, or one that this processor does not have. An empty value counts as unset.
    pub fn detect() -> Result<Level, IsaError> {
        match std::env::var_os(VARIABLE) {
            Some(name) if !name.is_empty() => Level::by_name(&name.to_string_lossy()),
            _ => Ok(Level::best()),
        }
    }

    /// The best instruction set of this processor.
    pub fn best() -> Level {
        Level::available()[0]
    }

    /// All instruction sets that this processor can run, best first; `portable` is always the last.
    pub fn available() -> Vec<Level> {
        NAMES.iter().filter_map(|name| Level::by_name(name).ok()).collect()
    }

    /// The instruction set of this name: `avx512`, `avx2-vnni` (with dot products of bytes), `avx2`, `neon-dotprod` (likewise), `neon` or
    /// `portable`.
    ///
    /// # Errors
    /// If the name is unknown, or if this processor does not have it.
    pub fn by_name(name: &str) -> Result<Level, IsaError> {
        let kind = match name {
            #[cfg(target_arch = "x86_64")]
            "avx512" => Avx512::new().map(Kind::Avx512),
            #[cfg(target_arch = "x86_64")]
            "avx2-vnni" => Avx2::<true>::new().map(Kind::Avx2Vnni),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Avx2::<false>::new().map(Kind::Avx2),
            #[cfg(target_arch = "aarch64")]
            "neon-dotprod" => Neon::<true>::new().map(Kind::NeonDotprod),
            #[cfg(target_arch = "aarch64")]
            "neon" => Neon::<false>::new().map(Kind::Neon),
            "portable" => Some(Kind::Portable(Portable)),
            other if NAMES.contains(&other) => None,
            _ => {
                return Err(IsaError::Unknown { name: name.to_owned() });
            }
        };
        kind.map(Level).ok_or_else(|| IsaError::Unsupported { name: name.to_owned() })
    }

    /// The name that [`Level::by_name`] takes.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Vnni(_) => "avx2-vnni",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDotprod(_) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
            Kind::Portable(_) => "portable",
        }
    }

    /// Runs `op`, which uses no integer weights, compiled for this instruction set.
    #[inline]
    pub(crate) fn dispatch<O: Op>(self, op: O) -> O::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(isa) => isa.enter(op),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Vnni(isa) => isa.without_vnni().enter(op),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(isa) => isa.enter(op),
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDotprod(isa) => isa.without_dotprod().enter(op),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(isa) => isa.enter(op),
            Kind::Portable(isa) => op.run(isa),
        }
    }

    /// The same for operations with integer weights: apart, so that the others are not compiled twice.
    #[inline]
    pub(crate) fn dispatch_dot<O: Op>(self, op: O) -> O::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(isa) => isa.enter(op),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2Vnni(isa) => isa.enter(op),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(isa) => isa.enter(op),
            #[cfg(target_arch = "aarch64")]
            Kind::NeonDotprod(isa) => isa.enter(op),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(isa) => isa.enter(op),
            Kind::Portable(isa) => op.run(isa),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_portable_is_last() {
        let all = Level::available();
        assert_eq!(all.last().map(|l| l.name()), Some("portable"));
        assert_eq!(all[0], Level::best());
        for level in all {
            assert_eq!(Level::by_name(level.name()), Ok(level));
        }
    }

    #[test]
    fn an_instruction_set_of_another_processor_is_known_and_refused() {
        let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        let error = Level::by_name(foreign).expect_err("not of this processor");
        assert_eq!(error, IsaError::Unsupported { name: foreign.into() });
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_it() {
        let error = Level::by_name("sse9").expect_err("no such instruction set");
        assert_eq!(
            error.to_string(),
            "unknown instruction set \"sse9\": expected one of avx512, avx2-vnni, avx2, neon-dotprod, neon, portable"
        );
        let error = IsaError::Unsupported { name: "avx512".into() }.to_string();
        assert!(error.starts_with("this processor does not have the instruction set \"avx512\"; it has "), "{error}");
        assert!(error.ends_with("portable"), "{error}");
    }
}
