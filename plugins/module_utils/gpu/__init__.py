"""GPUs: what nvidia-smi, the driver and DCGM report, and the memory that engines need."""
