"""Engines of a host: what is declared, what runs, their models and programs."""
