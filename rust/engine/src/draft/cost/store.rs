//! Measured costs on the disk, one small file per machine and model, in the user's cache folder.
//!
//! The cache is a convenience: nothing here fails. What cannot be read, or is not what was asked for, is measured again.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::curve::Curve;
use crate::config::format_name;
use crate::model::Model;

/// Of the files, and of what was measured: entries of another one are not used.
const VERSION: u64 = 1;

/// What, beside the model, costs depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let described = std::fs::read_to_string("/proc/cpuinfo").map(|text| cpu_name(&text)).unwrap_or_default();
        let cpu = if described.is_empty() {
            format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)
        } else {
            described
        };
        Self { cpu, cores: std::thread::available_parallelism().map_or(1, usize::from) }
    }

    /// A text that is the same for equal costs: of machine, engine and model.
    pub(super) fn key(&self, model: &Model) -> String {
        let Self { cpu, cores } = self;
        let (level, threads) = (model.cpu().level().name(), model.cpu().threads());
        let (config, format) = (model.config().to_json(), format_name(model.format()));
        let engine = env!("CARGO_PKG_VERSION");
        let card = model.cuda().map_or_else(String::new, |cuda| {
            let (device, (major, minor)) = (cuda.device(), cuda.device().capability());
            let (name, driver) = (device.name(), device.driver_version());
            format!("\n{name}, capability {major}.{minor}, driver {driver}")
        });
        format!("spikelet {engine}\n{cpu}, {cores} cores\n{level}, {threads} threads{card}\n{format}\n{config}")
    }
}

/// The lines of Linux' description that name a processor. Guests often see less than its generation, so numbers of family and
/// model, too.
fn cpu_name(cpuinfo: &str) -> String {
    const NAMES: [&str; 6] = ["model name", "cpu family", "model", "CPU implementer", "CPU part", "uarch"];
    let value = |name: &&str| {
        let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        lines.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| key == name).map(|(_, value)| value)
    };
    NAMES.iter().filter_map(value).collect::<Vec<_>>().join(" ")
}

/// The folder of the files: `costs` in `SPIKELET_CACHE`, else in `spikelet` in the user's cache folder.
fn folder() -> Option<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = if cfg!(windows) {
        given("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        given("HOME").map(|home| home.join("Library/Caches"))
    } else {
        given("XDG_CACHE_HOME").or_else(|| given("HOME").map(|home| home.join(".cache")))
    };
    let cache = given("SPIKELET_CACHE").or_else(|| base.map(|base| base.join("spikelet")));
    cache.map(|cache| cache.join("costs"))
}

