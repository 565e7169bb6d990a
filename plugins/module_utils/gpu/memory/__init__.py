"""Plans the memory of a GPU before an engine is started on it.

Plain Python without Ansible: `options` lists what a service may say, `planner.plan` makes a plan, `render` shows it,
`journal` compares it with what the engine logged, `checks` checks that a model is complete and an adapter matches.
docs/gpu-memory.md explains the arithmetic.
"""
