"""`forward`, `score`, `trace` and states."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import spikelet

FOLDERS = ["spikegpt-tiny", "spikegpt-tiny-ffnpre", "spikegpt-tiny-realemb", "rwkv4-tiny"]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("chunk", [1, 7, 96])
def test_logits_equal_the_golden_ones(golden: Path, name: str, chunk: int) -> None:
    model = spikelet.load(golden / name, threads=1)
    expected = load_file(golden / name / "expected.safetensors")
    ids = expected["ids"]
    state = model.new_state()
    pieces = [model.forward(ids[at : at + chunk], state) for at in range(0, len(ids), chunk)]
    logits = np.concatenate(pieces)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected["logits"]).max() < (5e-5 if "spikegpt" in name else 1e-4)
    assert state.position == len(ids)
    whole = model.forward(ids, model.new_state())
    assert (logits == whole).all(), "the result depends on how the text is cut"


@pytest.mark.parametrize("name", ["spikegpt-tiny", "rwkv4-tiny"])
def test_only_the_last_logits(golden: Path, name: str) -> None:
    model = spikelet.load(golden / name, threads=1)
    ids = [i % 256 for i in range(700)]
    some, more = model.new_state(), model.new_state()
    last = model.forward(ids, some, all_logits=False)
    assert last.shape == (256,)
    assert (last == model.forward(ids, more)[-1]).all()
    for field, values in some.to_numpy().items():
        assert (values == more.to_numpy()[field]).all()


def test_ids_may_be_anything_that_can_be_indexed(model: spikelet.Model) -> None:
    wanted = model.forward([3, 4, 5], model.new_state())
    for ids in ((3, 4, 5), range(3, 6), np.array([3, 4, 5]), np.array([3, 4, 5], dtype=np.uint8)):
        assert (model.forward(ids, model.new_state()) == wanted).all()


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([], spikelet.OptionError, "`ids`: found no tokens, needed at least one token"),
        ([0, 256], spikelet.OptionError, "token id 256 is outside the model's vocabulary of 256"),
        ([-1], spikelet.OptionError, "`ids`: found -1, needed token ids from 0 to 255"),
        ([2**200], spikelet.OptionError, r"`ids`: found more than 2\*\*127"),
        ([-(2**200)], spikelet.OptionError, r"`ids`: found less than -2\*\*127"),
        ([1.0], TypeError, "a whole number is needed, found float"),
        (["a"], TypeError, "a whole number is needed, found str"),
        ("text", TypeError, "a sequence of token ids is needed, found str"),
        (b"bytes", TypeError, "a sequence of token ids is needed, found bytes"),
        ({1, 2}, TypeError, "a sequence of token ids is needed, found set"),
        (7, TypeError, "a sequence of token ids is needed, found int"),
        (np.zeros((2, 2), dtype=int), TypeError, "a whole number is needed"),
    ],
)
def test_bad_ids_are_refused_and_the_state_stays(
    model: spikelet.Model, ids: object, error: type[Exception], message: str
) -> None:
    state = model.new_state()
    model.forward([9], state)
    before = state.to_numpy()
    with pytest.raises(error, match=message):
        model.forward(ids, state)  # type: ignore[arg-type]
    assert state.position == 1
    assert all((before[name] == values).all() for name, values in state.to_numpy().items())


def test_copies_of_a_state_go_their_own_ways(model: spikelet.Model) -> None:
    state = model.new_state()
    model.forward([1, 2, 3], state)
    other = state.copy()
    a = model.forward([4, 5], state)
    model.forward([200], state)
    assert other.position == 3
    assert (model.forward([4, 5], other) == a).all()


def test_a_state_as_arrays(model: spikelet.Model) -> None:
    state = model.new_state()
    model.forward([1, 2, 3], state)
    arrays = state.to_numpy()
    assert sum(values.nbytes for values in arrays.values()) == model.state_bytes
    assert {values.dtype for values in arrays.values()} == {np.dtype(np.float32)}
    again = model.new_state(arrays)
    assert (model.forward([4], again) == model.forward([4], state)).all()
    arrays["blocks.0.att.shift"][:] = 9
    assert (state.to_numpy()["blocks.0.att.shift"] != 9).any(), "to_numpy gives a copy"


def test_arrays_that_do_not_fit_are_refused(model: spikelet.Model) -> None:
    good = model.new_state().to_numpy()
    name = "blocks.0.att.shift"
    missing = {key: values for key, values in good.items() if key != name}
    with pytest.raises(spikelet.StateError, match=f"array `{name}` is missing"):
        model.new_state(missing)
    with pytest.raises(spikelet.StateError, match=f"array `{name}`: found 3 elements, needed 64"):
        model.new_state(good | {name: np.zeros(3, dtype=np.float32)})
    with pytest.raises(spikelet.StateError, match="NaN"):
        model.new_state(good | {name: np.full(64, np.nan, dtype=np.float32)})
    with pytest.raises(spikelet.StateError, match="found 29 arrays, needed 28"):
        model.new_state(good | {"more": np.zeros(3, dtype=np.float32)})
    with pytest.raises(TypeError):
        model.new_state({**good, name: np.zeros(64)})  # type: ignore[dict-item]


def test_a_state_of_another_model_is_refused(model: spikelet.Model, golden: Path) -> None:
    other = spikelet.load(golden / "spikegpt-tiny-realemb", threads=1)
    with pytest.raises(spikelet.StateError, match="belongs to another model"):
        other.forward([1], model.new_state())


def test_a_state_serves_one_call_at_a_time(model: spikelet.Model) -> None:
    """Two threads on one state: every call that is not refused moves it on by all its tokens."""
    state, errors, done = model.new_state(), [], []

    def work() -> None:
        for _ in range(50):
            try:
                model.forward([1, 2, 3], state)
                done.append(3)
            except spikelet.StateError as error:
                errors.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.position == sum(done)
    assert set(errors) <= {"state: it is in use by another call"}


@pytest.mark.parametrize("name", ["spikegpt-tiny", "rwkv4-tiny"])
def test_scores_are_the_log_softmax_of_the_logits(golden: Path, name: str) -> None:
    model = spikelet.load(golden / name, threads=1)
    ids = load_file(golden / name / "expected.safetensors")["ids"]
    scores = model.score(ids)
    assert scores.dtype == np.float32
    assert scores.shape == (len(ids) - 1,)
    wanted = log_softmax(model.forward(ids, model.new_state()))
    assert np.abs(scores - wanted[np.arange(len(ids) - 1), ids[1:]]).max() < 1e-5


def test_scoring_in_pieces_gives_the_same_bits(model: spikelet.Model) -> None:
    ids = [(i * i) % 256 for i in range(300)]
    state = model.new_state()
    pieces = [model.score(ids[at : at + 101], state) for at in range(0, 299, 100)]
    assert (np.concatenate(pieces) == model.score(ids)).all()
    assert state.position == 299


def test_scoring_text(writer: spikelet.Model) -> None:
    assert (writer.score("héllo") == writer.score(list("héllo".encode()))).all()
    assert writer.score("a").shape == (0,)
    with pytest.raises(spikelet.OptionError, match="`prompt`: found no tokens"):
        writer.score("")


@pytest.mark.parametrize("name", FOLDERS[:3])
def test_traces_equal_the_golden_spikes(golden: Path, name: str) -> None:
    model = spikelet.load(golden / name, threads=1)
    expected = load_file(golden / name / "expected.safetensors")
    trace = model.trace(expected["ids"])
    assert trace.spikes.shape == trace.membranes.shape == (4, 2, 96, 64)
    assert trace.spikes.dtype == np.uint8
    assert trace.membranes.dtype == np.float32
    for layer in range(4):
        for site in (0, 1):
            wanted = expected[f"spikes.{layer}.lif{site + 1}"]
            assert (trace.spikes[layer, site] == wanted).all()
    assert np.abs(trace.membranes[:, :, -1] - expected["membrane_last"]).max() < 1e-4
    assert np.abs(trace.firing_rates - expected["rates"]).max() < 1e-6
    assert trace.relu2_density.shape == (4, 96)
    assert 0 < trace.relu2_density.min() <= trace.relu2_density.max() < 1
    assert repr(trace) == "<spikelet.Trace: 96 tokens>"


def test_a_trace_goes_on_from_a_state(model: spikelet.Model) -> None:
    ids = [(i * 31) % 256 for i in range(600)]
    whole = model.trace(ids)
    state = model.new_state()
    first, second = model.trace(ids[:550], state), model.trace(ids[550:], state)
    assert (np.concatenate([first.spikes, second.spikes], axis=2) == whole.spikes).all()
    assert state.position == 600


def test_a_model_without_neurons_has_no_spikes(golden: Path) -> None:
    trace = spikelet.load(golden / "rwkv4-tiny", threads=1).trace([1, 2, 3])
    assert trace.spikes.shape[0] == trace.membranes.shape[0] == trace.firing_rates.shape[0] == 0
    assert trace.relu2_density.shape[1] == 3
