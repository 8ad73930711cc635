"""`inspect` and `convert`."""

from __future__ import annotations

from pathlib import Path

import pytest

import spikelet


def test_inspect_reads_facts_without_loading(golden: Path, bytes_folder: Path) -> None:
    facts = spikelet.inspect(golden / "spikegpt-tiny")
    assert facts["path"] == str(golden / "spikegpt-tiny")
    assert (facts["model_type"], facts["dtype"], facts["tokenizer"]) == ("spikegpt", "f32", None)
    assert facts["config"]["hidden_size"] == 64
    assert facts["num_parameters"] == sum(t["bytes"] // 4 for t in facts["tensors"])
    assert facts["file_bytes"] == (golden / "spikegpt-tiny" / "model.safetensors").stat().st_size
    assert facts["memory_bytes"]["f32"] > facts["memory_bytes"]["bf16"]
    assert facts["memory_bytes"]["bf16"] == facts["memory_bytes"]["f16"]
    assert facts["state_bytes"] == 7168
    names = [tensor["name"] for tensor in facts["tensors"]]
    assert "blocks.0.att.key.weight" in names
    assert facts["generation_config"] == {}
    assert facts["chat_template"] is None
    assert "byte" in spikelet.inspect(bytes_folder)["tokenizer"].lower()


def test_inspect_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(spikelet.FormatError, match="no weights"):
        spikelet.inspect(tmp_path)
    with pytest.raises(spikelet.NotFoundError, match="missing"):
        spikelet.inspect(tmp_path / "missing")


def test_a_converted_model_has_the_same_bits(
    golden: Path, model: spikelet.Model, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    spikelet.convert(
        golden / "spikegpt-tiny", tmp_path / "copy", progress=lambda *at: seen.append(at)
    )
    assert seen
    assert all(0 <= done <= total for done, total in seen)
    copy = spikelet.load(tmp_path / "copy", threads=1)
    assert copy.sha256 == model.sha256
    ids = [1, 2, 3]
    assert (copy.forward(ids, copy.new_state()) == model.forward(ids, model.new_state())).all()


def test_converting_narrows(golden: Path, tmp_path: Path) -> None:
    spikelet.convert(golden / "spikegpt-tiny", tmp_path, dtype="bf16")
    assert spikelet.inspect(tmp_path)["dtype"] == "bf16"
    assert spikelet.load(tmp_path, threads=1).dtype == "bf16"


def test_what_the_callback_raises_leaves_the_old_files(golden: Path, tmp_path: Path) -> None:
    spikelet.convert(golden / "spikegpt-tiny", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spikelet.convert(golden / "rwkv4-tiny", tmp_path, progress=stop)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("dtype", "error", "message"),
    [
        ("q4", spikelet.OptionError, '`dtype`: found "q4", .*`quantize` makes q8 and q4'),
        ("f64", spikelet.OptionError, '`dtype`: found "f64"'),
    ],
)
def test_converting_refuses_other_formats(
    golden: Path, tmp_path: Path, dtype: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        spikelet.convert(golden / "spikegpt-tiny", tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()


def test_converting_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(spikelet.NotFoundError, match="nothing"):
        spikelet.convert(tmp_path / "nothing", tmp_path / "new")
