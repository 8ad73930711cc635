"""`spikelet report`: one HTML file that shows training runs, alone or side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from spikelet.cli.terminal import UsageError, human_bytes, stdout

EPILOG = """\
examples:
  spikelet report my-run --open
  spikelet report small large runs/other --out comparison.html
  spikelet report my-run --text "The fox and the owl"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="name of a run under the spikelet home, or the path of its folder",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="where to write the page (default: report.html)",
    )
    parser.add_argument(
        "--text",
        metavar="FILE|TEXT",
        help="what the model reads for the spike raster (default: the last sample of the run)",
    )
    parser.add_argument("--open", action="store_true", help="show the page in a browser")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from spikelet.report import write_report

    if args.out.is_dir():
        raise UsageError(f"--out {args.out}: is a folder; the report is one file")
    write_report(args.runs, args.out, text=_text(args.text))
    out = stdout()
    out.line(f"{args.out} ({human_bytes(args.out.stat().st_size)})")
    if args.open:
        import webbrowser

        if not webbrowser.open(args.out.resolve().as_uri()):
            out.line("no browser could be started")
    return 0


def _text(given: str | None) -> str | None:
    """The text itself, or what is in the file of that name."""
    if given is None:
        return None
    try:
        is_file = Path(given).is_file()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        is_file = False
    return Path(given).read_text(encoding="utf-8", errors="replace") if is_file else given
