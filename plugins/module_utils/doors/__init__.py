"""Modules that can also be steps of a batch, several in one process. Each file has the `main` of one module."""
