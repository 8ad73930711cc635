"""What a part finds, on disk after every row, and the clock that ends what takes too long.

Units that ran are not run again: a part whose process ended is begun anew with the same file.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AGAIN, HUNG = 75, 70
"""Exit codes of a child: begin anew behind the last unit; a unit took too long."""
ROUNDED = 6

Row = dict[str, Any]
Put = Callable[..., None]
"""Takes the fields of a row."""


@dataclass(frozen=True)
class Unit:
    """Something that can fail, hang or crash by itself."""

    name: str
    work: Callable[[Put], None]
    seconds: float = 60.0
    """After so many it is ended."""
    needs: float = 3.0
    """With less time left it is not begun."""


@dataclass
class Record:
    """The file of a part."""

    file: Path
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path, part: str) -> Record:
        """Go on with a file, or begin one."""
        if file.exists():
            return cls(file, json.loads(file.read_text()))
        return cls(file, {"part": part, "machine": {}, "finished": False, "units": {}})

    @property
    def units(self) -> dict[str, Row]:
        """All units that were begun or left out, by name."""
        found: dict[str, Row] = self.data["units"]
        return found

    def save(self) -> None:
        """Write the file under another name and rename it."""
        unfinished = self.file.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(rounded(self.data), indent=1) + "\n")
        unfinished.replace(self.file)

    def running(self) -> str | None:
        """Return the unit that was begun and not ended."""
        for name, unit in self.units.items():
            if unit["state"] == "running":
                return name
        return None

    def begin(self, name: str) -> None:
        """Begin a unit."""
        self.units[name] = {"state": "running", "rows": []}
        self.save()

    def put(self, name: str, row: Row) -> None:
        """Add a row to a unit."""
        self.units[name]["rows"].append(row)
        self.save()
        words = (f"{key}={brief(value)}" for key, value in row.items())
        print(f"  {name}: {', '.join(words)}", flush=True)

    def end(self, name: str, state: str, seconds: float, error: str | None = None) -> None:
        """End a unit as `done`, `failed`, `died` or `left out`."""
        unit = self.units.setdefault(name, {"rows": []})
        unit |= {"state": state, "seconds": seconds}
        if error:
            unit["error"] = error
            print(f"  {name}: {state}: {error.splitlines()[-1]}", flush=True)
        self.save()

    def died(self, how: str, said: str) -> None:
        """Note that the process ended, and blame the unit that ran."""
        name = self.running()
        error = f"{said.strip()}\n{how}".strip()
        if name is not None:
            self.end(name, "died", float("nan"), error)
        else:
            self.data["error"] = error
            self.save()


def rounded(value: Any) -> Any:
    """Give numbers so many digits, and NaN as None: JSON has none."""
    if isinstance(value, float):
        return float(f"{value:.{ROUNDED}g}") if value == value and abs(value) < 1e300 else None
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return value


def brief(value: object) -> str:
    """Give a value as a line of the log has it."""
    if isinstance(value, dict) and "median" in value:
        return f"{value['median']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) < 160 else f"{text[:157]}..."


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """End the process with `HUNG` and the stacks of its threads after so many seconds."""

    def bark() -> None:
        print(f"more than {seconds:.0f} s", file=sys.stderr)
        faulthandler.dump_traceback(sys.stderr)
        sys.stderr.flush()
        os._exit(HUNG)

    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_lost(error: BaseException) -> bool:
    """Say whether the process may be of no use after this error."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"DeviceError", "AcceleratorError", "CudaError"}) or "CUDA" in str(error)


def run_units(units: Sequence[Unit], record: Record, seconds: float) -> int:
    """Run what was not run yet. Returns the exit code of the process."""
    end = time.monotonic() + seconds
    for unit in units:
        if unit.name in record.units:
            continue
        left = end - time.monotonic()
        if left < unit.needs:
            record.end(unit.name, "left out", 0.0, f"{left:.0f} s left, {unit.needs:.0f} needed")
            continue
        record.begin(unit.name)
        begun = time.monotonic()

        def put(unit: Unit = unit, **row: Any) -> None:
            record.put(unit.name, row)

        try:
            with watchdog(min(unit.seconds, left + 5)):
                unit.work(put)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next unit runs
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = (
                f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else ""
            )
            text = f"{line}: {type(error).__name__}: {error}"
            record.end(unit.name, "failed", time.monotonic() - begun, text)
            if is_lost(error):
                return AGAIN
        else:
            record.end(unit.name, "done", time.monotonic() - begun)
    record.data["finished"] = True
    record.save()
    return 0
