"""Runs that go wrong stop, and say where."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from spikelet.training import TrainingError, runs  # noqa: E402
from spikelet.training.trainer import guard  # noqa: E402
from spikelet.training.trainer.step import Stepper  # noqa: E402
from training.tiny import text_file, tiny_trainer  # noqa: E402


def steps_until_stop(losses: list[float]) -> int | None:
    watch = guard.LossGuard()
    return next((n for n, loss in enumerate(losses, 1) if watch.exploded(loss)), None)


def test_an_explosion_is_a_loss_that_stays_high() -> None:
    calm = [2.0 + 0.1 * math.sin(n) for n in range(60)]
    assert steps_until_stop(calm + [9.0] * 30) == 60 + guard.PATIENCE
    assert steps_until_stop(calm + [9.0] * 19 + calm) is None
    assert steps_until_stop([9.0 - 0.1 * n for n in range(80)] + [1.0] * 50 + [3.5] * 30) == (
        130 + guard.PATIENCE
    )


def test_rough_beginnings_and_small_losses_are_left_alone() -> None:
    assert steps_until_stop([2.0] * 10 + [50.0] * 50) is None  # too little is known
    assert steps_until_stop([0.01] * 50 + [0.5] * 100) is None  # more than 3 times, not 1 nat
    assert steps_until_stop([2.0] * 50 + [4.0] * 100) is None


def test_the_guard_goes_on_after_a_resume() -> None:
    first = guard.LossGuard()
    for loss in [2.0] * 50 + [9.0] * 7:
        assert not first.exploded(loss)
    second = guard.LossGuard(list(first.losses), first.high)
    assert [second.exploded(9.0) for _ in range(13)] == [False] * 12 + [True]


def break_at(monkeypatch: pytest.MonkeyPatch, step: int, name: str, value: float) -> None:
    """Scale a parameter after step number ``step``."""
    update, steps = Stepper.update, [0]

    def broken(self: Stepper, rate: float, norm: float) -> None:
        update(self, rate, norm)
        steps[0] += 1
        if steps[0] == step:
            with torch.no_grad():
                self.model.get_parameter(name).mul_(value)

    monkeypatch.setattr(Stepper, "update", broken)


def test_nan_stops_the_run_with_step_layers_and_the_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 7, "blocks.1.ffn.value.weight", math.nan)
    trainer = tiny_trainer(tmp_path, save_step_interval=3)
    with pytest.raises(TrainingError) as caught:
        trainer.train(text_file(tmp_path))
    text = str(caught.value)
    assert text.startswith("step 8: loss ")
    assert "gradient norm nan; weights that are not finite: blocks.1.ffn.value.weight" in text
    assert "worst first: " in text
    assert "iter-6-ckpt.pth: go on with resume='run:iter-6-ckpt' and a lower learning" in text
    assert [path.stem for path in runs.checkpoints(tmp_path / "run")][-1] == "iter-6-ckpt"


def test_an_infinite_gradient_alone_stops_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.model.blocks[0].att.key.weight.register_hook(lambda grad: grad.fill_(math.inf))
    message = r"step 1: loss \S+, gradient norm inf\. Gradient.*first: blocks\.0\.att inf"
    with pytest.raises(TrainingError, match=message):
        trainer.train(text_file(tmp_path))


def test_layers_are_listed_worst_first() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "b": torch.nn.Linear(1, 1)})
    model["c"] = torch.nn.Linear(1, 1)
    for name, value in {"a": 1.0, "b": math.nan, "c": 3.0}.items():
        for parameter in model[name].parameters():
            parameter.grad = torch.full_like(parameter, value)
    assert list(guard.gradient_norms(model)) == ["b", "c", "a"]
    assert guard.gradient_norms(model)["c"] == pytest.approx(math.sqrt(18))


def test_an_explosion_names_a_checkpoint_from_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 40, "head.weight", 1000.0)
    trainer = tiny_trainer(tmp_path, save_step_interval=15, max_step=100, learning_rate=1e-3)
    message = (
        r"step 60: loss [\d.e+]+ after 20 steps far above its median 3\.\d+.*worst first: "
        r".*resume='run:iter-30-ckpt'"
    )
    with pytest.raises(TrainingError, match=message):
        trainer.train(text_file(tmp_path))


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at(monkeypatch, 6, "head.weight", math.inf)
    trainer = tiny_trainer(tmp_path, save_step_interval=3)
    message = (
        r"step 6: not saved; weights that are not finite: head\.weight.*resume='run:iter-3-ckpt'"
    )
    with pytest.raises(TrainingError, match=message):
        trainer.train(text_file(tmp_path))
    assert [path.stem for path in runs.checkpoints(tmp_path / "run")] == ["iter-3-ckpt"]
