"""The benchmarks' arithmetic: statistics, bytes, models of a chosen density. Nothing is timed."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spikelet

BENCHES = Path(__file__).parent.parent / "benches"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a benchmark by name, as its neighbours do."""
    import sys

    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHES)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).parent == BENCHES:
            del sys.modules[name]


def holds(n: int, cut: int) -> float:
    """Probability that the median lies between the order statistics `cut` and `n - 1 - cut`."""
    return 1 - 2 * sum(math.comb(n, i) for i in range(cut + 1)) / 2**n


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 9, 12, 20])
def test_intervals_hold_the_median_as_often_as_they_say(bench: Any, n: int) -> None:
    low, high = bench("harness").median_interval([float(i) for i in reversed(range(n))])
    cut = int(low)
    assert high == n - 1 - cut
    assert holds(n, cut) >= 0.95 or cut == 0
    assert holds(n, cut + 1) < 0.95


def test_ratios_are_taken_round_by_round(bench: Any) -> None:
    harness = bench("harness")
    # The machine became ten times as slow: the ratio did not change.
    found = harness.ratio([2.0, 20.0, 4.0], [1.0, 10.0, 2.0])
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 2.0, 2.0, 3)


def test_rounds_rotate_and_the_first_does_not_count(bench: Any) -> None:
    harness = bench("harness")
    order: list[str] = []
    works = {name: lambda n=name: (order.append(n), float(len(order)))[1] for name in "abc"}
    found = harness.alternate(works, 3)
    assert "".join(order) == "abcbcacababc"
    assert found == {"a": [6.0, 8.0, 10.0], "b": [4.0, 9.0, 11.0], "c": [5.0, 7.0, 12.0]}


def test_bytes_of_a_step_leave_out_rows_of_zeros(bench: Any) -> None:
    shapes = bench("shapes")
    shape = shapes.Shape("tiny", "rwkv4", 2, 8, 20)
    blocks, head, value = 2 * 13 * 64, 160, 2 * 4 * 64
    assert shape.weights_read == blocks + head
    assert shapes.bytes_read(shape, "f32", 1.0) == 4 * (blocks + head)
    assert shapes.bytes_read(shape, "bf16", 0.25) == 2 * (blocks + head - 0.75 * value)
    # Two tokens leave a row unread only if both have a zero there.
    assert shapes.bytes_read(shape, "bf16", 0.25, 2) == 2 * (blocks + head - 0.5625 * value)
    q4 = blocks * (0.5 + 2 / 64) + head * (1 + 2 / 64)
    assert shapes.bytes_read(shape, "q4", 1.0) == pytest.approx(q4)


@pytest.mark.parametrize("model_type", ["rwkv4", "spikegpt"])
def test_models_have_the_density_that_was_asked_for(
    bench: Any, tmp_path: Path, model_type: str
) -> None:
    shapes = bench("shapes")
    shape = shapes.Shape("tiny", model_type, 3, 96, 300)
    folder = shapes.write_random(shape, tmp_path / "model", 0.30)
    ids = np.random.default_rng(5).integers(0, 300, 400).tolist()
    density = spikelet.load(folder, threads=1).trace(ids).relu2_density[:, 1:].mean(axis=1)
    assert np.abs(density - 0.30).max() < shapes.TOLERANCE
    plain = shapes.write_random(shape, tmp_path / "plain", None)
    assert np.abs(shapes.densities(plain, shape) - 0.5).max() < 0.1


def test_a_tensor_is_overwritten_in_place_and_only_as_it_is(bench: Any, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    shapes = bench("shapes")
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(3, np.float32), "b": np.ones((2, 2), np.float32)}, file)
    shapes.overwrite(file, "a", np.array([1, 2, 3], np.float32))
    assert load_file(file)["a"].tolist() == [1, 2, 3]
    assert (load_file(file)["b"] == 1).all()
    with pytest.raises(ValueError, match=r"model\.safetensors: b is .*\[2, 2\]"):
        shapes.overwrite(file, "b", np.zeros(3, np.float32))


