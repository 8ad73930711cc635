"""Decoding while another process keeps a core busy, against our own quiet run on one thread.

    python benches/contention.py [--quick] [--shapes ..] [--formats ..]

One and two threads, quiet and beside a program that never sleeps, in turns: the other program is
stopped and continued by signals. It runs at normal priority and on whichever core the system
chooses. On a machine with more than two cores there have to be as many such programs as leave one
core to us; with `--busy` there are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import harness
import plots
from harness import Figure, Plan
from shapes import Shape

import spikelet

# Ends by itself should this program die without ending it.
SPIN = "import time\nend = time.monotonic() + 1200\nwhile time.monotonic() < end: pass"
PROMPT = 8


class Busy:
    """Programs that keep cores busy while they are told to."""

    def __init__(self, count: int) -> None:
        self.processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
        time.sleep(0.5)
        self.send(signal.SIGSTOP)

    def send(self, what: signal.Signals) -> None:
        for process in self.processes:
            process.send_signal(what)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """They run inside the block."""
        self.send(signal.SIGCONT)
        time.sleep(0.05)
        try:
            yield
        finally:
            self.send(signal.SIGSTOP)
            time.sleep(0.02)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def measure(plan: Plan, shape: Shape, busy: Busy) -> list[dict[str, Any]]:
    """Rows of one model."""
    models = {threads: plan.models(shape, threads) for threads in (1, 2)}
    prompt = harness.random_ids(shape, PROMPT)
    tokens = 8 if plan.quick else 32

    def rate(model: spikelet.Model, beside: str) -> float:
        with busy.running() if beside == "busy" else contextlib.nullcontext():
            return 1 / harness.decode_seconds(model, prompt, tokens)

    made = []
    for dtype in models[1]:
        found = harness.alternate(
            {
                f"{threads} {beside}": lambda m=models[threads][dtype], b=beside: rate(m, b)
                for beside in ("quiet", "busy")
                for threads in (1, 2)
            },
            plan.number_of_rounds(3, 9),
        )
        made.append(
            {
                "model": shape.name,
                "format": dtype,
                **{
                    f"tokens_per_second_{name.replace(' ', '_thread_')}": Figure.of(values).json()
                    for name, values in found.items()
                },
                "busy_against_one_quiet_thread": harness.ratio(
                    found["2 busy"], found["1 quiet"]
                ).json(),
            }
        )
    return made


COLUMNS = (
    "model", "format", "1 thread, quiet", "2 threads, quiet", "1 thread, busy", "2 threads, busy",
    "2 busy / 1 quiet",
)  # fmt: skip
KEYS = ("1_thread_quiet", "2_thread_quiet", "1_thread_busy", "2_thread_busy")


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    kept = row["busy_against_one_quiet_thread"]
    return harness.table_line(
        (
            row["model"],
            row["format"],
            *(f"{row[f'tokens_per_second_{key}']['median']:.1f}" for key in KEYS),
            f"{kept['median']:.2f} ({kept['low']:.2f} to {kept['high']:.2f})",
        )
    )


def main() -> None:
    """Runs all rows and prints them as they come."""
    parser = harness.parser(str(__doc__))
    parser.set_defaults(shapes="RWKV-4-169M")
    parser.add_argument(
        "--busy",
        type=int,
        default=max(len(os.sched_getaffinity(0)) - 1, 1),
        help="programs that keep a core busy; default: all cores but one",
    )
    args = parser.parse_args()
    plan = Plan.of("contention", args)
    busy = Busy(args.busy)
    print(harness.describe(plan.machine))
    print(harness.table_head(COLUMNS))
    rows: list[dict[str, Any]] = []
    try:
        for shape in plan.shapes:
            rows += measure(plan, shape, busy)
            print("\n".join(map(line, rows)), flush=True)
    finally:
        busy.end()
    plan.save(rows, busy_processes=args.busy)
    plots.bars(
        plan.plot_file(),
        [f"{row['model']}\n{row['format']}" for row in rows],
        {
            name: [row[f"tokens_per_second_{key}"]["median"] for row in rows]
            for name, key in zip(COLUMNS[2:], KEYS, strict=False)
        },
        "tokens per second",
        f"Decoding beside a process that keeps a core busy; {harness.cpu_name()}",
    )


if __name__ == "__main__":
    main()
