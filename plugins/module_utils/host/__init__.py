"""Settings of a host: swap and kernel parameters."""
