"""benches/gpu_train_check.py works before it reaches a machine with a GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from benches import gpu_train_check as script  # noqa: E402

from gpu import emulator  # noqa: E402
from spikelet.training.ops import cpu, cuda, operators  # noqa: E402


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the CPU, the CUDA kernels under the emulator, but for what `check` runs last."""
    runtime = emulator.runtime(emulator.all_kernels())
    monkeypatch.setattr(cuda, "_runtime", lambda: runtime)
    monkeypatch.setattr(operators, "kernels", lambda device: cuda)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operator", ["wkv4", "lif", "mix"])
def test_right_kernels_pass_and_wrong_ones_fail(
    operator: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (2, 67, 9)
    found = script.check(operator, size, dtype, "cpu")
    assert found.passed
    assert found.worst_relative_error > 0
    name = f"{operator}_backward"
    right = getattr(cuda, name)

    def wrong(*arguments: object) -> tuple[torch.Tensor, ...]:
        return tuple(1.01 * one for one in right(*arguments))

    monkeypatch.setattr(cuda, name, wrong)
    assert not script.check(operator, size, dtype, "cpu").passed


def test_bits_are_compared_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = iter([cuda] * 3 + [cpu] * 9)  # wkv4 and its backward ask once each, after ops.wkv4

    monkeypatch.setattr(operators, "kernels", lambda device: next(turns))
    assert script.check("wkv4", (2, 67, 9), torch.float32, "cpu").bits_of_cpu
    turns = iter([cuda] * 3 + [cpu] * 9)
    right = cpu.wkv4_forward
    monkeypatch.setattr(
        cpu, "wkv4_forward", lambda *a: (right(*a)[0].nextafter(torch.ones(())), right(*a)[1])
    )
    assert not script.check("wkv4", (2, 67, 9), torch.float32, "cpu").bits_of_cpu


def test_measurements_run(capsys: pytest.CaptureFixture[str]) -> None:
    def wait() -> None:
        pass

    for operator in ("wkv4", "lif", "mix"):
        row = script.speed(operator, (1, 9, 5), torch.bfloat16, "cpu", 1, wait)
        assert min(row.fused, row.naive, row.gigabytes_per_second) > 0
    config = {"vocab_size": 30, "ctx_len": 8, "n_layer": 1, "n_embd": 8}
    for is_fused in (True, False):
        assert script.tokens_per_second(config, 1, is_fused, "cpu", is_fused, 1, wait) > 0
    script.table([row])
    assert "| mix | (1, 9, 5) | bfloat16 |" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_train_check.py"])
    monkeypatch.setattr(cuda, "_opened", lambda: "there is no GPU")
    assert script.main() == 2
    assert capsys.readouterr().err == "nothing to measure: there is no GPU\n"
