"""Sessions: feeding, going on, forks, files."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import spikelet


@pytest.mark.parametrize("folder", ["spikegpt-tiny", "rwkv4-tiny"])
def test_a_session_goes_on_as_one_text(golden: Path, folder: str) -> None:
    """Fed in pieces and generated in pieces: the tokens are those of one call."""
    model = spikelet.load(golden / folder, threads=1)
    prompt = [(11 * i) % 256 for i in range(530)]
    whole = model.generate(prompt, max_new_tokens=30, seed=4).run().ids
    session = model.session()
    assert session.feed(prompt[:520]) == 520
    assert session.feed([]) == 0
    assert session.feed(prompt[520:529]) == 9
    first = session.generate(prompt[529:], max_new_tokens=10, seed=4).run().ids
    second = session.generate(max_new_tokens=20, seed=4).run().ids
    assert first + second == whole
    assert session.num_tokens == 560


def test_a_session_reads_nothing_twice(writer: spikelet.Model) -> None:
    session = writer.session()
    session.feed("x" * 1000)
    done = session.generate("y", max_new_tokens=3, seed=1).run()
    assert done.stats.num_prompt_tokens == 2, "the last token of what was fed, and the new one"


def test_forks_interleaved_give_what_each_gives_alone(writer: spikelet.Model) -> None:
    root = writer.session()
    root.feed("the beginning")
    alone = [root.fork().generate(p, seed=2, max_new_tokens=20).run().ids for p in ("A", "B")]
    sessions = [root.fork(), root.fork()]
    together = [
        s.generate(p, seed=2, max_new_tokens=20) for s, p in zip(sessions, "AB", strict=True)
    ]
    for _ in range(20):
        for generation in together:
            next(generation)
    assert [generation.ids for generation in together] == alone
    assert root.num_tokens == 13
    more = [s.generate(seed=3, max_new_tokens=5).run().ids for s in sessions]
    assert more[0] != more[1]


def test_a_closed_generation_is_remembered_as_far_as_it_got(writer: spikelet.Model) -> None:
    session, other = writer.session(), writer.session()
    with session.generate("abc", seed=1, max_new_tokens=50) as generation:
        for _ in range(7):
            next(generation)
    assert session.num_tokens == 10
    other.generate("abc", seed=1, max_new_tokens=7).run()
    after = [s.generate(seed=2, max_new_tokens=9).run().ids for s in (session, other)]
    assert after[0] == after[1]


def test_a_dropped_generation_hands_its_state_back(writer: spikelet.Model) -> None:
    session = writer.session()
    for index, _ in enumerate(session.generate("abc", seed=1, max_new_tokens=50)):
        if index == 4:
            break
    gc.collect()
    assert session.num_tokens == 8
    session.fork()


def test_while_it_generates(writer: spikelet.Model, tmp_path: Path) -> None:
    session = writer.session()
    session.feed("abc")
    first = session.generate(seed=1, max_new_tokens=50)
    next(first)
    assert session.num_tokens == 3
    for refused in (session.fork, lambda: session.save(tmp_path / "s")):
        with pytest.raises(spikelet.StateError, match="the session is generating: finish or close"):
            refused()
    second = session.generate("d", seed=1, max_new_tokens=3)
    assert first.finish_reason == "cancelled"
    assert second.run().finish_reason == "length"
    assert session.num_tokens == 3 + 1 + 1 + 3
    third = session.generate(seed=1, max_new_tokens=50)
    next(third)
    session.reset()
    assert third.finish_reason == "cancelled"
    assert session.num_tokens == 0


def test_a_session_that_has_read_nothing(writer: spikelet.Model, model: spikelet.Model) -> None:
    assert writer.session().generate(seed=1, max_new_tokens=5).run().ids == (
        writer.generate("", seed=1, max_new_tokens=5).run().ids
    )
    with pytest.raises(spikelet.OptionError, match=r"`prompt`.*at least one token"):
        model.session().generate()


def test_bad_food_is_refused_and_the_session_stays(writer: spikelet.Model) -> None:
    session = writer.session()
    session.feed("abc")
    with pytest.raises(spikelet.OptionError, match="token id 300 is outside"):
        session.feed([1, 300])
    with pytest.raises(TypeError, match="found NoneType"):
        session.feed(None)  # type: ignore[arg-type]
    assert session.num_tokens == 3
    assert repr(session) == "<spikelet.Session: 3 tokens>"
    assert session.model.sha256 == writer.sha256


SCRIPT = """
import json, sys
import spikelet
model = spikelet.load(sys.argv[1], threads=2)
session = model.load_session(sys.argv[2])
done = session.generate(" and on", seed=7, max_new_tokens=40, logprobs=1).run()
print(json.dumps([done.ids, [t.logprob for t in done.tokens], session.num_tokens]))
"""


def test_a_saved_session_goes_on_in_another_process_with_the_same_bits(
    writer: spikelet.Model, bytes_folder: Path, tmp_path: Path
) -> None:
    session = writer.session()
    session.feed("what was said before 😀")
    session.generate("?", seed=1, max_new_tokens=10).run()
    path = tmp_path / "talk.safetensors"
    session.save(path)
    here = session.generate(" and on", seed=7, max_new_tokens=40, logprobs=1).run()
    command = [sys.executable, "-c", SCRIPT, str(bytes_folder), str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == [
        here.ids,
        [token.logprob for token in here.tokens],
        session.num_tokens,
    ]


def test_the_file_is_safetensors_and_tells_what_it_is(
    writer: spikelet.Model, tmp_path: Path
) -> None:
    session = writer.session()
    session.feed("abcd")
    session.save(tmp_path / "s.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"], (
        "no temporary file stays"
    )
    arrays = load_file(tmp_path / "s.safetensors")
    state = writer.new_state()
    writer.forward(list(b"abc"), state)
    for name, values in state.to_numpy().items():
        assert (arrays[name] == values).all()
    with safe_open(tmp_path / "s.safetensors", framework="numpy") as file:
        notes = file.metadata()
    assert notes == {
        "format": "spikelet-session-1",
        "model_sha256": writer.sha256,
        "dtype": "f32",
        "rescale_every": "0",
        "position": "3",
        "pending": str(ord("d")),
    }


def test_an_empty_session_can_be_saved(writer: spikelet.Model, tmp_path: Path) -> None:
    writer.session().save(tmp_path / "empty")
    session = writer.load_session(tmp_path / "empty")
    assert session.num_tokens == 0
    assert session.generate("a", seed=1, max_new_tokens=3).run().ids == (
        writer.generate("a", seed=1, max_new_tokens=3).run().ids
    )


def test_a_session_of_another_model_is_refused(
    writer: spikelet.Model, golden: Path, bytes_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    session = writer.session()
    session.feed("abc")
    session.save(path)
    other = spikelet.load(golden / "spikegpt-tiny-realemb", threads=1)
    with pytest.raises(spikelet.StateError, match=rf"{writer.sha256}.*{other.sha256}"):
        other.load_session(path)
    narrow = spikelet.load(bytes_folder, dtype="bf16", threads=1)
    with pytest.raises(spikelet.StateError, match=r"saved with dtype f32, .* loaded with bf16"):
        narrow.load_session(path)
    rescaled = spikelet.load(bytes_folder, rescale_every=2, threads=1)
    with pytest.raises(spikelet.StateError, match=r"saved with rescale_every 0, .* with 2"):
        rescaled.load_session(path)


def test_damaged_files_are_refused_and_the_session_stays(
    writer: spikelet.Model, golden: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    session = writer.session()
    session.feed("abc")
    session.save(path)
    good, arrays = path.read_bytes(), load_file(path)
    with safe_open(path, framework="numpy") as file:
        notes = file.metadata()

    def refused(error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            session.load(path)
        assert session.num_tokens == 3

    path.write_bytes(good[: len(good) // 2])
    refused(spikelet.FormatError, str(path))
    path.write_bytes(b"hello")
    refused(spikelet.FormatError, str(path))
    save_file(arrays, path, {**notes, "pending": "900"})
    refused(spikelet.OptionError, "token id 900 is outside")
    save_file(arrays, path, {**notes, "position": "many"})
    refused(spikelet.FormatError, 'note `position`: found "many"')
    save_file(arrays | {"blocks.1.att.aa": np.zeros(3, dtype=np.float32)}, path, notes)
    refused(spikelet.FormatError, r"`blocks.1.att.aa`: found F32 \[3\], needed F32 \[64\]")
    save_file(arrays | {"blocks.1.att.aa": np.full(64, np.nan, dtype=np.float32)}, path, notes)
    refused(spikelet.FormatError, "`blocks.1.att.aa`: element 0 is NaN")
    path.write_bytes((golden / "spikegpt-tiny" / "model.safetensors").read_bytes())
    refused(spikelet.FormatError, "is no session: found format nothing, needed spikelet-session-1")
    path.unlink()
    refused(spikelet.NotFoundError, "No such file")


def test_a_failed_save_leaves_the_old_file(writer: spikelet.Model, tmp_path: Path) -> None:
    session = writer.session()
    session.feed("abc")
    with pytest.raises(spikelet.NotFoundError, match="No such file"):
        session.save(tmp_path / "missing" / "s")
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="Not a directory") as caught:
        session.save(tmp_path / "file" / "s")
    assert isinstance(caught.value, spikelet.FileError)
    assert (tmp_path / "file").read_text() == "old"
