"""Do, Redis: the only importer of redis.

`client` owns connections and errors, `keys` every name, `sessions` our own records on the
control side, `clearing` the removal of a Session's state on the tenants' side.
"""
