"""The stub's docstrings are those of the compiled module: editors show them.

`python tests/stub_docs.py` writes them; `test_stubs.py` compares.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from pathlib import Path

from spikelet import _spikelet

STUB = Path(__file__).parent.parent / "python" / "spikelet" / "_spikelet.pyi"

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def runtime_doc(owner: object, node: Documented) -> str | None:
    """The docstring of what a stub's definition stands for; special methods need none."""
    if isinstance(owner, type) and node.name.startswith("__"):
        return None
    return inspect.getdoc(getattr(owner, node.name, None))


def documented(stub: str) -> str:
    """The stub with the compiled module's docstrings in place of those it has."""
    lines = stub.splitlines()
    found: list[tuple[Documented, str]] = []

    def visit(body: list[ast.stmt], owner: object) -> None:
        for node in body:
            if isinstance(node, Documented) and not node.name.startswith("_"):
                doc = runtime_doc(owner, node)
                if doc:
                    found.append((node, doc))
                if isinstance(node, ast.ClassDef):
                    visit(node.body, getattr(_spikelet, node.name))

    visit(ast.parse(stub).body, _spikelet)
    for node, doc in sorted(found, key=lambda entry: entry[0].lineno, reverse=True):
        text = textwrap.indent(literal(doc), " " * (node.col_offset + 4)).splitlines()
        first = node.body[0]
        end = first.end_lineno or first.lineno
        if ast.get_docstring(node) is not None:
            lines[first.lineno - 1 : end] = text
        elif isinstance(node, ast.ClassDef):
            lines[node.lineno : node.lineno] = [*text, ""]
        else:
            # The last line of the signature, with `...` behind it.
            lines[end - 1 : end] = [lines[end - 1].removesuffix(" ..."), *text]
    return "\n".join(lines) + "\n"


def literal(doc: str) -> str:
    quoted = doc.replace("\\", "\\\\").replace('"""', '\\"""')
    return f'"""{quoted}\n"""' if "\n" in quoted else f'"""{quoted}"""'


if __name__ == "__main__":
    STUB.write_text(documented(STUB.read_text()))
