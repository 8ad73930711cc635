"""What a run shows and writes besides its checkpoints."""

from __future__ import annotations

import csv
import io
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from spikelet.errors import OptionError  # noqa: E402
from spikelet.training.trainer.log import LanguageModelLog  # noqa: E402
from spikelet.training.trainer.progress import (  # noqa: E402
    Display,
    duration,
    perplexity,
    progress_text,
)
from training.tiny import text_file, tiny_trainer  # noqa: E402


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


ROW = LanguageModelLog(
    step=12, tokens=3072, train_loss=2.0, bits_per_byte=1.25, learning_rate=3e-4,
    tokens_per_second=1234.5, firing_rate=0.123,
)  # fmt: skip


def test_t26_the_line_says_all_that_one_looks_for() -> None:
    assert progress_text(ROW, 100, 75.2) == (
        "step 12/100  loss 2.0000  ppl 7.39  bpb 1.2500  lr 3.00e-04  1,234 tok/s  firing 12.3%  "
        "1:15 left"
    )
    ROW.val_loss, ROW.val_bits_per_byte = 2.1, 1.3
    assert "val loss 2.1000  val bpb 1.3000" in progress_text(ROW, 100, 0)
    assert "bpb" not in progress_text(LanguageModelLog(1, train_loss=1.0), 2, 0)
    assert [duration(s) for s in (0.4, 59.6, 3600, 36_061)] == [
        "0:00",
        "1:00",
        "1:00:00",
        "10:01:01",
    ]
    assert perplexity(1e4) == float("inf")


def test_on_a_terminal_the_line_is_written_over() -> None:
    display = Display(screen := Screen())
    display.show("step 1")
    display.show("step 2")
    display.show("validated", important=True)
    display.show("step 3")
    display.end()
    display.end()
    assert screen.getvalue() == "\r\x1b[Kstep 1\r\x1b[Kstep 2\r\x1b[Kvalidated\n\r\x1b[Kstep 3\n"


def test_elsewhere_lines_have_a_time_and_come_now_and_then() -> None:
    display = Display(file := io.StringIO())
    for number in range(5):
        display.show(f"step {number}")
    display.show("validated", important=True)
    display.say("done")
    lines = file.getvalue().splitlines()
    assert [line[10:] for line in lines] == ["step 0", "validated", "done"]
    assert all(line[2] == line[5] == ":" for line in lines)


def test_t26_a_run_shows_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_trainer(tmp_path, max_step=3).train(text_file(tmp_path))
    last = capsys.readouterr().err.splitlines()[-1]
    for part in ("step 3/3", "loss ", "ppl ", "lr 1.00e-05", "bpb ", "tok/s", "firing", " left"):
        assert part in last


def test_layers_are_logged_with_the_loss(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, log_step_interval=5)
    trainer.train(text_file(tmp_path))
    with (tmp_path / "run" / "training" / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sites = [f"blocks.{n}.{site}" for n in range(2) for site in ("lif1", "lif2", "relu2")]
    assert list(rows[0]) == ["step", *sites]
    assert [row["step"] for row in rows] == ["5", "10", "15", "20"]
    with (tmp_path / "run" / "training" / "train_log.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))[-1]
    for name, site in {"firing_rate": "lif", "relu2_density": "relu2"}.items():
        values = [float(value) for key, value in rows[-1].items() if site in key]
        assert float(logged[name]) == pytest.approx(sum(values) / len(values), rel=1e-6)


def test_samples_are_drawn_at_each_validation(tmp_path: Path) -> None:
    options = {"eval_step_interval": 10, "sample_tokens": 6, "sample_prompt": "The cat"}
    trainer = tiny_trainer(tmp_path, **options)
    trainer.train(text_file(tmp_path))
    lines = (tmp_path / "run" / "training" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [(s["step"], s["tokens"], s["prompt"]) for s in samples] == [
        (10, 320, "The cat"),
        (20, 640, "The cat"),
    ]
    assert all(s["text"].startswith("The cat") for s in samples)
    assert len(samples[1]["text"]) > len("The cat")


def test_a_sample_does_not_change_the_run(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    quiet = tiny_trainer(tmp_path / "quiet", eval_step_interval=3)
    quiet.train(text)
    loud = tiny_trainer(tmp_path / "loud", eval_step_interval=3, sample_tokens=9)
    loud.train(text)
    weights = loud.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in quiet.model.state_dict().items())


def test_tensorboard_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, list[int]] = {}
    folders: list[str] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            folders.append(folder)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.setdefault(name, []).append(step)

        def close(self) -> None:
            written["closed"] = []

    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    trainer = tiny_trainer(tmp_path, max_step=4, log_step_interval=2, tensorboard=True)
    trainer.train(text_file(tmp_path))
    assert folders == [str(tmp_path / "run" / "training" / "tensorboard")]
    assert written["train_loss"] == written["activity/blocks.1.relu2"] == [2, 4]
    assert written["val_loss"] == [4]
    assert "step" not in written
    assert "closed" in written


def test_tensorboard_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionError, match=r"tensorboard=True needs .*'spikelet\[tensorboard\]'"):
        tiny_trainer(tmp_path, tensorboard=True)
