"""`spikelet info`: what is in a model folder or file, without loading it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from spikelet.cli.options import add_file_options
from spikelet.cli.terminal import human_bytes, human_count, stdout, table

EPILOG = """\
examples:
  spikelet info
  spikelet info path/to/model --tensors
  spikelet info SpikeGPT-216M.pth --model-type spikegpt --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.epilog = EPILOG
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="model folder, .safetensors or .pth file, or a name (default: the bundled model)",
    )
    add_file_options(parser)
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="everything as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    import spikelet

    path = spikelet.find_model(args.model)
    facts = spikelet.inspect(path, model_type=args.model_type, spike_embedding=args.spike_embedding)
    out = stdout()
    if args.json:
        out.line(json.dumps(facts, ensure_ascii=False, default=str))
        return 0
    for name, value in describe(facts):
        out.line(out.paint(f"{name:15}", "bold") + value)
    if args.tensors:
        rows: list[tuple[str, ...]] = [
            (
                tensor["name"],
                tensor["dtype"],
                str(list(tensor["shape"])),
                human_bytes(tensor["bytes"]),
            )
            for tensor in facts["tensors"]
        ]
        out.line()
        for line in table(rows, right=frozenset({3})):
            out.line(line)
    return 0


def describe(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as pairs of a name and a value for people."""
    config = facts["config"]
    kind = facts["model_type"]
    if config.get("variant"):
        embedding = "binary" if config.get("spike_embedding") else "real"
        neurons = f", neurons {config['neuron']}" if "neuron" in config else ""
        kind += f" (variant {config['variant']}, {embedding} embedding{neurons})"
    shape = (
        f"{config['num_hidden_layers']} layers x {config['hidden_size']}, "
        f"ffn {config['intermediate_size']}, vocabulary {config['vocab_size']}"
    )
    if config.get("context_length"):
        shape += f", trained on {config['context_length']} tokens at a time"
    memory = ", ".join(f"{name} {human_bytes(n)}" for name, n in facts["memory_bytes"].items())
    rows = [
        ("path", str(facts["path"])),
        ("architecture", kind),
        ("shape", shape),
        (
            "parameters",
            f"{human_count(facts['num_parameters'])} in {len(facts['tensors'])} tensors",
        ),
        ("stored as", f"{facts['dtype']}, {human_bytes(facts['file_bytes'])}"),
        ("memory", memory),
        ("state", f"{human_bytes(facts['state_bytes'])} per sequence, whatever its length"),
        ("tokenizer", facts["tokenizer"] or "none: works with token ids only"),
    ]
    if config.get("rescale_every"):
        rows.append(("rescaling", f"every {config['rescale_every']} layers (compatibility)"))
    if facts["generation_config"]:
        settings = ", ".join(
            f"{key} {value!r}" for key, value in facts["generation_config"].items()
        )
        rows.append(("sampling", settings))
    rows.append(
        ("chat template", repr(facts["chat_template"]) if facts["chat_template"] else "none")
    )
    return rows
