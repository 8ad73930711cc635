"""`spikelet convert`: store a model as a folder of safetensors, in another type if wanted."""

from __future__ import annotations

import argparse
from pathlib import Path

from spikelet.cli.options import add_file_options
from spikelet.cli.terminal import Progress, UsageError, human_bytes, stdout

EPILOG = """\
The new files appear under their names only when they are complete. Interrupted or out of space,
the command leaves everything as it was.

examples:
  spikelet convert SpikeGPT-216M.pth spikegpt-216m --model-type spikegpt
  spikelet convert path/to/model smaller --dtype bf16
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "source", metavar="SRC", help="model folder, .safetensors or .pth file, or a name"
    )
    parser.add_argument("target", metavar="DST", help="folder to write")
    parser.add_argument("--dtype", metavar="TYPE", help="f32, bf16 or f16 (default: as it is)")
    add_file_options(parser)
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress, no closing line")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    import spikelet

    source = spikelet.find_model(args.source)
    target = Path(args.target)
    if target.exists() and not args.force:
        raise UsageError(f"{target} exists already (--force replaces it)")
    with Progress("converting", None, unit="bytes", quiet=args.quiet) as progress:
        spikelet.convert(
            source,
            target,
            dtype=args.dtype,
            model_type=args.model_type,
            spike_embedding=args.spike_embedding,
            progress=lambda done, total: progress.update(done, total=total),
        )
    if not args.quiet:
        facts = spikelet.inspect(target)
        size = human_bytes(facts["file_bytes"])
        stdout().line(f"wrote {target}: {facts['model_type']}, {facts['dtype']}, {size}")
    return 0
