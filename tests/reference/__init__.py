"""The meaning of the maths in plain NumPy, float64, one token at a time.

What is fast (the engine, the torch models and their fused operators) is compared with this, never
only with each other. Boring on purpose: no batches, no chunks, no state that is not a local
variable.
"""

from .models import naive_rwkv4, naive_spikegpt
from .operators import naive_layer_norm, naive_lif, naive_sigmoid, naive_wkv4
from .prophet import naive_prophet

__all__ = [
    "naive_layer_norm",
    "naive_lif",
    "naive_prophet",
    "naive_rwkv4",
    "naive_sigmoid",
    "naive_spikegpt",
    "naive_wkv4",
]
