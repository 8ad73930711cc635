"""Loading: names and paths, what a loaded model tells, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import spikelet


def edited(golden: Path, folder: Path, **config: object) -> Path:
    """A golden model with other keys in its configuration."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / "spikegpt-tiny" / name, folder)
    old = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(old | config))
    return folder


def test_a_model_tells_what_it_is(golden: Path) -> None:
    model = spikelet.load(golden / "spikegpt-tiny", threads=2)
    assert (model.dtype, model.device, model.threads, model.vocab_size) == ("f32", "cpu", 2, 256)
    assert model.isa == spikelet.cpu_features()["chosen"]
    assert model.path == golden / "spikegpt-tiny"
    assert model.state_bytes == 4 * 7 * 64 * 4
    assert model.weight_bytes > 4 * 64 * 64 * 4
    assert len(model.sha256) == 64
    assert repr(model) == "<spikelet.Model: spikegpt, 4 layers x 64, f32 on cpu>"
    assert model.generation_config == {}
    assert model.chat_template is None


def test_a_fingerprint_is_what_its_description_says(golden: Path) -> None:
    for name in ("spikegpt-tiny", "rwkv4-tiny"):
        digest = hashlib.sha256()
        for tensor, values in sorted(load_file(golden / name / "model.safetensors").items()):
            shape = ",".join(str(size) for size in values.shape)
            digest.update(f"{tensor}\0F32\0{shape}\0".encode() + values.tobytes()[:4096])
        assert spikelet.load(golden / name, threads=1).fingerprint == digest.hexdigest()


def test_its_configuration_is_frozen(model: spikelet.Model) -> None:
    config = model.config
    assert config.to_dict() == {
        "model_type": "spikegpt",
        "variant": "rwkv",
        "spike_embedding": True,
        "vocab_size": 256,
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 256,
        "context_length": 128,
        "layer_norm_epsilon": 1e-05,
    }
    assert (config.num_hidden_layers, config.hidden_size, config.variant) == (4, 64, "rwkv")
    assert (config.bos_token_id, config.eos_token_id, config.rescale_every) == (None, None, 0)
    with pytest.raises(AttributeError):
        config.vocab_size = 3  # type: ignore[misc]


def test_rwkv4_has_no_spikes(golden: Path) -> None:
    config = spikelet.load(golden / "rwkv4-tiny", threads=1).config
    assert (config.model_type, config.variant, config.spike_embedding) == ("rwkv4", None, False)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_formats(golden: Path, dtype: str) -> None:
    model = spikelet.load(golden / "spikegpt-tiny", dtype=dtype, threads=1)  # type: ignore[arg-type]
    assert model.dtype == dtype
    assert len(model.generate([1], max_new_tokens=4).run().ids) == 4


