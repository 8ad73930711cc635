//! A conversion that is cancelled, killed or out of disk leaves the model that was there before.

mod files;

use std::ops::ControlFlow;
use std::path::Path;

use files::golden;
use spikelet::config::ModelType;
use spikelet::weights::{Checkpoint, Dtype, convert};

fn quietly(_: u64, _: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The names in a folder, hidden ones too.
fn names_in(folder: &Path) -> Vec<String> {
    let name = |e: std::io::Result<std::fs::DirEntry>| e.expect("an entry").file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = std::fs::read_dir(folder).expect("a folder").map(name).collect();
    names.sort();
    names
}

/// A folder that holds a converted model, and that model's bytes.
fn occupied() -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().expect("a folder");
    let old = Checkpoint::open(&golden("spikegpt-tiny")).expect("golden");
    convert(&old, folder.path(), None, &mut quietly).expect("converted");
    let bytes = std::fs::read(folder.path().join("model.safetensors")).expect("written");
    (folder, bytes)
}

fn assert_untouched(folder: &Path, bytes: &[u8]) {
    assert_eq!(names_in(folder), ["config.json", "model.safetensors"]);
    assert!(std::fs::read(folder.join("model.safetensors")).expect("there") == bytes, "the old file has changed");
    assert_eq!(Checkpoint::open(folder).expect("still a model").config().model_type, ModelType::SpikeGpt);
}

#[test]
fn an_interrupted_conversion_leaves_the_old_model() {
    let (folder, bytes) = occupied();
    let new = Checkpoint::open(&golden("rwkv4-tiny")).expect("golden");
    for stop_at in [0, 1, 40] {
        let mut calls = 0;
        let mut stop = |_: u64, _: u64| {
            calls += 1;
            if calls > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let message = convert(&new, folder.path(), Some(Dtype::Bf16), &mut stop).expect_err("stopped").to_string();
        assert_eq!(message, "cancelled");
        assert_untouched(folder.path(), &bytes);
    }
    let fresh = folder.path().join("fresh");
    convert(&new, &fresh, None, &mut |_, _| ControlFlow::Break(())).expect_err("stopped");
    assert!(!fresh.exists());
}

/// The folder that a child process works on.
const FOLDER: &str = "SPIKELET_TEST_FOLDER";

#[test]
#[ignore = "run in a child process by the test below"]
fn child_converts_without_room() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let new = Checkpoint::open(&golden("rwkv4-tiny")).expect("golden");
    let error = convert(&new, Path::new(&folder), None, &mut quietly).expect_err("no room");
    println!("refused: {error}");
}

#[test]
#[cfg(unix)]
fn a_full_disk_leaves_the_old_model() {
    let (folder, bytes) = occupied();
    // The new file must not grow beyond a few dozen kilobytes of the megabyte it needs.
    let output = files::run_limited("-f 64", "child_converts_without_room", &[(FOLDER, folder.path())])
        .expect("the child passes");
    let expected = format!("refused: {}: File too large", folder.path().join("model.safetensors").display());
    assert!(output.contains(&expected), "{output}");
    assert_untouched(folder.path(), &bytes);
}

#[test]
#[ignore = "run in a child process by the test below"]
fn child_dies_while_converting() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let new = Checkpoint::open(&golden("rwkv4-tiny")).expect("golden");
    let mut die = |done, _| {
        if done > 500_000 { std::process::exit(3) } else { ControlFlow::Continue(()) }
    };
    let _ = convert(&new, Path::new(&folder), None, &mut die);
}

#[test]
#[cfg(unix)]
fn a_killed_conversion_leaves_the_old_model() {
    let (folder, bytes) = occupied();
    files::run_limited("-f unlimited", "child_dies_while_converting", &[(FOLDER, folder.path())])
        .expect_err("the child dies");
    let names = names_in(folder.path());
    assert!(names.iter().any(|n| n.ends_with(".part")), "it died too early or too late: {names:?}");
    assert!(std::fs::read(folder.path().join("model.safetensors")).expect("there") == bytes);
    assert_eq!(Checkpoint::open(folder.path()).expect("still a model").config().model_type, ModelType::SpikeGpt);
}
