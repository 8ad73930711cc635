"""Reading, splitting, caching and dealing of text."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from spikelet.training import DataError  # noqa: E402
from spikelet.training.data import (  # noqa: E402
    Streams,
    Windows,
    mask_tokens,
    pack,
    prepare,
    read_documents,
    split_documents,
    train_tokenizer,
    validation_batches,
    write_atomically,
)
from training.tiny import DOCUMENTS, text_file, tiny_data  # noqa: E402


def test_documents_are_separated_and_gz_is_unpacked(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("one\n<|endoftext|>\ntwo\nlines\n<|endoftext|>\n\n<|endoftext|>\n")
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress("drei\r\n<|endoftext|>\r\nvier ä".encode()))
    assert read_documents([plain, packed]) == ["one", "two\nlines", "drei", "vier ä"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "not UTF-8 at byte 0"), (b" \n", "holds no text"), (None, "no such text file")],
)
def test_bad_text_is_refused_by_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_documents([path])
    assert str(path) in str(caught.value)


def test_a_torn_gz_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(b"some text that goes on for a while")[:-6])
    with pytest.raises(DataError, match=r"text\.txt\.gz: cannot be read"):
        read_documents([path])


def test_every_nth_document_is_held_out() -> None:
    train, valid = split_documents(DOCUMENTS, 10)
    assert valid == [DOCUMENTS[i] for i in (9, 19, 29, 39)]
    assert sorted(train + valid) == sorted(DOCUMENTS)


def test_of_few_documents_the_end_is_held_out_at_a_line() -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    train, valid = split_documents([text], 20)
    assert train[0] + valid[0] == text
    assert train[0].endswith("\n")
    assert 0.02 < len(valid[0]) / len(text) < 0.1


def test_tokens_are_cached_and_count_what_they_say(tmp_path: Path) -> None:
    data, tokenizer = tiny_data(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    again, _ = tiny_data(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert np.array_equal(data.train, again.train)
    _, valid = split_documents(DOCUMENTS, 10)
    assert data.valid_sizes.documents == len(valid) == int((data.valid == data.end_of_text).sum())
    assert data.valid_sizes.bytes == sum(len(text.encode()) for text in valid)
    assert data.valid_sizes.tokens == len(data.valid)
    assert tokenizer.decode(data.valid.tolist()) == "".join(valid)
    assert data.train.dtype == np.uint16


def test_other_text_split_or_tokenizer_is_another_cache(tmp_path: Path) -> None:
    _, tokenizer = tiny_data(tmp_path)
    path, cache = text_file(tmp_path), tmp_path / "cache"
    prepare([path], tokenizer, cache, valid_every=5)
    prepare([path], train_tokenizer(DOCUMENTS, 280), cache, valid_every=10)
    path.write_text(path.read_text() + "more")
    prepare([path], tokenizer, cache, valid_every=10)
    assert len(list(cache.glob("*.json"))) == 4


def test_byte_level_tokenizer_gives_any_text_back() -> None:
    tokenizer = train_tokenizer(DOCUMENTS, 300)
    text = " déjà vu 🦀\n\ttab  two spaces\x00"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert tokenizer.get_vocab_size() == 300


def test_windows_cover_an_epoch_once_and_depend_on_seed_and_number_only() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    windows = Windows(stream, ctx_len=16, seed=3)
    epoch = [windows.batch(n, 1) for n in range(windows.per_epoch)]
    starts = sorted(int(inputs[0, 0]) for inputs, _ in epoch)
    assert np.array_equal(np.diff(starts), [16] * (windows.per_epoch - 1))
    for inputs, targets in epoch:
        assert np.array_equal(targets[0], inputs[0] + 1)
    # A fresh object asked for a later batch, across the border of an epoch.
    first = windows.per_epoch - 2
    inputs, _ = Windows(stream, 16, 3).batch(first, 4)
    one_by_one = [int(windows.batch(first + i, 1)[0][0, 0]) for i in range(4)]
    assert inputs[:, 0].tolist() == one_by_one
    assert Windows(stream, 16, 4).batch(0, 4)[0].tolist() != windows.batch(0, 4)[0].tolist()


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="at least 33"):
        Windows(np.arange(30, dtype=np.uint16), ctx_len=16, seed=0)


@pytest.mark.parametrize("length", [2, 17, 33, 40])
def test_validation_predicts_every_token_but_the_first_once(length: int) -> None:
    stream = np.arange(length, dtype=np.uint16)
    pairs = list(validation_batches(stream, ctx_len=16, batch_size=1))
    targets = np.concatenate([target.numpy().ravel() for _, target in pairs])
    assert targets.tolist() == list(range(1, length))
    for inputs, target in pairs:
        assert np.array_equal(inputs + 1, target)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(target: Path) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_of_carried_state_read_on_where_they_stopped() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    streams = Streams(stream, ctx_len=16, rows=4, seed=5)
    assert [streams.begins(4 * turn) for turn in range(streams.per_epoch + 2)] == [
        True, *[False] * (streams.per_epoch - 1), True, False,
    ]  # fmt: skip
    before: list[int] = []
    seen = set()
    for turn in range(streams.per_epoch):
        inputs, targets = streams.batch(4 * turn, 4)
        assert np.array_equal(targets, inputs + 1)
        if turn:
            assert inputs[:, 0].tolist() == before
        before = targets[:, -1].tolist()
        seen.update(targets.ravel().tolist())
    assert len(seen) == streams.per_epoch * 4 * 16 > 850
    # The same by any path: a fresh object, another cut into calls (as with several processes).
    first = 4 * (streams.per_epoch - 1)
    again = Streams(stream, 16, 4, 5)
    halves = [again.batch(first + i, 2)[0] for i in (0, 2, 4, 6)]
    whole = [streams.batch(first + i, 4)[0] for i in (0, 4)]
    assert np.array_equal(np.concatenate(halves), np.concatenate(whole))
    assert not np.array_equal(streams.batch(0, 4)[0], streams.batch(4 * streams.per_epoch, 4)[0])


def test_too_little_text_for_the_rows_is_refused() -> None:
    Streams(np.arange(4 * 31 + 1), ctx_len=16, rows=4, seed=0).batch(0, 4)
    with pytest.raises(DataError, match="4 rows that are read on need at least 125"):
        Streams(np.arange(4 * 31), ctx_len=16, rows=4, seed=0)


def test_t31_a_stream_is_packed_to_ctx_len_and_one_more(tmp_path: Path) -> None:
    data, tokenizer = tiny_data(tmp_path)
    rows = pack(data.valid, ctx_len=16)
    assert rows.shape == ((len(data.valid) - 1) // 16, 17)
    assert rows.dtype == torch.int64
    assert rows[:, 1:].ravel().tolist() == data.valid[1 : 16 * len(rows) + 1].tolist()
    assert rows[1:, 0].tolist() == rows[:-1, -1].tolist()
    assert tokenizer.decode(rows[0].tolist()) in "".join(DOCUMENTS[9::10])
    assert pack(list(range(17)), 16).tolist() == [list(range(17))]
    with pytest.raises(DataError, match="16 ids fill no row"):
        pack(list(range(16)), 16)


def test_t31_gaps_for_models_that_fill_them() -> None:
    ids = torch.randint(10, 300, (200, 100), generator=torch.Generator().manual_seed(1))
    ids[:, -5:] = 0  # padding
    random = torch.Generator().manual_seed(2)
    inputs, targets = mask_tokens(ids, mask_id=3, vocab_size=300, keep=[0], generator=random)
    chosen = targets != -100
    assert torch.equal(targets[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    assert not chosen[:, -5:].any()
    assert chosen[:, :-5].float().mean() == pytest.approx(0.15, abs=0.01)
    masked, same = inputs[chosen] == 3, inputs[chosen] == ids[chosen]
    assert masked.float().mean() == pytest.approx(0.8, abs=0.03)
    assert same.float().mean() == pytest.approx(0.1, abs=0.03)


def test_the_order_of_windows_never_changes() -> None:
    stream = np.arange(1000, dtype=np.uint16)
    # Golden: a run begun with an older version goes on with the text that it had not seen.
    expected = [876, 92, 860, 316, 223, 671, 511, 63]
    assert Windows(stream, 16, 3).batch(57, 8)[0][:, 0].tolist() == expected
