"""The light stand-in of Triton: only the C helper that is compiled before the first kernel."""
