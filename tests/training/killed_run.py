"""A run in a process of its own, which a test kills or which kills itself.

    python killed_run.py FOLDER TEXT OPTIONS [CHECKPOINT]

OPTIONS is the JSON of ``tiny_config``'s. With CHECKPOINT the process is killed while it writes that
checkpoint (counted from 1): its bytes are there, its name is not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from training.tiny import tiny_trainer

folder, text, options, *at = sys.argv[1:]
torch.set_num_threads(1)
left = int(at[0]) if at else 0
fsync = os.fsync


def killing_fsync(handle: int) -> None:
    global left
    if Path(f"/proc/self/fd/{handle}").resolve().name.endswith(".tmp"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)


if at:
    os.fsync = killing_fsync
tiny_trainer(Path(folder), **json.loads(options)).train(Path(text))
