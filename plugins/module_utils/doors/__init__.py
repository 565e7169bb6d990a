"""Modules that can also run in a batch, several in one process; see `..batch`. Each file has the `main` of one module."""
