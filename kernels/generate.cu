// The kernels of text generation, launched by rust/engine/src/cuda.
#include "generate/draw.cuh"
#include "generate/fill.cuh"
#include "generate/narrow/run.cuh"

/// By the format of the weights and the most columns, tokens or lines, that it takes.
#define NARROW(format, Format)                                                \
    KERNEL(spk_narrow_##format##_1, NARROW_THREADS, Narrow, (narrow<Format, 1>)) \
    KERNEL(spk_narrow_##format##_4, NARROW_THREADS, Narrow, (narrow<Format, 4>)) \
    KERNEL(spk_narrow_##format##_8, NARROW_THREADS, Narrow, (narrow<Format, 8>))

KERNEL(spk_fill, FILL_THREADS, Fill, fill)
NARROW(f32, F32)
NARROW(bf16, Bf16)
NARROW(f16, F16)
NARROW(q8, Q8)
KERNEL(spk_draw, DRAW_THREADS, Draw, draw)
