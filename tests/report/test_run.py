"""What is told of a run: where it lies, how it stands, what its files say."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import spikelet
from spikelet import NotFoundError, OptionError
from spikelet.report import collect
from spikelet.report.run import find_folder, gather, layers, read_files, samples

from .fixtures import LM_COLUMNS, lm_rows, make_run, write_csv


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SPIKELET_HOME", str(home))
    for name in ("DARWIN_KIT_HOME", "DSPIKE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


def state(folder: Path) -> str:
    return str(gather(read_files(str(folder)))["state"])


def test_a_run_is_found_by_name_and_by_path(own_home: Path) -> None:
    folder = make_run(own_home / "runs" / "fox", model=False)
    assert find_folder("fox") == folder
    assert find_folder(str(folder)) == folder
    assert find_folder(str(folder / "training")) == folder.resolve()


def test_a_run_that_is_not_there_is_named_with_those_that_are(own_home: Path) -> None:
    make_run(own_home / "runs" / "fox", model=False)
    with pytest.raises(NotFoundError, match=r"'owl' \(known: fox; searched"):
        find_folder("owl")
    with pytest.raises(NotFoundError, match=r"run nowhere/owl: there is no such folder"):
        find_folder("nowhere/owl")


def test_a_folder_without_anything_to_show_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match=r"empty: nothing to report: .*train_log.csv"):
        read_files(str(tmp_path / "empty"))
    assert len(read_files(str(tmp_path / "empty"), may_be_empty=True).log) == 0


def test_runs_given_twice_or_not_at_all_are_errors(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "fox", model=False)
    with pytest.raises(OptionError, match=r"`runs`: .*training is given twice"):
        collect([str(folder), str(folder / "training")])
    with pytest.raises(OptionError, match="at least one"):
        collect([])
    with pytest.raises(OptionError, match="`text`: it is empty"):
        collect([str(folder)], text=" ")


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [str(make_run(tmp_path / place / "fox", model=False)) for place in ("a", "b")]
    assert [run["name"] for run in collect(folders)["runs"]] == folders


def test_g06_how_a_run_stands(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "fox", model=False, steps=50)
    place = folder / "training"
    assert state(folder) == "finished"
    (place / "complete.pth").unlink()
    assert state(folder) == "finished", "the log has reached max_step"
    write_csv(place / "train_log.csv", LM_COLUMNS, lm_rows(50)[:20])
    assert state(folder) == "stopped"
    (place / "pid").write_text(str(os.getpid()))
    assert state(folder) == "running"
    (place / "exception.log").write_text("ValueError: no")
    run = gather(read_files(str(folder)))
    assert (run["state"], run["exception"]) == ("failed", "ValueError: no")
    os.utime(place / "exception.log", (1, 1))
    assert state(folder) == "running", "the exception is of an earlier attempt"


def test_the_head_says_what_the_log_says(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "fox", steps=100, trainer={"max_tokens": 409_600})
    rows = lm_rows(100)
    rows[49] |= {"val_loss": 0.5, "val_bits_per_byte": 0.7}
    write_csv(folder / "training" / "train_log.csv", LM_COLUMNS, rows)
    told = gather(read_files(str(folder)))["summary"]
    assert told["best"] == {"val_loss": 0.5, "val_bits_per_byte": 0.7, "step": 50}
    assert (told["step"], told["tokens"], told["seconds"]) == (100, 204_800, 31)
    assert (told["max_step"], told["max_tokens"]) == (None, 409_600)
    assert told["model"] == "SpikeGPT"
    assert told["shape"] == "6 layers × 192"  # noqa: RUF001
    assert told["parameters"] == spikelet.inspect(folder)["num_parameters"]


def test_the_log_of_the_bundled_model_with_its_older_names() -> None:
    if "bundled" not in spikelet.local_models():
        pytest.skip("this checkout has no bundled model")
    run = gather(read_files("bundled"))
    assert run["state"] == "finished"
    assert run["notes"] == []
    assert run["series"] == []
    assert run["summary"]["best"]["val_bits_per_byte"] < 2
    assert {"train_loss", "val_loss", "val_bits_per_byte"} <= run["columns"].keys()


def test_a_flat_folder_of_darwinkit(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "trainer_config.json").write_text(json.dumps({"max_step": 2, "name": "old"}))
    (folder / "config.json").write_text(json.dumps({"n_layer": 2, "n_embd": 8}))
    (folder / "train_log.csv").write_text("step,train_loss,val_loss\n0,2.5,\n1,2.0,\n")
    (folder / "complete.pth").write_bytes(b"")
    run = gather(read_files(str(folder)))
    assert run["state"] == "finished"
    assert run["columns"] == {"step": [0, 1], "train_loss": [2.5, 2]}
    assert run["summary"]["shape"] == "2 layers × 8"  # noqa: RUF001


def test_t23_series_that_the_trainer_names(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "net", model=False)
    place = folder / "training"
    series = {
        "train_loss": ["step", "train_loss"],
        "by time": ["seconds", "train_loss"],
        "both": ["step", "hits", "misses"],
        "gone": ["step", "nothing"],
        "broken": "step",
    }
    (place / "external_config.json").write_text(json.dumps({"series": series}))
    rows = [
        {"step": n, "seconds": n, "train_loss": n, "hits": n, "misses": n, "other": n}
        for n in range(3)
    ]
    write_csv(place / "train_log.csv", list(rows[0]), rows)
    assert gather(read_files(str(folder)))["series"] == [
        {"title": "by time", "x": "seconds", "y": ["train_loss"]},
        {"title": "both", "x": "step", "y": ["hits", "misses"]},
        {"title": "other", "x": "step", "y": ["other"]},
    ]


def test_a_log_without_steps_counts_rows(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "net", model=False)
    (folder / "training" / "train_log.csv").write_text("epoch,accuracy\n1,0.5\n2,0.75\n")
    run = gather(read_files(str(folder)))
    assert run["columns"]["step"] == [1, 2]
    assert run["notes"] == ["the log has no column 'step': rows are counted instead"]
    assert [chart["title"] for chart in run["series"]] == ["epoch", "accuracy"]


def test_layers_are_averaged_over_stretches(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "net", model=False, steps=1000)
    rows = [
        {"step": n, "blocks.1.lif1": n % 2, "blocks.0.lif1": 0.25, "blocks.0.relu2": "", "odd": 1}
        for n in range(1, 1001)
    ]
    write_csv(folder / "training" / "layers.csv", list(rows[0]), rows)
    told = layers(read_files(str(folder)))
    assert told is not None
    assert len(told["step"]) == 120
    assert told["tokens"][0] == told["step"][0] * 2048
    lif1, odd = told["kinds"]
    assert (lif1["kind"], lif1["layers"]) == ("lif1", [0, 1])
    assert set(lif1["values"][0]) == {0.25}
    assert all(0.3 < value < 0.7 for value in lif1["values"][1])
    assert (odd["kind"], odd["layers"]) == ("other", [0])
    (folder / "training" / "layers.csv").write_text("step\n1\n")
    assert layers(read_files(str(folder))) is None


def test_of_many_samples_some_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [json.dumps({"step": n, "prompt": "a", "text": "b" * 9999}) for n in range(900)]
    path.write_text("\n".join([*lines, json.dumps({"step": "x", "text": 3})]) + "\n")
    found = samples(path)
    assert len(found) == 200
    assert found[0]["step"] == 0
    assert len(found[0]["text"]) == 4000
    assert found[-1] == {"step": None, "prompt": "", "text": ""}


def test_a_prompt_is_shown_once(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    lines = [{"step": 1, "prompt": "A fox", "text": text} for text in ("A fox ran.", " ran.")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [sample["text"] for sample in samples(path)] == [" ran.", " ran."]
