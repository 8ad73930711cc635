"""What quantised weights cost: bits per byte of models in every format, for docs/quantization.md.

    python scripts/quality_quantized.py NAME=MODEL=TEXT...

MODEL is a folder or `bundled`; `MODEL*50` is the same function with channels that are 50 times as
large as the others. TEXT is a UTF-8 file that the model was not trained on. The text's
first fifth calibrates, the rest is scored. Without arguments the page's table is written anew from
the figures that are there.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import spikelet
from spikelet.cli.terminal import Progress
from spikelet.evaluation.text import score_text

ROOT = Path(__file__).parent.parent
BEGIN = "<!-- figures: scripts/quality_quantized.py -->\n"
END = "<!-- end of figures -->\n"
FORMATS = ("f32", "bf16", "q8", "q8 calibrated", "q4", "q4 calibrated")


def main() -> None:
    """Reads the options, measures, writes the figures and the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="*", metavar="NAME=MODEL=TEXT")
    parser.add_argument("--max-bytes", type=int, default=200_000, help="of a text")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benches" / "results" / "quality-quantized.json"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "quantization.md")
    args = parser.parse_args()
    if args.models:
        rows = []
        for word in args.models:
            name, model, text = word.split("=", 2)
            rows.append(measure(name, model, Path(text), args))
            print(json.dumps(rows[-1]), flush=True)
        args.json.write_text(json.dumps({"models": rows}, indent=1) + "\n", encoding="utf-8")
    rows = json.loads(args.json.read_text(encoding="utf-8"))["models"]
    page = args.page.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{args.page}: needs the lines {BEGIN.strip()} and {END.strip()}")
    args.page.write_text(before + begin + figures(rows) + end + after, encoding="utf-8")
    print(f"wrote {args.page}")


def measure(name: str, source: str, text_file: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Bits per byte of one model in every format."""
    source, _, factor = source.partition("*")
    path = ROOT / "python" / "spikelet" / "bundled" if source == "bundled" else Path(source)
    text = text_file.read_bytes()[: args.max_bytes].decode("utf-8", errors="ignore")
    cut = text.index(" ", len(text) // 5)
    calibration, held_out = text[:cut], text[cut:]
    row: dict[str, Any] = {"name": name, "text": text_file.name, "bits_per_byte": {}}
    with tempfile.TemporaryDirectory() as folder:
        if factor:
            path = with_large_channels(path, Path(folder, "large"), float(factor))
        for kind in FORMATS:
            dtype, _, calibrated = kind.partition(" ")
            load = path
            if calibrated:
                load = Path(folder, dtype)
                report = spikelet.quantize(path, load, dtype=dtype, calibration=calibration)
                row[f"{dtype}_outliers"] = sum(matrix["outliers"] for matrix in report)
                row[f"{dtype}_bytes"] = spikelet.inspect(load)["file_bytes"]
            model = spikelet.load(load, dtype=dtype, threads=args.threads)
            with Progress(f"{name} {kind}", None) as bar:
                score = score_text(
                    model,
                    held_out,
                    progress=lambda score, total, bar=bar: bar.update(score.tokens, total=total),
                )
            row["bits_per_byte"][kind] = score.bits_per_byte
            row["bytes"] = score.bytes
            del model
            gc.collect()
    return row


def with_large_channels(source: Path, target: Path, factor: float) -> Path:
    """The same function in the form that trained large models take.

    Three channels of every norm are `factor` times as large, and the columns that read them as much
    smaller.
    """
    from safetensors.numpy import load_file, save_file

    spikelet.convert(source, target, dtype="f32")
    shutil.rmtree(target / "prophet", ignore_errors=True)  # that of the model as it was
    file = target / "model.safetensors"
    tensors = {name: array.copy() for name, array in load_file(file).items()}
    width = len(tensors["ln_out.weight"])
    channels = [5, 6, width - 56]
    norms = (("ln1", "att", ("key", "value", "receptance")), ("ln2", "ffn", ("key", "receptance")))
    for layer in range(spikelet.inspect(target)["config"]["num_hidden_layers"]):
        for norm, part, readers in norms:
            for kind in ("weight", "bias"):
                tensors[f"blocks.{layer}.{norm}.{kind}"][channels] *= factor
            for reader in readers:
                tensors[f"blocks.{layer}.{part}.{reader}.weight"][:, channels] /= factor
    save_file(tensors, file)
    return target


def figures(rows: list[dict[str, Any]]) -> str:
    """The table: bits per byte in f32, and by how much the others are off."""
    head = " | ".join(FORMATS[1:])
    lines = [
        f"| model | text | f32, bits per byte | {head} | inputs kept apart (q4) |",
        "| --- " * (len(FORMATS) + 3) + "|",
    ]
    for row in rows:
        bits = row["bits_per_byte"]
        off = " | ".join(f"{100 * (bits[kind] / bits['f32'] - 1):+.2f} %" for kind in FORMATS[1:])
        text = f"{row['text']}, {row['bytes'] // 1000} KB"
        lines.append(
            f"| {row['name']} | {text} | {bits['f32']:.4f} | {off} | {row['q4_outliers']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
