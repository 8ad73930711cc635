"""The shortest way from text to a model that writes: rows of text, a tokenizer, train, predict."""

import time

from spikelet.training import (
    Predicter,
    SpikeGPT,
    SpikeGPTConfig,
    Trainer,
    TrainerConfig,
    train_tokenizer,
)
from spikelet.training.data import as_tokenizer

# Rows with a text, as a data set of the hub has them. With the packages `datasets` and
# `transformers`, these two lines take the place of the next three statements:
#   dataset = load_dataset("Salesforce/wikitext", "wikitext-103-raw-v1")["train"]
#   tokenizer = GPT2Tokenizer.from_pretrained("gpt2")
animals = ["fox", "owl", "hen", "cat", "bear"]
dataset = [
    {"text": f"The {one} met the {other}. They sat by the river and sang until the moon came up."}
    for one in animals
    for other in animals
] * 4
tokenizer = as_tokenizer(train_tokenizer([row["text"] for row in dataset], vocab_size=320))

ctx_len = 64
name = time.strftime("quick-start-%Y%m%d-%H%M%S")
model = SpikeGPT(
    SpikeGPTConfig(tokenizer.vocab_size, ctx_len=ctx_len, model_type="RWKV", n_layer=2, n_embd=64)
)
config = TrainerConfig(name=name, device="auto", batch_size=4, max_step=80, learning_rate=4e-3)
trainer = Trainer(model, tokenizer=tokenizer, config=config)
trainer.train(train_dataset=dataset)

predicter = Predicter.from_pretrained(name)
prompt = "The fox"
print(prompt, end="")
for piece in predicter.predict(prompt, ctx_len=ctx_len, temperature=0.5, seed=1):
    print(piece, end="", flush=True)
print()
