"""The light stand-in of FlashInfer: only the sampler that needs a GPU compiler."""
