"""A trainer's own page, and its log, while it trains; its report afterwards."""

from __future__ import annotations

import csv
import json
import urllib.request
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import spikelet  # noqa: E402
from spikelet.report import collect  # noqa: E402
from spikelet.training import Trainer, TrainerConfig  # noqa: E402
from training.tiny import tiny_config, tiny_data, tiny_model  # noqa: E402


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path / "home"))


def shown(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/data.json", timeout=10) as answer:
        run: dict[str, Any] = json.load(answer)["runs"][0]
    return run


class Looker(Trainer):
    """Looks at its own page and log in the middle of its training."""

    _visual_series = {"how wrong": ["step", "mistakes"]}  # noqa: RUF012

    def train(self, train_dataset: object, val_dataset: object = None) -> dict[str, Any]:
        for step in range(3):
            self.current_step = step
            self.log({"step": step, "mistakes": 10 - step})
        assert self.save_directory is not None
        with (self.save_directory / "train_log.csv").open() as file:
            self.rows = list(csv.DictReader(file))
        return shown(self.server.address)


def test_t22_t24_page_and_log_can_be_read_during_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = {"step": int, "mistakes": int}
    trainer = Looker(
        torch.nn.Linear(2, 2),
        TrainerConfig(name="looker", device="cpu"),
        log_fieldnames=make_dataclass("Log", [(n, t, 0) for n, t in columns.items()]),
        enable_server=True,
        server_port=0,
    )
    try:
        printed = capsys.readouterr().err
        assert f"{trainer.server.address} shows this run" in printed
        with trainer:
            run = trainer.train(None)
        assert [row["mistakes"] for row in trainer.rows] == ["10", "9", "8"]
        assert run["state"] == "running"
        assert run["columns"] == {"step": [0, 1, 2], "mistakes": [10, 9, 8]}
        assert run["series"] == [{"title": "how wrong", "x": "step", "y": ["mistakes"]}]
    finally:
        trainer.server.close()


def test_t25_the_port_by_both_names(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("server_port", "server_prot"):
        config = TrainerConfig(name=option, device="cpu")
        trainer = Trainer(torch.nn.Linear(2, 2), config, enable_server=True, **{option: 0})
        try:
            assert trainer.server_port == trainer.server.port > 0
            assert f":{trainer.server_port} shows" in capsys.readouterr().err
        finally:
            trainer.server.close()
    first = Trainer(torch.nn.Linear(2, 2), config_named("first"), enable_server=True, server_port=0)
    second = Trainer(
        torch.nn.Linear(2, 2),
        config_named("second"),
        enable_server=True,
        server_prot=first.server_port,
    )
    try:
        assert f"(port {first.server_port} is taken)" in capsys.readouterr().err
        assert second.server_port != first.server_port
    finally:
        first.server.close()
        second.server.close()


def config_named(name: str) -> TrainerConfig:
    return TrainerConfig(name=name, device="cpu")


def test_the_report_of_a_run_that_was_trained(tmp_path: Path) -> None:
    data, tokenizer = tiny_data(tmp_path)
    config = tiny_config(
        name="tiny", eval_step_interval=10, sample_tokens=8, sample_prompt="The cat"
    )
    trainer = Trainer(tiny_model(), tokenizer, config)
    trainer.train(data)
    (run,) = collect(["tiny"], text="The cat sat.", raster=True)["runs"]
    assert run["state"] == "finished"
    assert run["notes"] == []
    assert run["series"] == []
    assert run["summary"]["best"]["val_loss"] > 0
    assert run["summary"]["parameters"] == sum(p.numel() for p in trainer.model.parameters())
    assert run["samples"][-1]["prompt"] == "The cat"
    assert {kind["kind"] for kind in run["layers"]["kinds"]} == {"lif1", "lif2", "relu2"}
    assert "".join(run["raster"]["tokens"]) == "The cat sat."
    assert len(run["columns"]["step"]) == len(run["columns"]["learning_rate"])
    assert spikelet.find_model("tiny") == spikelet.home() / "runs" / "tiny"
