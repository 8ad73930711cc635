"""The page: one HTML file that holds its data, style and scripts, and asks for nothing else.

All text reaches the page as JSON in a data block, in which `<` is written as an escape, and gets
into the document as text nodes only. The policy in the head lets the browser run the two scripts
whose hashes it names and load nothing over a network, whatever the data may hold.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ASSETS = Path(__file__).parent / "assets"
_SCRIPTS = ("chart.js", "figures.js", "report.js")
_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; script-src {hashes}; connect-src {connect}; img-src data:; \
base-uri 'none'; form-action 'none'">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<noscript>This report draws its charts with scripts, and they are switched off.</noscript>
<main id="report"></main>
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""


def make_page(document: Mapping[str, Any], *, live: bool = False) -> str:
    """The whole file for the document that `spikelet.report` gathered."""
    scripts = [_asset(name) for name in _SCRIPTS]
    return _PAGE.format(
        hashes=" ".join(f"'{_hash(script)}'" for script in scripts),
        connect="'self'" if live else "'none'",
        title=html.escape(document["title"]),
        style=_asset("report.css"),
        data=to_json(document),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def to_json(document: Mapping[str, Any]) -> str:
    """JSON that can stand inside a script element: nothing in it opens or closes one."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Half a surrogate pair, from a damaged file, cannot be written as UTF-8.
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")
