"""Words: what crosses a boundary, as data without behaviour.

`session` is the custom resource, `release` is the talk between controller and agent.
Everything else may import from here; nothing here imports from the rest.
"""
