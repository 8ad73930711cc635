"""`spikelet create-options`: all that can be set in training, as JSON for forms and scripts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from spikelet.cli.terminal import stdout

EPILOG = """\
The JSON holds, for every model that can be trained, the fields of its configuration and of its
training: type, default, choices, limits (with the names of JSON Schema) and what they mean.

examples:
  spikelet create-options
  spikelet create-options --out options.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write to a file instead of standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from spikelet.training.files import write_text
    from spikelet.training.options import all_options

    text = json.dumps(all_options(), indent=2, ensure_ascii=False)
    if args.out is None:
        stdout().line(text)
    else:
        write_text(args.out, text + "\n")
    return 0
