"""Part `sanitize`: compute-sanitizer on everything a small model does.

On a machine whose GPU it cannot reach, or without it, the same program runs by itself.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial

from gpu_check.child import Context
from gpu_check.machine import GOLDEN
from gpu_check.modes import VARIABLE
from gpu_check.record import Put, Unit

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PROGRAM = """
import sys
import spikelet
path, device, dtypes, wide = sys.argv[1], sys.argv[2], sys.argv[3].split(","), int(sys.argv[4])
for dtype in dtypes:
    model = spikelet.load(path, device=device, dtype=dtype)
    state = model.new_state()
    for tokens in (1, 2, 3, 4, 8, wide):
        model.forward([i % 200 for i in range(tokens)], state)
    options = {"max_new_tokens": 6, "seed": 1, "ignore_eos": True}
    guess = spikelet.SpeculativeConfig("ngram", num_speculative_tokens=3)
    model.generate([1, 2, 3] * 3, speculative=guess, **options).run()
    model.generate_batch([[1, 2], [3], [4, 5, 6]] * 4, speculative="off", batch_size=12, **options)
print("went through")
"""
MOST = 70.0
"""Seconds of one run."""
SUMMARY = re.compile(r"(ERROR|RACECHECK|SYNCCHECK|INITCHECK) SUMMARY: (\d+) ")


def find_tool() -> str | None:
    """Return compute-sanitizer's path."""
    usual = "/usr/local/cuda/bin/compute-sanitizer"
    return shutil.which("compute-sanitizer") or (usual if os.path.exists(usual) else None)  # noqa: PTH110


def sanitize(context: Context, tool: str, dtypes: str, how: str, put: Put) -> None:
    """Run the program under one tool."""
    found = None if context.dry else find_tool()
    own = [sys.executable, "-c", PROGRAM, str(GOLDEN), context.device, dtypes]
    own.append("9" if context.dry else "70")
    environment = {**os.environ, VARIABLE: how}
    under = [found, "--tool", tool, "--error-exitcode", "9"] if found else []
    code, said = in_a_group([*under, *own], environment, min(MOST, context.left() - 2))
    counts = [int(count) for _, count in SUMMARY.findall(said)]
    through = "went through" in said
    row: dict[str, object] = {"tool": tool if found else "none", "went_through": through}
    row |= {"problems": sum(counts) if counts else None, "exit_code": code}
    clean = through and code == 0 and not any(counts)
    if "not supported" in said and not clean:
        put(**row, note="the tool does not reach this device", said=tail(said))
        return
    put(**row, passed=clean, **({} if clean else {"said": tail(said)}))


def in_a_group(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int, str]:
    """Run a program that starts others; none is left behind. Returns its code and what it said."""
    with tempfile.TemporaryFile() as log:
        program = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code: int | None = program.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(program.pid, signal.SIGKILL)
            program.wait(5)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if code is None:
        raise RuntimeError(f"{tail(said)}\nmore than {seconds:.0f} s")
    return code, said


def tail(text: str) -> str:
    """Return the end of what a program said."""
    return text[-3000:]


def units(context: Context) -> list[Unit]:
    """Return what this part does: launch by launch, then a whole pass in one launch.

    Under a tool everything is many times as slow, and blocks may give up waiting for each other:
    that is then an error of the engine, not a finding of the tool.
    """
    found = []
    for how, tools in (("chain", TOOLS), ("cooperative", TOOLS[:2])):
        for tool in tools:
            dtypes = "f32,q8" if tool in TOOLS[:2] and not context.dry else "f32"
            work = partial(sanitize, context, tool, dtypes, how)
            found.append(Unit(f"{tool}, {how}", work, 75, 8))
    return found
