"""This engine beside those that a user would pick otherwise, on the same weights.

    python benches/peers.py [--quick] [--env DIR] [--build-minutes N] [--install-only]

Peers come from the package index into an environment of their own, made on the first run: the
package `rwkv`, RWKV-4 and GPT-2 of Hugging Face's transformers, llama.cpp through llama-cpp-python
where it compiles. The authors' code of SpikeGPT is in no index: a plain PyTorch program that does
the same, token by token, stands in for it. What cannot be installed is named, the rest measured.

Every engine and format has a process of its own, which loads the model and then waits. They are
told to measure in turns, so only one computes at a time; what they use while they wait is printed.
The roofline is measured in the same rounds. Decoding is greedy; texts from float32 weights are
compared.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import harness
import peer_environment
import plots
from harness import FMA, READ, Figure, Plan
from peer_environment import Environment
from shapes import RWKV4_169M, RWKV4_430M, SPIKEGPT_216M, Shape, bytes_read

HERE = Path(__file__).parent
PROMPT = 512
# Plain PyTorch reads token by token: a short prompt has the same rate and spares minutes.
SHORT_PROMPT = 32
PRECISION = {"f32": 3, "F32": 3, "bf16": 2, "f16": 2, "F16": 2, "q8": 1, "Q8_0": 1, "q4": 0}
PRECISION["Q4_0"] = 0
LOST = 300.0
"""Seconds after which an engine counts as lost: beside other work OpenMP can take minutes."""
PATIENCE = 150.0
"""Seconds for the rounds of a section."""
SMALLEST_VOCABULARY = 50257
"""GPT-2's."""
DENSE = 0.5
"""Share of non-zero relu² outputs of plain random weights."""


class PeerError(Exception):
    """An engine does not do what it should."""


@dataclass(frozen=True)
class Contender:
    """An engine with a model in a format."""

    engine: str
    format: str
    model: Path | str
    python: Path | str
    prompt: int = PROMPT

    @property
    def label(self) -> str:
        """As in the table."""
        return f"{self.engine} {self.format}"


