"""Does this installation compute what it should, on every instruction set that the CPU has?

A model folder may hold `selftest.json`: ids, and a digest of the logits that they give. The engine
promises the same bits on every machine, so the comparison is exact. An instruction set is chosen
once in a process; each is therefore tried in a process of its own, which also means that one that
crashes is reported like one that computes wrongly.

`python -m spikelet.cli.selftest MODEL` (ids as JSON on standard input) is such a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

FILE_NAME = "selftest.json"
# Any ids will do; these are used for models that have no such file.
FALLBACK_IDS = [(7 * i * i + 3 * i + 1) % 256 for i in range(48)]
_TIMEOUT = 300
Dtype: TypeAlias = Literal["auto", "f32", "bf16", "f16"]


@dataclass(frozen=True)
class Outcome:
    """What one instruction set, or GPU, made of the ids."""

    level: str
    ok: bool
    detail: str
    digest: str | None = None


def compute(path: str | Path, ids: list[int], dtype: Dtype = "auto") -> dict[str, Any]:
    """Logits of the ids in one pass, and token by token with one thread.

    As digests, and a few values that people can compare.
    """
    import numpy as np

    import spikelet

    model = spikelet.load(path, dtype=dtype)
    ids = [token % model.vocab_size for token in ids]
    whole = model.forward(ids, model.new_state())
    single = spikelet.load(path, dtype=dtype, threads=1)
    state = single.new_state()
    steps = np.concatenate([single.forward([token], state) for token in ids])
    return {
        "isa": model.isa,
        "dtype": model.dtype,
        "ids": ids,
        "logits_sha256": _digest(whole),
        "steps_sha256": _digest(steps),
        "last_logits": [float(value).hex() for value in whole[-1, :8]],
    }


def _digest(logits: Any) -> str:
    return hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()


def run_levels(path: Path, levels: list[str], devices: Sequence[str] = ()) -> list[Outcome]:
    """Tries every instruction set, and GPUs such as `cuda:0`.

    The stored answer is the judge, or else the portable code.
    """
    stored = path / FILE_NAME
    expected: dict[str, Any] | None = None
    if stored.is_file():
        expected = json.loads(stored.read_text(encoding="utf-8"))
    ids = expected["ids"] if expected else FALLBACK_IDS
    outcomes: list[Outcome] = []
    reference = expected["logits_sha256"] if expected else None
    # The last level is the portable one, whose code is the same on every machine.
    for level in reversed(levels):
        outcome = _run_level(path, level, ids, expected, reference)
        reference = reference or outcome.digest
        outcomes.insert(0, outcome)
    on_gpus = [_run_level(path, name, ids, expected, reference) for name in devices]
    return outcomes + on_gpus


def _run_level(
    path: Path, level: str, ids: list[int], expected: dict[str, Any] | None, reference: str | None
) -> Outcome:
    dtype = expected["dtype"] if expected else "auto"
    where = (
        {"SPIKELET_DEVICE": level}
        if level.startswith("cuda")
        else {"SPIKELET_DEVICE": "cpu", "SPIKELET_ISA": level}
    )
    process = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", "spikelet.cli.selftest", str(path), dtype],
        input=json.dumps(ids),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **where},
        timeout=_TIMEOUT,
        check=False,
    )
    if process.returncode < 0:
        name = signal.Signals(-process.returncode).name
        return Outcome(level, False, f"the process was ended by {name}")
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or ["no message"]
        return Outcome(level, False, lines[-1])
    found = json.loads(process.stdout)
    digest = found["logits_sha256"]
    if found["steps_sha256"] != digest:
        return Outcome(level, False, "logits of one pass and of single tokens differ", digest)
    if reference is not None and digest != reference:
        text = f"logits differ: found {_readable(found)}"
        if expected:
            text += f", needed {_readable(expected)}"
        return Outcome(level, False, text, digest)
    count = len(found["ids"])
    if expected:
        text = f"{count} tokens: the stored logits, bit for bit"
    elif reference:
        text = f"{count} tokens: same bits as the portable code"
    else:
        text = (
            f"{count} tokens: same bits in one pass and one by one (nothing stored to compare with)"
        )
    return Outcome(level, True, text, digest)


def _readable(answer: dict[str, Any]) -> str:
    return ", ".join(f"{float.fromhex(value):.6g}" for value in answer["last_logits"][:3]) + ", ..."


if __name__ == "__main__":
    print(json.dumps(compute(sys.argv[1], json.load(sys.stdin), cast(Dtype, sys.argv[2]))))
