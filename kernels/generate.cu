// The kernels of text generation, launched by rust/engine/src/cuda.
#include "generate/draw.cuh"
#include "generate/fill.cuh"
#include "generate/narrow/run.cuh"
#include "generate/wide/floats.cuh"
#include "generate/wide/inputs.cuh"
#include "generate/wide/integers.cuh"
#include "generate/wide/recurrences.cuh"

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

KERNEL(spk_wide_embed, WIDE_THREADS, Wide, wide_embed)
KERNEL(spk_wide_inputs_float, WIDE_THREADS, Wide, wide_inputs<false>)
KERNEL(spk_wide_inputs_q8, WIDE_THREADS, Wide, wide_inputs<true>)
KERNEL(spk_wide_encode, WIDE_THREADS, Wide, wide_encode)
KERNEL(spk_wide_product_large_f32, LargeFloatTile::THREADS, Wide, (wide_floats<F32, LargeFloatTile>))
KERNEL(spk_wide_product_large_bf16, LargeFloatTile::THREADS, Wide, (wide_floats<Bf16, LargeFloatTile>))
KERNEL(spk_wide_product_large_f16, LargeFloatTile::THREADS, Wide, (wide_floats<F16, LargeFloatTile>))
KERNEL(spk_wide_product_large_q8, INTEGER_THREADS, Wide, wide_integers<LARGE_INTEGER_TILE>)
KERNEL(spk_wide_product_small_f32, SmallFloatTile::THREADS, Wide, (wide_floats<F32, SmallFloatTile>))
KERNEL(spk_wide_product_small_bf16, SmallFloatTile::THREADS, Wide, (wide_floats<Bf16, SmallFloatTile>))
KERNEL(spk_wide_product_small_f16, SmallFloatTile::THREADS, Wide, (wide_floats<F16, SmallFloatTile>))
KERNEL(spk_wide_product_small_q8, INTEGER_THREADS, Wide, wide_integers<SMALL_INTEGER_TILE>)
KERNEL(spk_wide_wkv, WIDE_WALKERS, Wide, wide_wkv)
KERNEL(spk_wide_neurons, WIDE_WALKERS, Wide, wide_neurons)