class Child:
    """A process that measures when it is told to."""

    def __init__(self, contender: Contender, threads: int) -> None:
        """Starts it; `PeerError` if it cannot load."""
        self.contender = contender
        # Kept for when it dies without an answer.
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                str(contender.python),
                str(HERE / "peer_worker.py"),
                contender.engine,
                str(contender.model),
                contender.format,
                str(threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"},
        )
        try:
            hello = self.receive()
        except PeerError:
            self.end()
            raise
        self.name, self.load_seconds = hello["name"], hello["load_seconds"]
        self.ids: list[int] = []
        self.failed = False

    def receive(self) -> dict[str, Any]:
        """The next answer."""
        out = self.process.stdout
        assert out is not None
        if not select.select([out], [], [], LOST)[0]:
            raise PeerError(f"no answer within {LOST:.0f} seconds")
        line = out.readline()
        if not line:
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise PeerError(said[-1] if said else "it ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError(answer["error"].splitlines()[0])
        return answer

    def ask(self, do: str, **what: object) -> dict[str, Any]:
        """An order and its answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **what}).encode() + b"\n")
            return self.receive()
        except OSError as error:
            self.failed = True
            raise PeerError(f"it ended: {error}") from error
        except PeerError:
            self.failed = True
            raise

    @property
    def peak_bytes(self) -> int:
        """Largest resident size so far."""
        return int(self.ask("memory")["peak_bytes"])

    def decode(self, ids: Sequence[int], tokens: int) -> float:
        """Tokens per second."""
        found = self.ask("decode", ids=ids, tokens=tokens)
        self.ids = found["ids"]
        return float(1 / found["seconds"])

    def prefill(self, ids: Sequence[int]) -> float:
        """Tokens per second."""
        ids = ids[: self.contender.prompt]
        return float(len(ids) / self.ask("prefill", ids=ids)["seconds"])

    def cpu_seconds(self) -> float:
        """Processor time used so far."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Ends it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                stream.close()


@dataclass(frozen=True)
class Section:
    """Engines that are measured in turns."""

    model: str
    shape: Shape | None
    """Of the models of this engine; None if none of them has the section's."""
    contenders: list[Contender]
    tasks: tuple[str, ...] = ("decode", "prefill")


def converted(environment: Environment, kind: str, source: Path, destination: Path) -> Path:
    """A peer's model, made in the cache if it is missing."""
    if not destination.exists():
        unfinished = destination.with_name(f"unfinished-{destination.name}")
        subprocess.run(
            [environment.python, HERE / "peer_models.py", kind, source, unfinished],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        unfinished.replace(destination)
    return destination


def own(plan: Plan, shape: Shape) -> list[Contender]:
    """This engine in every format."""
    folder = plan.folder(shape)
    return [Contender("spikelet", dtype, folder, sys.executable) for dtype in plan.formats]


def sections(plan: Plan, environment: Environment) -> list[Section]:
    """All that can be measured with what is installed."""
    python, has = environment.python, environment.has
    found = []
    for shape in (RWKV4_169M, RWKV4_430M):
        contenders = own(plan, shape)
        source = plan.folder(shape) / "model.safetensors"
        stem = source.parent.name
        if has("rwkv"):
            for dtype in ("f32", "bf16"):
                # Its name may not hold a dot but that of the ending.
                file = plan.cache / f"{stem}-{dtype}.pth"
                file = converted(environment, f"rwkv-{dtype}", source, file)
                contenders.append(Contender("rwkv", dtype, file, python))
        if has("transformers"):
            folder = plan.cache / f"{stem}-transformers"
            folder = converted(environment, "transformers", source, folder)
            contenders += (
                Contender("transformers", dtype, folder, python) for dtype in ("f32", "bf16")
            )
        tasks = ("decode", "prefill") if shape is RWKV4_169M else ("decode",)
        found.append(Section(shape.name, shape, contenders, tasks))
    plain = [
        Contender("plain", dtype, plan.folder(SPIKEGPT_216M), python, SHORT_PROMPT)
        for dtype in ("f32", "bf16")
        if has("torch")
    ]
    found.append(Section(SPIKEGPT_216M.name, SPIKEGPT_216M, own(plan, SPIKEGPT_216M) + plain))
    if has("transformers"):
        gpt2 = [Contender("gpt2", dtype, "-", python) for dtype in ("f32", "bf16")]
        found.append(Section("GPT-2 124M", None, gpt2))
    if has("llama-cpp-python") and has("gguf"):
        files = {
            kind: converted(
                environment, f"gguf-{kind}", Path("-"), plan.cache / f"rwkv7-{kind}.gguf"
            )
            for kind in ("F32", "F16", "Q8_0", "Q4_0")
        }
        llama = [Contender("llama.cpp", kind, file, python) for kind, file in files.items()]
        found.append(Section("RWKV-7 0.1B", None, llama))
    names = {shape.name for shape in plan.shapes}
    return [s for s in found if s.shape is None or s.shape.name in names]


def start(contender: Contender, threads: int, prompt: Sequence[int]) -> Child | PeerError:
    """Loads a model and warms it up, or says why it cannot."""
    try:
        child = Child(contender, threads)
    except PeerError as error:
        return error
    try:
        # PyTorch compiles and packs during its first calls.
        child.decode(prompt[:8], 4)
        child.prefill(prompt[:64])
    except PeerError as error:
        child.end()
        return error
    return child


def left_out(model: str, engine: str, dtype: str, why: str) -> dict[str, Any]:
    """A row for what could not be measured."""
    return {"model": model, "engine": engine, "format": dtype, "left_out": why}


def idle_share(children: Sequence[Child]) -> float:
    """Cores that all waiting processes together use."""
    before = sum(child.cpu_seconds() for child in children)
    begun = time.monotonic()
    time.sleep(1.0)
    return (sum(child.cpu_seconds() for child in children) - before) / (time.monotonic() - begun)


def measure(plan: Plan, section: Section, threads: int) -> list[dict[str, Any]]:
    """Rows of one section."""
    children: list[Child] = []
    rows: list[dict[str, Any]] = []
    tokens = 8 if plan.quick else 64 if section.shape is RWKV4_169M else 32
    prompt = [i % SMALLEST_VOCABULARY for i in harness.random_ids(RWKV4_169M, PROMPT)]

    def lost(contender: Contender, error: PeerError) -> None:
        rows.append(left_out(section.model, contender.engine, contender.format, str(error)))

    try:
        for contender in section.contenders:
            child = start(contender, threads, prompt)
            if isinstance(child, Child):
                children.append(child)
            else:
                lost(contender, child)
        idle = idle_share(children)
        if idle > 0.05:
            print(f"{section.model}: the waiting processes use {idle:.0%} of a core", flush=True)
        while True:
            try:
                found = rounds(plan, section, children, prompt, tokens, threads)
                break
            except PeerError as error:
                # Without it, from the beginning: what is compared has to have run in turns.
                (failed,) = (child for child in children if child.failed)
                children.remove(failed)
                failed.end()
                lost(failed.contender, error)
        rows += (
            made_row(plan, section, task, child, children, found)
            | {"threads": threads, "idle_cores_of_all": idle}
            | {"tokens": tokens if task == "decode" else child.contender.prompt}
            for task in section.tasks
            for child in children
        )
    finally:
        for child in children:
            child.end()
    return rows


def rounds(
    plan: Plan,
    section: Section,
    children: Sequence[Child],
    prompt: Sequence[int],
    tokens: int,
    threads: int,
) -> dict[str, list[float]]:
    """Tokens per second of all tasks of all children, and the roofline."""
    works: dict[str, Callable[[], float]] = dict(harness.roofline(threads))
    for child in children:
        label = child.contender.label
        works[f"{label} decode"] = lambda c=child: c.decode(prompt[:8], tokens)
        if "prefill" in section.tasks:
            works[f"{label} prefill"] = lambda c=child: c.prefill(prompt)
    return harness.alternate(works, plan.number_of_rounds(2, 6), PATIENCE)


def made_row(
    plan: Plan,
    section: Section,
    task: str,
    child: Child,
    children: Sequence[Child],
    found: dict[str, list[float]],
) -> dict[str, Any]:
    """What is to be told of one child."""
    rates = {c.contender.label: found[f"{c.contender.label} {task}"] for c in children}
    row: dict[str, Any] = {
        "model": section.model,
        "task": task,
        "engine": child.contender.engine,
        "version": child.name,
        "format": child.contender.format,
        "tokens_per_second": Figure.of(rates[child.contender.label]).json(),
        "peak_bytes": child.peak_bytes,
        "load_seconds": child.load_seconds,
        "text": None,
    }
    if child.contender.engine == "spikelet" and section.shape is not None:
        density = DENSE if plan.density is None else plan.density
        row["share"] = share(section.shape, density, task, child, rates, found).json()
        row["against"] = against(child, children, rates)
    if task == "decode":
        traces = {c.contender.label: c.ids for c in children}
        row["text"] = same_text(child, traces)
    return row


def share(
    shape: Shape,
    density: float,
    task: str,
    child: Child,
    rates: dict[str, list[float]],
    found: dict[str, list[float]],
) -> Figure:
    """What this engine reached of the bandwidth (decode) or of the f32 peak (prefill)."""
    own_rates, dtype = rates[child.contender.label], child.contender.format
    if task == "decode":
        each, roof = bytes_read(shape, dtype, density) / 1e9, found[READ]
    else:
        each = 2 * shape.multiply_adds(PROMPT) / PROMPT / 1e9
        roof = found[harness.INT8 if dtype[0] == "q" and harness.INT8 in found else FMA]
    return harness.ratio([each * rate for rate in own_rates], roof)


def against(
    child: Child, children: Sequence[Child], rates: dict[str, list[float]]
) -> dict[str, Any] | None:
    """The ratio to the best peer of equal or higher precision; None without one."""
    level = PRECISION[child.contender.format]
    peers = [
        c.contender.label
        for c in children
        if c.contender.engine != "spikelet" and PRECISION[c.contender.format] >= level
    ]
    if not peers:
        return None
    best = max(peers, key=lambda label: median(rates[label]))
    return {"peer": best, **harness.ratio(rates[child.contender.label], rates[best]).json()}


def same_text(child: Child, traces: dict[str, list[int]]) -> dict[str, int] | None:
    """How many tokens from the first on a float32 peer has in common with this engine."""
    ours = traces.get("spikelet f32")
    if child.contender.format != "f32" or child.contender.engine == "spikelet" or ours is None:
        return None
    return {"equal": common(ours, traces[child.contender.label]), "of": len(ours)}


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of what both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


COLUMNS = (
    "model", "what", "engine", "format", "tok/s", "against best peer", "of roofline", "peak MB",
    "load s", "text",
)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table."""
    if "left_out" in row:
        why = f"left out: {row['left_out']}"
        return harness.table_line(
            (row["model"], "", row["engine"], row["format"], why, "", "", "", "", "")
        )
    rate, other, roof = row["tokens_per_second"], row.get("against"), row.get("share")
    ratio = ""
    if other:
        interval = f"{other['low']:.2f} to {other['high']:.2f}"
        ratio = f"{other['median']:.2f} x ({interval}) {other['peer']}"
    return harness.table_line(
        (
            row["model"],
            row["task"],
            row["engine"],
            row["format"],
            f"{rate['median']:.1f} ({rate['low']:.1f} to {rate['high']:.1f})",
            ratio,
            f"{roof['median']:.0%}" if roof else "",
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['load_seconds']:.2f}",
            f"{row['text']['equal']} of {row['text']['of']} equal" if row["text"] else "",
        )
    )


def plot(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """Rates of all engines, decoding only."""
    rows = [row for row in rows if row.get("task") == "decode"]
    groups = list(dict.fromkeys(row["model"] for row in rows))
    labels = list(dict.fromkeys(f"{row['engine']} {row['format']}" for row in rows))
    rates = {
        (row["model"], f"{row['engine']} {row['format']}"): row["tokens_per_second"]["median"]
        for row in rows
    }
    plots.bars(
        plan.plot_file(),
        groups,
        {label: [rates.get((group, label)) for group in groups] for label in labels},
        "tokens per second",
        f"Greedy decoding, {plan.threads[0]} threads; {harness.cpu_name()}",
    )


def main() -> None:
    """Installs, converts, measures."""
    parser = harness.parser(str(__doc__), threads=(2,))
    parser.add_argument("--env", type=Path, help="environment of the peers; default: in the cache")
    parser.add_argument(
        "--build-minutes",
        type=float,
        default=12,
        help="how long llama.cpp may be compiled in this run, 0: not at all; default: %(default)s",
    )
    parser.add_argument("--only", default="", help="sections whose model has this in its name")
    parser.add_argument("--install-only", action="store_true", help="measure nothing")
    args = parser.parse_args()
    plan = Plan.of("peers", args)
    environment = peer_environment.make(args.env or plan.cache / "peers", args.build_minutes)
    if args.install_only:
        return
    print(harness.describe(plan.machine))
    print(harness.table_head(COLUMNS))
    rows = [left_out("", package, "", why) for package, why in environment.missing.items()]
    print("".join(f"{line(row)}\n" for row in rows), end="")
    for section in sections(plan, environment):
        if args.only not in section.model:
            continue
        found = measure(plan, section, plan.threads[0])
        rows += found
        print("\n".join(map(line, found)), flush=True)
        plan.save(rows)
    plot(plan, rows)


if __name__ == "__main__":
    main()
