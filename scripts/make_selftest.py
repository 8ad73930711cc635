"""Store the logits that `spikelet doctor` compares with: `selftest.json` beside a model.

    python scripts/make_selftest.py python/spikelet/bundled

Run it after every change of the model's weights. It computes with the portable kernels, in one pass
and token by token, and refuses to store logits that differ between the two. By the exactness
contract every other machine and instruction set must then give the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ["SPIKELET_ISA"] = "portable"

import spikelet
from spikelet.cli.selftest import FALLBACK_IDS, FILE_NAME, compute

TEXT = "Once upon a time there was a little fox who could not sleep. She went out to see the moon."
MAX_IDS = 48


def main() -> None:
    """Compute, check and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path, help="model folder; the file is written into it")
    folder: Path = parser.parse_args().model
    if spikelet.inspect(folder)["tokenizer"]:
        ids = spikelet.load(folder).tokenizer.encode(TEXT)[:MAX_IDS]
    else:
        ids = FALLBACK_IDS
    answer = compute(folder, ids)
    if answer.pop("steps_sha256") != answer["logits_sha256"]:
        raise SystemExit("one pass and single tokens give different logits: nothing is stored")
    del answer["isa"]
    target = folder / FILE_NAME
    unfinished = target.with_suffix(".tmp")
    unfinished.write_text(json.dumps(answer) + "\n", encoding="utf-8")
    unfinished.replace(target)
    print(f"wrote {target}: {len(ids)} ids, {answer['dtype']}, {answer['logits_sha256'][:16]}...")


if __name__ == "__main__":
    main()
