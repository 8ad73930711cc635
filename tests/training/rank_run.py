"""One of several processes that train together; ``RANK`` and the rest say which.

python rank_run.py FOLDER TEXT TASK
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from training.tiny import tiny_model, tiny_trainer

folder, text, task = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rank = int(os.environ["RANK"])
torch.set_num_threads(1)
options = {"device_num": 2, "lr_decay": False, "learning_rate": 1e-3}


def weights_hash(model: torch.nn.Module) -> str:
    raw = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    return hashlib.sha256(raw).hexdigest()


def equal() -> None:
    """Without dropout, which each process draws for itself."""
    trainer = tiny_trainer(folder, model=tiny_model(dropout=0.0), eval_step_interval=10, **options)
    trainer.train(text)
    assert (trainer.save_directory is None) == (rank == 1)
    (folder / f"weights{rank}").write_text(weights_hash(trainer.model))


def resume() -> None:
    tiny_trainer(folder / "whole", **options).train(text)
    tiny_trainer(folder / "parts", max_step=9, **options).train(text)
    tiny_trainer(folder / "parts", resume="run", **options).train(text)


def stop() -> None:
    trainer = tiny_trainer(folder, max_step=1000, **options)
    step_loss, calls = trainer.model.step_loss, [0]

    def signalled(*args: object, **more: object) -> object:
        calls[0] += 1
        if rank == 1 and calls[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_loss(*args, **more)

    trainer.model.step_loss = signalled
    trainer.train(text)
    assert trainer.interrupted
    (folder / f"step{rank}").write_text(str(trainer.progress.step))


{"equal": equal, "resume": resume, "stop": stop}[task]()
