"""The laboratory: everything that exists only because here is no GPU, no cloud and no model hub."""
