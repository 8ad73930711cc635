"""Draw what a command shows on a terminal as an SVG picture.

    python scripts/terminal_svg.py docs/demo.svg -- spikelet generate "Once upon a time" --seed 7

The command really runs, on a terminal of its own; nothing in the picture is made up. `spikelet`
means the one of the Python that runs this script.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from xml.sax.saxutils import escape

FONT_SIZE = 15
CHARACTER = 9.03  # width of a character of a monospaced font at this size
LINE = 21
MARGIN = 20
TITLE_BAR = 36
FILLS = {"2": "#8b949e", "31": "#ff7b72", "32": "#7ee787", "33": "#e3b341", "36": "#79c0ff"}
PLAIN = "#e6edf3"
Style = tuple[str, ...]


def run_on_terminal(command: list[str], columns: int) -> str:
    """Everything that the command shows; a failing command is an error."""
    words = (
        [sys.executable, "-m", "spikelet", *command[1:]] if command[0] == "spikelet" else command
    )
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"}
    env.pop("NO_COLOR", None)
    shown = b""
    with subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux says so when the command has closed its side
                break
            if not piece:
                break
            shown += piece
    os.close(master)
    text = shown.decode().replace("\r\n", "\n")
    if process.returncode:
        raise SystemExit(f"the command ended with code {process.returncode}:\n{text}")
    return text


def spans(text: str) -> Iterator[tuple[Style, str]]:
    """Pieces of one style each. Knows colours and erased lines, which is all that spikelet uses."""
    style: Style = ()
    text = re.sub(r"[^\n]*\r\x1b\[2K", "", text)
    for piece in re.split(r"(\x1b\[[0-9;]*m)", text):
        if piece.startswith("\x1b["):
            codes = tuple(code for code in piece[2:-1].split(";") if code not in ("", "0"))
            style = codes
        elif piece:
            yield style, piece


def screen_lines(text: str, columns: int) -> list[list[tuple[Style, str]]]:
    """The text in lines of at most `columns` characters, broken at spaces."""
    characters = [(style, char) for style, piece in spans(text) for char in piece]
    lines: list[list[tuple[Style, str]]] = [[]]
    for style, char in characters:
        if char == "\n":
            lines.append([])
            continue
        lines[-1].append((style, char))
        if len(lines[-1]) > columns:
            line = lines[-1]
            space = next((i for i in range(columns, 0, -1) if line[i][1] == " "), columns - 1)
            lines[-1:] = [line[: space + 1], line[space + 1 :]]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def draw(title: str, lines: list[list[tuple[Style, str]]], columns: int) -> str:
    """The SVG document."""
    width = round(2 * MARGIN + columns * CHARACTER)
    height = TITLE_BAR + MARGIN + LINE * len(lines)
    box = f'width="{width}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
    ]
    for index, colour in enumerate(("#ff5f56", "#ffbd2e", "#27c93f")):
        parts.append(f'<circle cx="{MARGIN + 20 * index}" cy="18" r="6" fill="{colour}"/>')
    parts.append(
        f'<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,DejaVu Sans Mono,monospace" '
        f'font-size="{FONT_SIZE}" fill="{PLAIN}" xml:space="preserve">'
    )
    for number, line in enumerate(lines):
        y = TITLE_BAR + LINE * number + FONT_SIZE
        parts.append(f'<text x="{MARGIN}" y="{y}">{"".join(map(_tspan, _joined(line)))}</text>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _joined(line: list[tuple[Style, str]]) -> list[tuple[Style, str]]:
    """Neighbouring characters of one style as one piece."""
    pieces: list[tuple[Style, str]] = []
    for style, char in line:
        if pieces and pieces[-1][0] == style:
            pieces[-1] = (style, pieces[-1][1] + char)
        else:
            pieces.append((style, char))
    return pieces


def _tspan(piece: tuple[Style, str]) -> str:
    style, text = piece
    attributes = "".join(f' fill="{FILLS[code]}"' for code in style if code in FILLS)
    if "1" in style:
        attributes += ' font-weight="bold"'
    return f"<tspan{attributes}>{escape(text)}</tspan>" if attributes else escape(text)


def main() -> None:
    """Run, draw, write."""
    parser = argparse.ArgumentParser(description="Draw a terminal with a command's real output.")
    parser.add_argument("picture", type=Path, help="SVG file to write")
    parser.add_argument("--columns", type=int, default=90)
    words = sys.argv[1:]
    if "--" not in words:
        parser.error("needs -- and a command")
    border = words.index("--")
    args, command = parser.parse_args(words[:border]), words[border + 1 :]
    # A prompt in quotes reads better with double ones, where that is the same.
    typed = " ".join(
        f'"{word}"' if " " in word and not set(word) & set('"$`\\!') else shlex.quote(word)
        for word in command
    )
    shown = run_on_terminal(command, args.columns)
    lines = screen_lines(f"\x1b[32m$\x1b[0m \x1b[1m{typed}\x1b[0m\n{shown}", args.columns)
    args.picture.write_text(draw(typed, lines, args.columns), encoding="utf-8")


if __name__ == "__main__":
    main()
