"""Do, Redis: the only importer of redis.

`client` owns connections and errors, `keys` every name. On the control side `sessions` are our own
records, `clients` what clients do to them, `deadlines` when to look at which, `gateways` who may
bring beats, `pulse` whether it is still the same server, `events` the news between processes;
`clearing` removes a Session's state on the tenants' side.
"""
