// The operators of training, forward and backward, launched by python/spikelet/training/ops/cuda.py.
// Suffixes name the type of what comes from and goes to matrix products; everything else is float.
#include "train/lif.cuh"
#include "train/mix.cuh"
#include "train/sum_rows.cuh"
#include "train/wkv4.cuh"

KERNEL(spk_wkv4_forward_f32, WALKERS, Wkv4Forward<float>, wkv4_forward)
KERNEL(spk_wkv4_forward_bf16, WALKERS, Wkv4Forward<bf16>, wkv4_forward)
KERNEL(spk_wkv4_backward_f32, WALKERS, Wkv4Backward<float>, wkv4_backward)
KERNEL(spk_wkv4_backward_bf16, WALKERS, Wkv4Backward<bf16>, wkv4_backward)
KERNEL(spk_lif_forward_f32, WALKERS, LifForward<float>, lif_forward)
KERNEL(spk_lif_forward_bf16, WALKERS, LifForward<bf16>, lif_forward)
KERNEL(spk_lif_backward_f32, WALKERS, LifBackward<float>, lif_backward)
KERNEL(spk_lif_backward_bf16, WALKERS, LifBackward<bf16>, lif_backward)
KERNEL(spk_mix_forward_f32, MIX_THREADS, MixForward<float>, mix_forward)
KERNEL(spk_mix_forward_bf16, MIX_THREADS, MixForward<bf16>, mix_forward)
KERNEL(spk_mix_backward_f32, MIX_THREADS, MixBackward<float>, mix_backward)
KERNEL(spk_mix_backward_bf16, MIX_THREADS, MixBackward<bf16>, mix_backward)
KERNEL(spk_sum_rows_f32, SUM_LANES * SUM_COLUMNS, SumRows, sum_rows)
