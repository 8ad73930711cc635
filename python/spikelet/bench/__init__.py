"""Base decoding against speculative decoding, measured side by side.

Example:
    >>> from spikelet import bench
    >>> report = bench.run("tests/golden/spikegpt-tiny", classes=["random"], max_new_tokens=8)
    >>> [row.text for row in report.rows]
    ['identical', 'identical']

`print(report.table())` shows it; `spikelet bench` is the same on the command line.
"""

from spikelet.bench.figures import Figure
from spikelet.bench.prompts import CLASSES, read_prompts
from spikelet.bench.report import Report, Row
from spikelet.bench.runner import run

__all__ = ["CLASSES", "Figure", "Report", "Row", "read_prompts", "run"]
