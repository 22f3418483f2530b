"""The node agent: finds a Session's processes, lets their GPU memory go, and proves it."""
