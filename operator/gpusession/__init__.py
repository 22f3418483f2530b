"""GPU session operator: ends GPU sessions on Kubernetes on evidence, exactly once."""

__version__ = "0.1.0"
