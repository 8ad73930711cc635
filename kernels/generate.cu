// The kernels of text generation, launched by rust/engine/src/cuda.
#include "generate/fill.cuh"

KERNEL(spk_fill, FILL_THREADS, Fill, fill)
