"""`spikelet doctor`: the report, and a self-test that can fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import spikelet
from spikelet.cli import doctor
from spikelet.cli.selftest import FILE_NAME, compute, run_levels

from .conftest import make_model
from .helpers import Cli


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    """A model with stored logits."""
    folder = make_model(tmp_path / "answered")
    answer = compute(folder, list(range(0, 200, 9)))
    (folder / FILE_NAME).write_text(json.dumps(answer))
    return folder


def test_every_level_gives_the_stored_bits(cli: Cli, answered: Path) -> None:
    result = cli("doctor", "--model", answered)
    assert result.code == 0, result.out
    assert "everything is well" in result.out
    for level in spikelet.cpu_features()["levels"]:
        assert any(
            line.split()[:2] == [level, "ok"] and "the stored logits" in line
            for line in result.out.splitlines()
        )
    assert "cpu: SPIKELET_DEVICE asks for it" in result.out
    assert "\x1b" not in result.out


def test_the_bundled_model_has_its_logits_stored(cli: Cli) -> None:
    if "bundled" not in spikelet.local_models():
        pytest.skip("this checkout has no bundled model")
    result = cli("doctor")
    assert result.code == 0, f"after a change of the model: scripts/make_selftest.py\n{result.out}"
    levels = spikelet.cpu_features()["levels"]
    assert result.out.count("the stored logits, bit for bit") == len(levels)


def test_without_stored_logits_the_levels_judge_each_other(model_folder: Path) -> None:
    outcomes = run_levels(model_folder, spikelet.cpu_features()["levels"])
    assert all(outcome.ok for outcome in outcomes)
    assert len({outcome.digest for outcome in outcomes}) == 1


def test_wrong_logits_are_found(cli: Cli, answered: Path) -> None:
    answer = json.loads((answered / FILE_NAME).read_text())
    answer["logits_sha256"] = "0" * 64
    answer["last_logits"][0] = (1.5).hex()
    (answered / FILE_NAME).write_text(json.dumps(answer))
    result = cli("doctor", "--model", answered)
    assert result.code == 1
    assert "FAILED" in result.out
    assert "needed 1.5" in result.out
    assert "something is wrong" in result.out


def test_one_changed_weight_is_found(answered: Path) -> None:
    weights = bytearray((answered / "model.safetensors").read_bytes())
    weights[-1] ^= 1 << 2
    (answered / "model.safetensors").write_bytes(weights)
    assert not any(outcome.ok for outcome in run_levels(answered, ["portable"]))


def test_a_level_that_cannot_run_is_reported(answered: Path) -> None:
    (outcome,) = run_levels(answered, ["mmx"])
    assert not outcome.ok
    assert "mmx" in outcome.detail


def test_a_crash_is_reported(
    answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -ILL $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (outcome,) = run_levels(answered, ["avx512"])
    assert not outcome.ok
    assert "SIGILL" in outcome.detail


def test_the_flags_of_arm_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    info = {"processor": "0", "Features": "fp asimd evtstrm aes asimddp"}
    monkeypatch.setattr(doctor, "_cpuinfo", lambda: info)
    assert doctor.cpu_flags() == ["asimd", "asimddp"]


def test_json(cli: Cli, answered: Path) -> None:
    report = json.loads(cli("doctor", "--model", answered, "--json").out)
    assert report["ok"] is True
    assert report["versions"]["spikelet"] == spikelet.__version__
    assert report["cpu"]["physical_cores"] >= 1
    assert report["cpu"]["chosen"] in report["cpu"]["levels"]
    assert [level["level"] for level in report["self_test"]["levels"]] == report["cpu"]["levels"]


def test_a_forced_level_is_named(cli: Cli, answered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKELET_ISA", "portable")
    out = cli("doctor", "--model", answered).out
    (line,) = (line for line in out.splitlines() if line.strip().startswith("used"))
    assert "portable" in line
    assert "SPIKELET_ISA" in line


def test_an_impossible_level_fails(
    cli: Cli, answered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKELET_ISA", "mmx")
    result = cli("doctor", "--model", answered)
    assert result.code == 1
    assert "mmx" in result.out


def test_a_missing_model_fails_with_the_reason(cli: Cli, tmp_path: Path) -> None:
    result = cli("doctor", "--model", tmp_path / "nowhere")
    assert result.code == 1
    assert "nowhere" in result.out


def test_without_a_word_a_gpu_is_used_where_there_is_one(
    cli: Cli, answered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPIKELET_DEVICE")
    gpu = json.loads(cli("doctor", "--model", answered, "--json").out)["gpu"]
    usable = [found["device"] for found in gpu["devices"] if found["problem"] is None]
    assert gpu["chosen"] == ("cuda:0" if "cuda:0" in usable else "cpu")
    assert gpu["reason"]
    assert (gpu["problem"] is None) == bool(gpu["devices"])


def test_a_wish_that_cannot_be_met_fails(
    cli: Cli, answered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKELET_DEVICE", "cuda:64")
    result = cli("doctor", "--model", answered)
    assert result.code == 1
    assert "none: device cuda:64: " in result.out