@pytest.fixture
def house(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one model and one run."""
    monkeypatch.setenv("SPIKELET_HOME", str(tmp_path))
    shutil.copytree(golden / "spikegpt-tiny", tmp_path / "models" / "tiny")
    shutil.copytree(golden / "rwkv4-tiny", tmp_path / "runs" / "first")
    (tmp_path / "runs" / "empty").mkdir()
    return tmp_path


def test_models_and_runs_have_names(house: Path) -> None:
    assert spikelet.home() == house
    found = spikelet.local_models()
    assert [name for name in found if name != "bundled"] == ["tiny", "first"]
    assert spikelet.load("tiny", threads=1).path == house / "models" / "tiny"
    assert spikelet.load("first", threads=1).config.model_type == "rwkv4"
    assert spikelet.find_model(house / "runs" / "first") == house / "runs" / "first"


def test_an_unknown_name_names_those_there_are(house: Path) -> None:
    with pytest.raises(
        spikelet.NotFoundError, match=r"tinny: no such .*known: .*tiny, first; searched"
    ) as caught:
        spikelet.load("tinny")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, spikelet.SpikeletError)


def test_home_follows_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKELET_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr("sys.platform", "linux")
    assert spikelet.home() == Path("/somewhere/spikelet")
    monkeypatch.setattr("sys.platform", "darwin")
    assert spikelet.home().parts[-3:] == ("Library", "Caches", "spikelet")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        # No machine has so many GPUs; most have no driver either.
        ({"device": "cuda:64"}, spikelet.DeviceError, "^device cuda:64: "),
        ({"device": "cuda:64"}, RuntimeError, "driver|GPU"),
        (
            {"device": "cuda", "dtype": "q4"},
            spikelet.UnsupportedError,
            '"q4" on cuda:0 is not supported: .*"q8"',
        ),
        ({"device": "cuda:x"}, spikelet.OptionError, '`device`: found "cuda:x", needed .*"cuda:N"'),
        ({"device": "tpu"}, spikelet.OptionError, '`device`: found "tpu", needed "auto", "cpu"'),
        ({"dtype": "int3"}, spikelet.OptionError, '`dtype`: found "int3", needed "auto", "f32"'),
        ({"threads": 0}, spikelet.OptionError, "`threads`: found 0, needed .* from 1 to 1024"),
        ({"threads": -1}, spikelet.OptionError, "`threads`: found -1"),
        ({"threads": 10**40}, spikelet.OptionError, r"`threads`: found more than 2\*\*127"),
        ({"rescale_every": -6}, spikelet.OptionError, "`rescale_every`: found -6"),
        ({"model_type": "llama"}, spikelet.UnsupportedError, "`llama` .*runs spikegpt and rwkv4"),
        ({"threads": "two"}, TypeError, "a whole number is needed, found str"),
        ({"threads": 1.5}, TypeError, "a whole number is needed, found float"),
        ({"speed": 11}, TypeError, "speed"),
    ],
)
def test_bad_options_are_refused(
    golden: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        spikelet.load(golden / "spikegpt-tiny", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "model_type `mamba` is not supported: unknown architecture"),
        ({"vocab_size": 300}, r"head\.weight|emb\.weight|vocab_size"),
        ({"flux": 1}, "unknown key `flux`"),
    ],
)
def test_bad_configurations_are_refused(
    golden: Path, tmp_path: Path, config: dict[str, object], message: str
) -> None:
    with pytest.raises(spikelet.SpikeletError, match=message) as caught:
        spikelet.load(edited(golden, tmp_path / "model", **config))
    assert isinstance(caught.value, ValueError)


def truncate(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def remove(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def break_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"top_p": 7}')


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncate, spikelet.FormatError, "model.safetensors"),
        (remove, spikelet.FormatError, "no weights"),
        (break_tokenizer, spikelet.TokenizerError, "tokenizer.json"),
        (break_generation_config, spikelet.FormatError, "key `top_p`: found 7"),
    ],
)
def test_damaged_folders_are_refused(
    golden: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    error: type[spikelet.SpikeletError],
    message: str,
) -> None:
    folder = edited(golden, tmp_path / "model")
    damage(folder)
    with pytest.raises(error, match=message):
        spikelet.load(folder)


def test_an_unknown_instruction_set_is_refused(
    golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIKELET_ISA", "mmx")
    with pytest.raises(spikelet.UnsupportedError, match='unknown instruction set "mmx"'):
        spikelet.load(golden / "spikegpt-tiny")
    features = spikelet.cpu_features()
    assert features["chosen"] is None
    assert "mmx" in features["reason"]


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIKELET_ISA", raising=False)
    features = spikelet.cpu_features()
    assert features["levels"][-1] == "portable"
    assert features["chosen"] == features["levels"][0]
    assert 1 <= features["physical_cores"] <= features["logical_cores"]
    monkeypatch.setenv("SPIKELET_ISA", "portable")
    assert spikelet.cpu_features()["chosen"] == "portable"


def test_rescaling_is_another_model(golden: Path) -> None:
    ids = list(range(40))
    usual, rescaled = (
        spikelet.load(golden / "spikegpt-tiny", threads=1, rescale_every=every) for every in (0, 2)
    )
    assert rescaled.config.rescale_every == 2
    a = usual.forward(ids, usual.new_state())
    b = rescaled.forward(ids, rescaled.new_state())
    assert (a != b).any()


def test_a_load_tells_how_far_it_is(golden: Path) -> None:
    calls: list[tuple[int, int]] = []
    spikelet.load(golden / "spikegpt-tiny", progress=lambda *call: calls.append(call))
    total = calls[0][1]
    assert calls == sorted(calls)
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    size = (golden / "spikegpt-tiny" / "model.safetensors").stat().st_size
    assert 0 < size - total < 20_000  # the header


def test_what_progress_raises_stops_the_load(golden: Path) -> None:
    def refuse(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spikelet.load(golden / "spikegpt-tiny", progress=refuse)
