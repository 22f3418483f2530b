"""Do: everything that is said to kube-apiserver, over one bounded aiohttp session.

`connection` logs in, `client` sends one request and sorts out errors, `reader` and
`writer` are the verbs in the words of `api`, `reflector` follows a kind of object.
"""
