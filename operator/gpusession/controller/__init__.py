"""The process that watches Sessions and takes each through its life.

One way round: `handlers` (and reflectors, sweep) put a key into `queue`; `worker` takes it,
`observer` looks, `rules.lifecycle` decides, `actions` act, until nothing is left to do.
"""
