"""Finds why a service does not run, or runs but does not work, from what a host or a saved log shows.

Plain Python without Ansible: `lines` reads text, `failures` finds exceptions and ends of units in it, `causes` is the
table of known causes, `judge` weighs them, `render` shows the result, `host` reads a machine. Saved text:

    python -m plugins.module_utils.diagnosis FILE
"""
