"""What the light stand-in has of FlashInfer: the sampler that wants a compiler for GPUs."""