def test_a_model_is_made_once(bench: Any, tmp_path: Path, capsys: Any) -> None:
    shapes = bench("shapes")
    shape = shapes.Shape("tiny", "rwkv4", 2, 64, 50)
    folder = shapes.model_folder(shape, tmp_path)
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert "tiny: made; relu² density 0." in capsys.readouterr().out
    assert shapes.model_folder(shape, tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert capsys.readouterr().out == ""


def test_a_format_that_the_engine_lacks_is_left_out_with_a_line(
    bench: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = bench("harness")

    def refuse(*_: object, **__: object) -> None:
        raise spikelet.UnsupportedError("dtype is not supported\nmore")

    monkeypatch.setattr(spikelet, "load", refuse)
    assert harness.load(Path("x"), "q8", 1) is None
    assert harness.load(Path("x"), "q8", 1) is None
    assert capsys.readouterr().out == "q8 left out: dtype is not supported\n"


def test_results_are_written_with_the_machine(bench: Any, tmp_path: Path) -> None:
    harness = bench("harness")
    args = harness.parser("doc").parse_args(["--quick", "--json", str(tmp_path / "r.json")])
    plan = harness.Plan.of("decode", args)
    assert [shape.name for shape in plan.shapes] == ["RWKV-4-169M", "RWKV-4-430M", "SpikeGPT-216M"]
    plan.save([{"x": 1.23456789, "y": [{"z": 2}]}])
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["rows"] == [{"x": 1.235, "y": [{"z": 2}]}]
    assert found["machine"]["cores"] >= 1
    assert str(Path.home()) not in json.dumps(found)
    # A quick run leaves the kept results alone.
    assert harness.Plan.of("decode", harness.parser("doc").parse_args(["--quick"])).json is None
    with pytest.raises(SystemExit, match=r"'q9' is none of f32"):
        harness.Plan.of("decode", harness.parser("doc").parse_args(["--formats", "q9"]))


def test_the_bound_of_a_pass_is_memory_or_arithmetic(bench: Any) -> None:
    verify, shapes, harness = bench("verify"), bench("shapes"), bench("harness")
    shape = shapes.Shape("tiny", "rwkv4", 2, 8, 20)
    given = {harness.READ: 1.0, harness.FMA: 1e9}
    by_memory = verify.bound(shape, "f32", 0.3, 8, given)
    assert by_memory == pytest.approx(shapes.bytes_read(shape, "f32", 0.3, 8) / 1e9)
    given = {harness.READ: 1e9, harness.FMA: 1.0}
    dense = verify.bound(shape, "f32", 1.0, 8, given)
    assert dense == pytest.approx(2 * 8 * shape.weights_read / 1e9)
    # No int8 peak was measured: memory it is.
    assert verify.bound(shape, "q8", 1.0, 8, given) < dense / 1e6


def test_the_density_of_a_model_and_what_zeros_spare(bench: Any) -> None:
    density = bench("density")
    folder = Path(__file__).parent / "golden" / "spikegpt-tiny"
    model = spikelet.load(folder, threads=1)
    ids = list(range(40))
    row = density.measure("tiny", model, ids)
    trace = model.trace(ids)
    zeros = (np.asarray(trace.relu2_density) * -1 + 1).mean(axis=1).sum()
    config = model.config
    assert row["spared_bytes_16_bit"] == pytest.approx(
        2 * zeros * config.hidden_size * config.intermediate_size, rel=1e-5
    )
    assert 0 < row["spared_share"] < 1
    assert len(row["density"]) == len(row["firing_rates"]) == config.num_hidden_layers
    assert density.line(row).startswith("| tiny | 4 x 64 |")
    # A model without neurons has no rates.
    plain = density.measure("rwkv", spikelet.load(folder.parent / "rwkv4-tiny"), ids)
    assert plain["firing_rates"] == []
    assert " | - | - | " in density.line(plain)


def test_a_random_prophet_fits_its_model(bench: Any, tmp_path: Path) -> None:
    shapes, speculation = bench("shapes"), bench("speculation")
    shape = shapes.Shape("tiny", "spikegpt", 2, 64, 90)
    folder = shapes.write_random(shape, tmp_path / "m", None)
    speculation.write_prophet(shape, folder, rows=30)
    model = spikelet.load(folder, threads=1)
    prompt = list(range(20))
    base = model.generate(prompt, max_new_tokens=30, seed=1, speculative="off").run()
    config = spikelet.SpeculativeConfig("prophet", num_speculative_tokens=3)
    drafted = model.generate(prompt, max_new_tokens=30, seed=1, speculative=config).run()
    assert drafted.ids == base.ids
    assert list(drafted.stats.by_source) == ["prophet"]
    always = spikelet.SpeculativeConfig("prophet", num_speculative_tokens=3, forced_acceptance=1.0)
    forced = model.generate(prompt, max_new_tokens=30, seed=1, speculative=always).run()
    assert forced.stats.acceptance_rate == 1
    assert (
        shapes.SHAPES["SpikeGPT-216M"].weights_read * 0.07
        > sum(
            array.size
            for name, array in speculation.prophet_tensors(shapes.SPIKEGPT_216M, 8).items()
            if array.ndim == 2
        )
        + speculation.GUESSED * shapes.SPIKEGPT_216M.hidden
    )


def test_plots_are_the_same_for_the_same_results(bench: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = bench("plots")
    for name in ("a.svg", "b.svg"):
        plots.bars(tmp_path / name, ["x", "y"], {"f32": [1.0, None], "q8": [2.0, 3.0]}, "u", "t")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    plots.lines(tmp_path / "c.svg", {"f32": ([1, 2], [3, 4], "o-")}, ("a", "b"), "t", log=True)
    assert (tmp_path / "c.svg").read_text().startswith("<?xml")


def test_rounds_end_when_patience_does(bench: Any, capsys: Any) -> None:
    found = bench("harness").alternate({"a": lambda: 1.0}, 9, patience=-1.0)
    assert found == {"a": [1.0, 1.0]}
    assert "only 2 rounds" in capsys.readouterr().out


class FakeChild:
    """What a row asks of an engine's process."""

    def __init__(self, peers: Any, engine: str, dtype: str) -> None:
        self.contender = peers.Contender(engine, dtype, "", "")


def test_the_best_peer_is_of_no_lower_precision(bench: Any) -> None:
    peers = bench("peers")
    children = [
        FakeChild(peers, *words)
        for words in (
            ("spikelet", "f32"), ("spikelet", "q8"), ("rwkv", "f32"), ("rwkv", "bf16"),
        )
    ]  # fmt: skip
    rates = {"rwkv f32": [1.0, 2.0], "rwkv bf16": [4.0, 8.0]}
    rates |= {"spikelet f32": [2.0, 4.0], "spikelet q8": [12.0, 24.0]}
    full = peers.against(children[0], children, rates)
    assert (full["peer"], full["median"]) == ("rwkv f32", 2.0)
    eight = peers.against(children[1], children, rates)
    assert (eight["peer"], eight["median"]) == ("rwkv bf16", 3.0)
    assert peers.against(children[0], children[:2], rates) is None


def test_texts_are_compared_from_the_first_token_on(bench: Any) -> None:
    common = bench("peers").common
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 4]) == 2
    assert common([5], [1]) == 0


def test_names_of_transformers(bench: Any) -> None:
    name = bench("peer_models").hf_name
    assert name("emb.weight") == "rwkv.embeddings.weight"
    assert name("head.weight") == "head.weight"
    assert name("blocks.0.ln0.bias") == "rwkv.blocks.0.pre_ln.bias"
    assert name("blocks.3.att.time_mix_k") == "rwkv.blocks.3.attention.time_mix_key"
    assert name("blocks.3.ffn.receptance.weight") == (
        "rwkv.blocks.3.feed_forward.receptance.weight"
    )


def test_the_plain_twin_of_spikegpt_writes_the_same(bench: Any, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    shapes, plain = bench("shapes"), bench("plain_spikegpt")
    folder = shapes.write_random(shapes.Shape("tiny", "spikegpt", 2, 64, 90), tmp_path / "m", None)
    twin = plain.PlainSpikeGPT(load_file(folder / "model.safetensors"), torch.float32)
    model = spikelet.load(folder, threads=1)
    ids = np.random.default_rng(2).integers(0, 90, 40).tolist()
    state = model.new_state()
    expected = model.forward(ids, state, all_logits=False)
    found = twin.forward(ids, twin.new_state()).numpy()
    assert np.allclose(found, expected, atol=1e-3)


def test_a_worker_answers_and_says_what_fails(bench: Any, tmp_path: Path) -> None:
    import sys

    peers = bench("peers")
    golden = Path(__file__).parent / "golden" / "spikegpt-tiny"
    child = peers.Child(peers.Contender("spikelet", "f32", golden, sys.executable), 1)
    try:
        assert child.decode([1, 2, 3], 4) > 0
        expected = spikelet.load(golden, threads=1).generate(
            [1, 2, 3], max_new_tokens=5, temperature=0.0, ignore_eos=True
        )
        assert child.ids == expected.run().ids
        assert child.prefill([1, 2, 3]) > 0
        assert child.ask("memory")["peak_bytes"] > 1e6
        assert child.cpu_seconds() > 0
        with pytest.raises(peers.PeerError, match="OptionError"):
            child.decode([10**6], 1)
    finally:
        child.end()
    with pytest.raises(peers.PeerError, match=r"FileError|NotFoundError|FormatError"):
        peers.Child(peers.Contender("spikelet", "f32", tmp_path / "no", sys.executable), 1)


def figure(median: float) -> dict[str, float]:
    return {"median": median, "low": median, "high": median, "rounds": 6}


def test_the_table_says_what_is_met_missed_and_open(bench: Any) -> None:
    table = bench("table")
    machine = bench("harness").machine()
    row = {
        "model": "RWKV-4-169M", "task": "decode", "engine": "spikelet", "version": "spikelet 1",
        "threads": 2, "tokens": 64, "peak_bytes": 1e9, "load_seconds": 1.0, "text": None,
        "share": figure(0.9), "against": {"peer": "rwkv f32", **figure(3.0)},
    }  # fmt: skip
    peers = [
        {**row, "format": "f32", "tokens_per_second": figure(121.5)},
        {**row, "format": "bf16", "tokens_per_second": figure(100.0)},
        {**row, "format": "f16", "tokens_per_second": figure(110.0)},
        {"model": "RWKV-4-169M", "engine": "spikelet", "format": "q8", "left_out": "no"},
    ]
    text = table.render({"peers": {"machine": machine, "rows": peers}})
    lines = {tuple(line.split(" | ")[:2]): line for line in text.splitlines()}
    f32 = lines["| RWKV-4-169M decode", "f32"]
    assert "121.5 tok/s (f32) = 1.10 x | 3.0 x rwkv f32 | 90% | yes |" in f32
    # Of two formats the quicker one counts.
    assert "110 tok/s (f16) = 0.85 x" in lines["| RWKV-4-169M decode", "16 bit"]
    assert lines["| RWKV-4-169M decode", "16 bit"].endswith("| **no** |")
    assert lines["| RWKV-4-169M decode", "q8"].endswith("| open |  |  | open |")
    assert "### Beside other engines" in text
    # Where the peer ran too it decides, not what it did elsewhere.
    rows = [
        {**row, "task": "prefill", "format": "q8", "tokens_per_second": figure(900.0)},
        {
            **row,
            "task": "prefill",
            "engine": "rwkv",
            "format": "f32",
            "tokens_per_second": figure(90),
        },
        {
            **row,
            "task": "prefill",
            "engine": "rwkv",
            "format": "bf16",
            "tokens_per_second": figure(300),
        },
    ]
    prefill = table.render({"peers": {"machine": machine, "rows": rows}})
    (fastest,) = (x for x in prefill.splitlines() if "prefill of 512 | fastest | 2 x rwkv" in x)
    assert "900 tok/s (q8) = 3.00 x" in fastest
    assert fastest.endswith("| yes |")
    assert "### Loading" not in text
    assert "left out: no" in text


def test_the_page_has_a_place_for_the_tables(bench: Any) -> None:
    table = bench("table")
    page = table.README.read_text()
    once = table.replaced(page, "text")
    assert table.replaced(once, "text") == once
    assert once.count("text") >= 1
    with pytest.raises(ValueError, match="are needed"):
        table.replaced("no marks", "text")


def test_results_of_speculation_have_a_section(bench: Any, tmp_path: Path) -> None:
    from bench.test_report import make

    file = tmp_path / "speculation-stories.json"
    file.write_text(json.dumps(make().as_dict()))
    text = bench("table").speculation(file)
    assert text.startswith("### Speculative decoding: stories\n")
    assert "| prose | 0 | prophet |" in text
    assert "](results/speculation-stories/speedup.svg)" in text


def test_all_programs_have_rows_that_the_page_can_show(bench: Any) -> None:
    for name in bench("table").PROGRAMS:
        module = bench(name)
        assert len(module.COLUMNS) > 3
        assert callable(module.line)


class FakeEngine:
    """A child that answers at once, or fails from its third decoding on."""

    def __init__(self, peers: Any, contender: Any, fails: bool) -> None:
        self.peers, self.contender, self.fails = peers, contender, fails
        self.failed, self.ended, self.calls = False, False, 0
        self.name, self.load_seconds, self.peak_bytes, self.ids = "fake", 0.5, 1000, [1, 2]

    def decode(self, ids: Any, tokens: int) -> float:
        self.calls += 1
        if self.fails and self.calls > 2:
            self.failed = True
            raise self.peers.PeerError("no memory")
        return 10.0

    def prefill(self, ids: Any) -> float:
        return 100.0

    def cpu_seconds(self) -> float:
        return 0.0

    def end(self) -> None:
        self.ended = True


def test_an_engine_that_fails_is_left_out_and_the_others_are_measured(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, harness, shapes = bench("peers"), bench("harness"), bench("shapes")
    made: list[FakeEngine] = []

    def start(contender: Any, threads: int, prompt: Any) -> FakeEngine:
        made.append(FakeEngine(peers, contender, contender.engine == "rwkv"))
        return made[-1]

    monkeypatch.setattr(peers, "start", start)
    monkeypatch.setattr(peers, "Child", FakeEngine)
    monkeypatch.setattr(peers, "idle_share", lambda _: 0.0)
    roof = {harness.READ: lambda: 1.0, harness.FMA: lambda: 1.0}
    monkeypatch.setattr(harness, "roofline", lambda _: roof)
    plan = harness.Plan.of("peers", harness.parser("doc").parse_args(["--quick"]))
    contenders = [
        peers.Contender(engine, "f32", "", "") for engine in ("spikelet", "rwkv", "transformers")
    ]
    section = peers.Section("RWKV-4-169M", shapes.RWKV4_169M, contenders)
    rows = peers.measure(plan, section, 2)
    assert [row["engine"] for row in rows if "left_out" in row] == ["rwkv"]
    kept = [row for row in rows if "left_out" not in row]
    assert [(row["task"], row["engine"]) for row in kept] == [
        ("decode", "spikelet"), ("decode", "transformers"),
        ("prefill", "spikelet"), ("prefill", "transformers"),
    ]  # fmt: skip
    assert kept[0]["against"]["peer"] == "transformers f32"
    assert kept[1]["text"] == {"equal": 2, "of": 2}
    assert all(engine.ended for engine in made)
    assert all(peers.line(row).startswith("| RWKV-4-169M |") for row in rows)
