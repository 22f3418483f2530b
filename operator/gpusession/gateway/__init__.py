"""The gateway process: clients' beats, activity, closes and tokens, over WebSocket and HTTP.

It decides nothing about a Session's end: it brings what clients say to Redis and what
Redis says to clients. It never closes a connection because data is missing.
"""
