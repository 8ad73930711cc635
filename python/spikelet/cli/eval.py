"""`spikelet eval`: how well a model predicts a text.

A text is one stream: the state runs on through the whole file. Its first token is read but not
predicted, because nothing comes before it; neither its loss nor its bytes are counted. Bits per
byte is over the UTF-8 bytes of all other tokens, so models with different tokenizers can be
compared by it; loss and perplexity, which are per token, cannot.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from spikelet.cli.options import add_model_options, load_model
from spikelet.cli.terminal import Progress, UsageError, human_bytes, stdout, table

if TYPE_CHECKING:
    from spikelet import Model

EPILOG = """\
The first token of a text is read but not predicted: its loss and its bytes do not count.

examples:
  spikelet eval story.txt
  spikelet eval path/to/model valid.txt.gz --max-bytes 1M
  spikelet eval --model path/to/model part1.txt part2.txt --json
"""
PIECE = 512  # tokens between two signs of life
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass
class Score:
    """What one text cost."""

    text: str
    tokens: int = 0  # predicted tokens
    bytes: int = 0  # UTF-8 bytes of the predicted tokens
    nats: float = 0.0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Sums and means for --json."""
        return {
            **asdict(self),
            "loss": self.nats / self.tokens,
            "perplexity": math.exp(min(self.nats / self.tokens, 700.0)),
            "bits_per_byte": self.nats / math.log(2) / self.bytes if self.bytes else None,
        }


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.usage = "spikelet eval [MODEL] TEXT... [options]"
    parser.epilog = EPILOG
    parser.add_argument(
        "texts",
        nargs="+",
        metavar="TEXT",
        help="UTF-8 text files, also gzipped; '-' is standard input. A first word that is a model "
        "is taken as --model",
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="forget everything after every N tokens (default: never)",
    )
    parser.add_argument(
        "--max-bytes",
        type=_size,
        metavar="N",
        help="read only so many bytes of each text; 64k and 10M work too",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if args.context is not None and args.context < 1:
        raise UsageError(f"--context needs a number of at least 1, not {args.context}")
    texts: list[str] = args.texts
    if args.model is None and _is_model(texts[0]):
        args.model = texts.pop(0)
        if not texts:
            raise UsageError(f"{args.model} is a model: no text given")
    model = load_model(args)
    scores = []
    for name in texts:
        text = read_text(name, args.max_bytes)
        scores.append(evaluate(model, name, text, args.context))
    total = Score("total")
    for score in scores:
        total.tokens += score.tokens
        total.bytes += score.bytes
        total.nats += score.nats
        total.seconds += score.seconds
    if args.json:
        result = {
            "model": str(model.path),
            "dtype": model.dtype,
            "context": args.context,
            "texts": [score.as_dict() for score in scores],
            "total": total.as_dict(),
        }
        stdout().line(json.dumps(result, ensure_ascii=False))
    else:
        _show([*scores, total] if len(scores) > 1 else scores)
    return 0


def evaluate(model: Model, name: str, text: str, context: int | None = None) -> Score:
    """Score a text through one running state, a piece at a time."""
    ids = model.tokenizer.encode(text)
    if len(ids) < 2:
        raise UsageError(f"{name}: nothing to predict in a text of {len(ids)} tokens")
    tokenizer = model.tokenizer
    # A special token stands for no bytes, but its name was written out in the text.
    first = tokenizer.token_bytes(ids[0]) or (tokenizer.id_to_token(ids[0]) or "").encode()
    score = Score(name, tokens=len(ids) - 1, bytes=len(text.encode()) - len(first))
    start = time.perf_counter()
    with Progress(Path(name).name, score.tokens, unit=" tokens") as progress:
        for begin in range(0, score.tokens, context or score.tokens):
            state = model.new_state()
            end = min(begin + (context or score.tokens), score.tokens)
            for at in range(begin, end, PIECE):
                # A piece begins with the last id of the one before, which the state has not read.
                piece = ids[at : min(at + PIECE, end) + 1]
                score.nats -= float(model.score(piece, state).sum(dtype="float64"))
                done = at + len(piece) - 1
                bits = score.nats / math.log(2) / (score.bytes * done / score.tokens)
                progress.update(done, f"about {bits:.3f} bits/byte")
    score.seconds = time.perf_counter() - start
    return score


def read_text(name: str, max_bytes: int | None) -> str:
    """The text of a file, gzipped or not, cut at a whole character where `max_bytes` cuts it."""
    if name == "-":
        data = _read(sys.stdin.buffer, max_bytes)
    else:
        with Path(name).open("rb") as file:
            data = _read(file, max_bytes)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        cut = error.start >= len(data) - 3 and error.reason == "unexpected end of data"
        if max_bytes is not None and cut:
            return data[: error.start].decode()
        raise UsageError(f"{name}: not UTF-8 at byte {error.start}") from None


def _read(file: BinaryIO, max_bytes: int | None) -> bytes:
    head = file.read(2)
    rest = file
    if head == b"\x1f\x8b":
        try:
            with gzip.open(cast(BinaryIO, _Rewound(head, file))) as unpacked:
                return unpacked.read(-1 if max_bytes is None else max_bytes)
        except (EOFError, zlib.error) as error:
            raise UsageError(f"broken gzip data: {error}") from None
    return head + rest.read(-1 if max_bytes is None else max(0, max_bytes - len(head)))


class _Rewound:
    """A stream with its first bytes put back: standard input cannot be rewound."""

    def __init__(self, head: bytes, file: BinaryIO) -> None:
        self._head = head
        self._file = file

    def read(self, size: int = -1) -> bytes:
        head, self._head = self._head, b""
        if size < 0:
            return head + self._file.read()
        if len(head) > size:
            head, self._head = head[:size], head[size:]
        return head + self._file.read(size - len(head))


def _is_model(word: str) -> bool:
    """A folder, a weight file, or a name that is no file but a model."""
    path = Path(word)
    if word == "-" or path.is_file():
        return path.suffix in (".safetensors", ".pth")
    if path.is_dir():
        return True
    from spikelet import local_models

    return word in local_models()


def _size(text: str) -> int:
    number, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    if unit not in _SIZES or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(
            f"needs a number of bytes such as 4096, 64k or 10M, not '{text}'"
        )
    return int(number) * _SIZES[unit]


def _show(scores: list[Score]) -> None:
    rows: list[tuple[str, ...]] = [
        ("text", "tokens", "bytes", "loss", "perplexity", "bits/byte", "tokens/s")
    ]
    for score in scores:
        values = score.as_dict()
        bits = values["bits_per_byte"]
        rows.append(
            (
                score.text,
                str(score.tokens),
                human_bytes(score.bytes),
                f"{values['loss']:.4f}",
                f"{values['perplexity']:.2f}",
                "-" if bits is None else f"{bits:.4f}",
                f"{score.tokens / score.seconds:.0f}",
            )
        )
    out = stdout()
    header, *lines = table(rows, right=frozenset(range(1, 7)))
    out.line(out.paint(header, "bold"))
    for line in lines:
        out.line(line)