/// Where the entry of a key lies.
fn file(folder: &Path, key: &str) -> PathBuf {
    let digest = Sha256::digest(key.as_bytes());
    let name: String = digest[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    folder.join(name + ".json")
}

/// The curve of that name in the entry of `key`.
pub(super) fn load(key: &str, name: &str) -> Option<Curve> {
    load_from(&folder()?, key, name)
}

/// Writes the entry of `key`.
pub(super) fn save(key: &str, curves: &[(&str, &Curve)]) {
    // A cache that cannot be written is no error: the next process measures again.
    let _ = folder().map(|folder| save_to(&folder, key, curves));
}

fn load_from(folder: &Path, key: &str, name: &str) -> Option<Curve> {
    let entry: Value = serde_json::from_slice(&std::fs::read(file(folder, key)).ok()?).ok()?;
    if entry.get("version")?.as_u64()? != VERSION || entry.get("key")?.as_str()? != key {
        return None;
    }
    curve(entry.get("curves")?.get(name)?)
}

/// A curve from pairs of a number and its microseconds, if it is one that could have been measured.
fn curve(value: &Value) -> Option<Curve> {
    let mut points = Vec::new();
    for pair in value.as_array()? {
        let [n, microseconds] = pair.as_array()?.as_slice() else { return None };
        let (n, seconds) = (usize::try_from(n.as_u64()?).ok()?, microseconds.as_f64()? * 1e-6);
        let ascends = points.last().map_or(n > 0, |&(before, _)| before < n);
        if !ascends || n > 1 << 16 || !(0.0..1e6).contains(&seconds) {
            return None;
        }
        points.push((n, seconds));
    }
    (!points.is_empty()).then(|| Curve::through(&points))
}

fn save_to(folder: &Path, key: &str, curves: &[(&str, &Curve)]) -> std::io::Result<()> {
    let pairs = |curve: &Curve| curve.points().iter().map(|(n, seconds)| json!([n, seconds * 1e6])).collect();
    let curves: Map<String, Value> =
        curves.iter().map(|(name, curve)| ((*name).to_owned(), Value::Array(pairs(curve)))).collect();
    let entry = json!({ "version": VERSION, "key": key, "unit": "microseconds", "curves": curves });
    std::fs::create_dir_all(folder)?;
    let mut unfinished = tempfile::Builder::new().prefix(".costs-").suffix(".part").tempfile_in(folder)?;
    unfinished.write_all(entry.to_string().as_bytes())?;
    unfinished.persist(file(folder, key))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Curve {
        Curve::through(&[(1, 1e-3), (2, 1.25e-3), (8, 2e-3)])
    }

    #[test]
    fn what_is_saved_is_found_again_under_its_key_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let inside = folder.path().join("made/on/the/way");
        save_to(&inside, "a key", &[("first", &some()), ("next", &Curve::through(&[(1, 0.5)]))]).expect("saved");
        let close = |a: &Curve, b: &Curve| a.points().iter().zip(b.points()).all(|(a, b)| (a.1 - b.1).abs() < 1e-12);
        assert!(close(&load_from(&inside, "a key", "first").expect("found"), &some()));
        assert!(load_from(&inside, "a key", "pass").is_none());
        assert!(load_from(&inside, "another key", "first").is_none());
        // Even if it lay in the same file.
        std::fs::rename(file(&inside, "a key"), file(&inside, "another key")).expect("renamed");
        assert!(load_from(&inside, "another key", "first").is_none());
        assert_eq!(std::fs::read_dir(&inside).expect("a folder").count(), 1, "no temporary file stays");
    }

    #[test]
    fn broken_entries_are_no_entries() {
        let folder = tempfile::tempdir().expect("a folder");
        let entry =
            |curves: Value, version: u64| json!({ "version": version, "key": "k", "curves": { "pass": curves } });
        let good = entry(json!([[1, 1000.0], [2, 1200]]), VERSION);
        let whole = good.to_string();
        let mut broken = vec![String::new(), "{".into(), "[]".into(), "null".into(), "\u{0}".into()];
        broken.extend((1..whole.len()).filter(|&end| whole.is_char_boundary(end)).map(|end| whole[..end].to_owned()));
        broken.push(entry(json!([[1, 1000.0]]), VERSION + 1).to_string());
        broken.push(entry(json!([[1, 1000.0]]), VERSION - 1).to_string());
        for curves in [
            json!([]),
            json!([[0, 1.0]]),
            json!([[2, 1.0], [1, 1.0]]),
            json!([[1, 1.0], [1, 1.0]]),
            json!([[1, -1.0]]),
            json!([[1, "1"]]),
            json!([[1]]),
            json!([[1, 1e300]]),
            json!([[1, null]]),
            json!([[1.5, 1.0]]),
            json!([[u64::MAX, 1.0]]),
            json!({ "1": 1.0 }),
        ] {
            broken.push(entry(curves, VERSION).to_string());
        }
        let place = file(folder.path(), "k");
        for text in broken {
            std::fs::write(&place, &text).expect("written");
            assert!(load_from(folder.path(), "k", "pass").is_none(), "{text}");
        }
        std::fs::write(&place, whole).expect("written");
        assert!(load_from(folder.path(), "k", "pass").is_some());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_and_no_panic() {
        let folder = tempfile::tempdir().expect("a folder");
        let blocked = folder.path().join("a file");
        std::fs::write(&blocked, "").expect("written");
        assert!(save_to(&blocked, "k", &[("pass", &some())]).is_err());
        assert!(load_from(&blocked, "k", "pass").is_none());
        let target = file(folder.path(), "k");
        std::fs::create_dir_all(target.join("not empty")).expect("made");
        assert!(save_to(folder.path(), "k", &[("pass", &some())]).is_err());
        assert!(load_from(folder.path(), "k", "pass").is_none());
    }

    #[test]
    fn processors_are_named() {
        let intel = "processor\t: 0\nvendor_id\t: X\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Some CPU\n\nprocessor\t: 1\n";
        assert_eq!(cpu_name(intel), "Some CPU 25 17");
        let arm = "processor : 0\nBogoMIPS : 50.0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n";
        assert_eq!(cpu_name(arm), "0x41 0xd0c");
        assert_eq!(cpu_name(""), "");
        assert!(!Machine::here().cpu.is_empty());
    }
}
