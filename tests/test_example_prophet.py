"""Parts of examples/train_prophet.py, which takes the reference program's place."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

PATH = Path(__file__).parent.parent / "examples" / "train_prophet.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_prophet_example", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.set_num_threads(1)
    return module


def test_r01_constants_are_options(example: ModuleType) -> None:
    args = example.options([])
    assert (args.num_batches, args.batch_size, args.grad_accum_every) == (100_000, 4, 4)
    assert (args.learning_rate, args.prime_length, args.generate_every) == (1e-4, 128, 100)
    assert (args.generate_length, args.seq_len, args.gamma) == (512, 512, 5)
    assert args.train_prophet
    assert (args.dim, args.depth, args.prophet_dim, args.prophet_depth) == (512, 10, 512, 2)
    assert (args.max_bytes, args.train_bytes) == (95_000_000, 90_000_000)
    assert example.options(["--no-train-prophet", "--gamma", "3"]).gamma == 3


def test_r02_r03_data(example: ModuleType, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "zipped.gz").write_bytes(gzip.compress(data))
    for name in ("plain", "zipped.gz"):
        train, valid = example.read_data(tmp_path / name, 1900, 1800)
        assert (len(train), len(valid)) == (1800, 100)
        train, valid = example.read_data(tmp_path / name, 5120, 3840)  # more than there is
        assert (len(train), len(valid)) == (1920, 640)
    rows = example.TextSamplerDataset(train, 16)
    assert len(rows) == 1920 // 16
    for row in (rows[0], rows[3]):
        assert row.shape == (17,)
        assert row.dtype == torch.long
        assert (row.diff() % 256 == 1).all()  # a window of the data


def test_r04_r05_helpers(example: ModuleType) -> None:
    endless = example.cycle([1, 2])
    assert [next(endless) for _ in range(5)] == [1, 2, 1, 2, 1]
    assert example.decode_tokens([72, 105, 10, 0, 126]) == "Hi  ~"
    result, milliseconds = example.benchmark(lambda: 7)()
    assert result == 7
    assert milliseconds >= 0


def test_r06_shapes(example: ModuleType) -> None:
    model = example.make_model(512, 10, 512, "rwkv4")
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(10 * 13 * 512**2 + 2 * 256 * 512, rel=0.01)


def small_wrapper(example: ModuleType) -> torch.nn.Module:
    torch.manual_seed(1)
    model = example.make_model(16, 2, 32, "rwkv4")
    prophet = example.Prophet(example.ProphetConfig(n_embd=8), model.config)
    return example.ModelWithProphetWrapper(model, prophet, prophet_train_length=5)


def test_r11_accumulated_steps_are_those_of_one_batch(example: ModuleType) -> None:
    ids = torch.randint(0, 256, (6, 33), generator=torch.Generator().manual_seed(2))
    found = []
    for batches in (list(ids.split(2)), [ids]):
        net = small_wrapper(example)
        parts = [net.model, net.prophet]
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        losses = example.train_step(net, parts, batches, optimizer)
        assert all(p.grad is None for p in net.parameters())
        found.append((losses, net.model.head.weight, net.prophet.fuse.weight))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for a, b in zip(found[0][1:], found[1][1:], strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_large_gradient_of_one_part_leaves_the_other_alone(example: ModuleType) -> None:
    ids = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(2))
    steps = []
    for factor in (1.0, 1000.0):
        net = small_wrapper(example)
        net.detach_model_embed_for_prophet = True
        with torch.no_grad():
            net.prophet.head.weight.mul_(factor)
        before = net.model.head.weight.clone()
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        example.train_step(net, [net.model, net.prophet], [ids], optimizer)
        steps.append(net.model.head.weight - before)
    assert torch.equal(*steps)


def test_r10_a_prophet_that_is_not_trained_stays(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[dict[str, torch.Tensor]] = []
    original, made = example.ModelWithProphetWrapper, []

    def remember(*args: object, **options: object) -> torch.nn.Module:
        net = original(*args, **options)
        drawn.append({k: v.clone() for k, v in net.state_dict().items()})
        made.append(net)
        return net

    example.ModelWithProphetWrapper = remember
    try:
        example.main(
            [
                "--no-train-prophet",
                "--dim=16",
                "--depth=1",
                "--prophet-dim=8",
                "--prophet-depth=1",
                "--seq-len=32",
                "--num-batches=2",
                "--batch-size=2",
                "--prime-length=8",
                "--generate-length=12",
            ]
        )
    finally:
        example.ModelWithProphetWrapper = original
    changed = {k for k, v in made[0].state_dict().items() if not torch.equal(v, drawn[0][k])}
    assert changed
    assert all(name.startswith("model.") for name in changed)
    assert "training prophet loss" in capsys.readouterr().out
