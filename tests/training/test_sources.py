"""Text from files, lists, data set objects and names, to the same streams of ids."""

from __future__ import annotations

import gzip
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from spikelet.training import DataError, TokenData
from spikelet.training.data import as_tokenizer, load_tokens, train_tokenizer
from training.duck import DuckDataset, RowDataset
from training.tiny import DOCUMENTS, text_file

ROWS = [*DOCUMENTS, "", "  "]  # empty rows are no documents


def load(source: object, folder: Path, **options: Any) -> TokenData:
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    return load_tokens(source, tokenizer, cache=folder / "cache", valid_every=10, **options)


def same(one: TokenData, other: TokenData) -> bool:
    return (
        np.array_equal(one.train, other.train)
        and np.array_equal(one.valid, other.valid)
        and (one.train_sizes, one.valid_sizes) == (other.train_sizes, other.valid_sizes)
    )


def jsonl(folder: Path) -> Path:
    path = folder / "stories.jsonl.gz"
    lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in ROWS)
    path.write_bytes(gzip.compress(lines.encode()))
    return path


def test_d01_every_kind_of_source_gives_the_same_streams(tmp_path: Path) -> None:
    path = text_file(tmp_path)
    expected = load(path, tmp_path)
    sources = {
        "path as text": str(path),
        "paths": [path],
        "paths as text": [str(path)],
        "jsonl": jsonl(tmp_path),
        "list": ROWS,
        "rows": [{"text": text} for text in ROWS],
        "column": {"text": ROWS},
        "data set": DuckDataset(ROWS),
        "rows by number": RowDataset(ROWS),
        "splits": {"train": DuckDataset(ROWS), "test": DuckDataset(["x"])},
        "streams": expected,
    }
    for name, source in sources.items():
        assert same(load(source, tmp_path), expected), name


def test_d01_a_set_of_splits_brings_its_own_validation(tmp_path: Path) -> None:
    splits = {"train": DuckDataset(DOCUMENTS[:30]), "validation": DuckDataset(DOCUMENTS[30:])}
    data = load(splits, tmp_path)
    assert (data.train_sizes.documents, data.valid_sizes.documents) == (30, 10)
    given = load(DOCUMENTS[:30], tmp_path, val_source=DOCUMENTS[30:])
    assert same(data, given)
    assert same(
        load(load(DOCUMENTS[:30], tmp_path), tmp_path, val_source=DOCUMENTS[30:]), given
    ) is (
        False  # its training part lacks what was held out ...
    )
    whole = load_tokens(DOCUMENTS[:30], tokenizer(), cache=tmp_path, valid_every=0)
    assert len(whole.valid) == 0
    assert same(load(whole, tmp_path, val_source=DOCUMENTS[30:]), given)


def tokenizer() -> object:
    return train_tokenizer(DOCUMENTS, 300)


def test_single_lines_are_lines_of_one_text(tmp_path: Path) -> None:
    lines = [" = Title = \n", "", " One line of text .\n", " Another .\n"] * 2000
    data = load(DuckDataset(lines), tmp_path)
    assert int((data.train == data.end_of_text).sum()) == 0
    text = train_tokenizer(DOCUMENTS, 300).decode(data.train.tolist())
    assert text.startswith(" = Title = \n\n One line of text .\n Another .\n = Title")
    assert data.train_sizes.bytes + data.valid_sizes.bytes == sum(len(t or "\n") for t in lines)
    # Documents that end in a line end are documents all the same.
    files = load(["def f():\n    pass\n", *DOCUMENTS], tmp_path)
    assert int((files.train == files.end_of_text).sum()) == files.train_sizes.documents


def test_bytes_reads_files_as_they_are(tmp_path: Path) -> None:
    raw = bytes(range(256)) * 40 + b"\nend\n"
    path = tmp_path / "blob.gz"
    path.write_bytes(gzip.compress(raw))
    data = load_tokens(path, "bytes", cache=tmp_path / "cache", valid_every=10)
    assert bytes(np.concatenate([data.train, data.valid]).astype(np.uint8)) == raw
    assert 0.08 < len(data.valid) / len(raw) < 0.13
    assert data.valid_sizes.bytes == data.valid_sizes.tokens == len(data.valid)
    assert (data.vocab_size, data.train.dtype) == (256, np.uint16)
    texts = load_tokens(DOCUMENTS, "bytes", cache=tmp_path / "cache", valid_every=0)
    assert bytes(texts.train.astype(np.uint8)) == "".join(t + "\0" for t in DOCUMENTS).encode()


def test_text_is_tokenised_once_and_torn_streams_again(tmp_path: Path) -> None:
    kind = as_tokenizer(tokenizer())
    first = load_tokens(DOCUMENTS, kind, cache=tmp_path, valid_every=10)
    (path,) = tmp_path.glob("*.train.bin")
    before = path.stat().st_mtime_ns
    assert same(load_tokens(DOCUMENTS, kind, cache=tmp_path, valid_every=10), first)
    assert path.stat().st_mtime_ns == before
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    assert same(load_tokens(DOCUMENTS, kind, cache=tmp_path, valid_every=10), first)
    assert path.read_bytes() == content
    assert isinstance(first.train, np.memmap)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DuckDataset(["x"], "content"), r"columns \['content'\]; needed is 'text'"),
        ([{"content": "x"}], r"list, row 0: holds keys \['content'\]"),
        ([1], "list, row 0: holds int"),
        (["", " "], "holds no text"),
        ([], "holds no text"),
        (7, "int is no source of text"),
        ({"test": ["x"]}, "dict is no source of text"),
        ("no-such.txt", "no-such.txt: no such text file"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(source, tmp_path)


def test_a_bad_line_of_jsonl_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for line, message in (("{", "not JSON"), ('{"a": 1}', r"holds keys \['a'\]")):
        path.write_text(f'{{"text": "good"}}\n\n{line}\n')
        with pytest.raises(DataError, match=rf"x\.jsonl, line 3: {message}"):
            load(path, tmp_path)


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: object) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_d04_data_sets_by_name_come_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(*words: object) -> object:
        asked.append(words)
        return {"train": DuckDataset(DOCUMENTS)}

    fake_datasets(monkeypatch, load_dataset)
    expected = load(DOCUMENTS, tmp_path)
    assert same(load("Salesforce/wikitext:wikitext-103-raw-v1", tmp_path), expected)
    assert same(load("wikitext", tmp_path), expected)
    assert asked == [("Salesforce/wikitext", "wikitext-103-raw-v1"), ("wikitext", None)]


def test_d04_offline_and_missing_packages_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: object) -> object:
        raise ConnectionError("couldn't reach the hub")

    fake_datasets(monkeypatch, offline)
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    with pytest.raises(DataError, match=r"couldn't reach the hub.*HF_ENDPOINT \(now https://mir"):
        load("wikitext", tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"'wikitext': there is no such file.*pip install datasets"):
        load("wikitext", tmp_path)
