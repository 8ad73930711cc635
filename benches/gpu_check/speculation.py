"""Part `speculation`: `spikelet.bench` on the GPU, for the bundled model and for a given shape.

The bundled model guesses by its prophet and from repetitions; a random model of a published shape
has its guesses accepted with a given probability, which shows what the card does at such a rate.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import spikelet
from gpu_check import models
from gpu_check.child import ROOT, Context
from gpu_check.record import Put, Unit
from spikelet import bench

SHOWN = (
    "model", "prompt_class", "temperature", "method", "num_speculative_tokens", "dtype",
    "batch_size", "forced_acceptance", "base_tokens_per_second", "tokens_per_second", "speedup",
    "acceptance_rate", "mean_acceptance_length", "draft_ms", "verify_ms", "accept_ms", "other_ms",
    "base_ms", "text",
)  # fmt: skip


def put_report(put: Put, report: bench.Report, *, promised: bool) -> None:
    """Rows of a report; a text that is not base decoding's is wrong."""
    for row in report.rows:
        given = row.as_dict()
        kept: dict[str, Any] = {name: given[name] for name in SHOWN}
        put(**kept, **({"passed": row.text == "identical"} if promised else {}))


def trained(context: Context, dtype: str, batch: int, put: Put) -> None:
    """The bundled model, or in a rehearsal a golden one."""
    path = ROOT / "tests" / "golden" / "spikegpt-tiny" if context.dry else None
    model = spikelet.load(path, dtype=dtype, device=context.device)
    report = bench.run(
        model,
        classes=["random"] if context.dry else ["copy", "prose", "code"],
        methods=["ngram"] if context.dry else ["prophet", "ngram", "auto"],
        num_speculative_tokens=[2] if context.dry else ["auto"],
        temperatures=[0.0] if context.dry or batch > 1 else [0.0, 1.0],
        batch_sizes=[batch],
        max_new_tokens=6 if context.dry else 128,
        prompts_per_class=1 if context.dry else 2,
        repetitions=1 if context.dry else 3,
    )
    put_report(put, report, promised=True)


def recipe() -> ModuleType:
    """`speculation.py` of the benches, which knows how a random prophet is made."""
    file = ROOT / "benches" / "speculation.py"
    spec = importlib.util.spec_from_file_location("benches_speculation", file)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{file} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forced(context: Context, dtype: str, put: Put) -> None:
    """A random prophet at given rates of acceptance."""
    shape = models.TINY[0] if context.dry else models.SPIKEGPT_216M
    folder = models.folder(shape, context.work, context.torch_device())
    if not (folder / "prophet").exists():
        rows = 30 if context.dry else 8192
        recipe().write_prophet(shape, folder, rows)
    model = spikelet.load(folder, dtype=dtype, device=context.device)
    for rate in (0.7,) if context.dry else (0.7, 0.9, 0.5):
        report = bench.run(
            model,
            classes=["random"],
            methods=["prophet"],
            num_speculative_tokens=[2] if context.dry else [2, 4, 6],
            temperatures=[0.0],
            forced_acceptance=rate,
            max_new_tokens=6 if context.dry else 96,
            prompts_per_class=1,
            repetitions=1 if context.dry else 5,
        )
        put_report(put, report, promised=False)


def copying(context: Context, dtype: str, put: Put) -> None:
    """A random model from where its greedy text repeats itself, guessing from repetitions."""
    shape = models.TINY[1] if context.dry else models.SPIKEGPT_216M
    folder = models.folder(shape, context.work, context.torch_device())
    model = spikelet.load(folder, dtype=dtype, device=context.device)
    # On the CPU of a rehearsal looking for a circle takes too long.
    prompt = [5, 6, 7] * 5 if context.dry else recipe().repeating(model)
    report = bench.run(
        model,
        prompts={"copy": [prompt]},
        methods=["ngram"],
        num_speculative_tokens=[3] if context.dry else ["auto", 8, 16],
        temperatures=[0.0],
        max_new_tokens=6 if context.dry else 128,
        repetitions=1 if context.dry else 5,
    )
    put_report(put, report, promised=True)


def units(context: Context) -> list[Unit]:
    """Return what this part does."""
    if context.dry:
        return [
            Unit("trained", lambda put: trained(context, "f32", 1, put)),
            Unit("forced", lambda put: forced(context, "bf16", put)),
            Unit("copying", lambda put: copying(context, "bf16", put)),
        ]
    return [
        Unit("bundled q8", lambda put: trained(context, "q8", 1, put), 60),
        Unit("forced bf16", lambda put: forced(context, "bf16", put), 60, 8),
        Unit("copying bf16", lambda put: copying(context, "bf16", put), 60, 8),
        Unit("bundled f16", lambda put: trained(context, "f16", 1, put), 60, 6),
        Unit("forced q8", lambda put: forced(context, "q8", put), 60, 8),
        Unit("bundled f16, 8 rows", lambda put: trained(context, "f16", 8, put), 60, 8),
    ]
