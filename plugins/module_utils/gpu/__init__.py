"""GPUs: what nvidia-smi, the driver and DCGM say, and the memory that engines need."""
