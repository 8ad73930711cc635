"""spikelet: fast local text generation with SpikeGPT and RWKV models."""
