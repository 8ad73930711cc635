"""A whole script for a SpikeGPT: train under a name, with checkpoints, then write with the newest.

    python examples/spikegpt.py
    python examples/spikegpt.py --text stories.txt --n-layer 6 --n-embd 256 --steps 5000

Ctrl-C ends the run with a checkpoint. Run the script again with the same --name and it goes on.
"""

import argparse
from pathlib import Path

import torch

from spikelet.training import (
    Predicter,
    SpikeGPT,
    SpikeGPTConfig,
    Trainer,
    TrainerConfig,
    runs,
)
from spikelet.training.data import as_tokenizer, train_on_source

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--text", help="a text file, instead of this script's own")
parser.add_argument("--name", default="GPT-1")
parser.add_argument("--n-layer", type=int, default=2)
parser.add_argument("--n-embd", type=int, default=64)
parser.add_argument("--ctx-len", type=int, default=64)
parser.add_argument("--vocab-size", type=int, default=400)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--device", default="cpu")
options = parser.parse_args()

# The data: a file, a list of texts, rows with a "text", or a data set of the hub by its name.
dataset = options.text or [Path(__file__).read_text(encoding="utf-8")]
tokenizer = as_tokenizer(train_on_source(dataset, options.vocab_size, valid_every=50))
tokenizer.pad_token = tokenizer.eos_token

torch.manual_seed(1)
model = SpikeGPT(
    SpikeGPTConfig(
        tokenizer.vocab_size,
        ctx_len=options.ctx_len,
        model_type="RWKV",
        n_layer=options.n_layer,
        n_embd=options.n_embd,
    )
)
config = TrainerConfig(
    name=options.name,
    device=options.device,
    max_epochs=1,
    epoch_length_fixed=options.steps,
    batch_size=4,
    learning_rate=4e-3,
    save_step_interval=50,
)
resume = options.name if any(run.name == options.name for run in runs.list_runs()) else None
with Trainer(model, tokenizer=tokenizer, config=config, resume=resume) as trainer:
    trainer.train(train_dataset=dataset)

predicter = Predicter.from_pretrained(options.name)
prompt = "parser.add"
print(prompt, end="")
for piece in predicter.predict(prompt, ctx_len=options.ctx_len, temperature=0.3, seed=1):
    print(piece, end="", flush=True)
print()
