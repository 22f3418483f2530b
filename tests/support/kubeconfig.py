"""Writes kubeconfigs that only their owner can read; JSON is YAML enough for every client."""

import json
from pathlib import Path
from typing import Any

from tests.support.pki import Certificate


def _write(path: Path, *, server: str, ca_file: Path, user: dict[str, Any], namespace: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": server, "certificate-authority": str(ca_file)}}
        ],
        "users": [{"name": "user", "user": user}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "user", "namespace": namespace}}
        ],
        "current-context": "test",
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
    return path


def for_fake(path: Path, *, server: str) -> Path:
    """Write a kubeconfig for a fake of the apiserver, which speaks plain HTTP."""
    config = {
        "current-context": "fake",
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "somebody"}}],
        "clusters": [{"name": "fake", "cluster": {"server": server}}],
        "users": [{"name": "somebody", "user": {"token": "somebody"}}],
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def by_certificate(path: Path, *, server: str, ca_file: Path, pair: Certificate) -> Path:
    """Write a kubeconfig that shows a client certificate."""
    user = {"client-certificate": str(pair.cert), "client-key": str(pair.key)}
    return _write(path, server=server, ca_file=ca_file, user=user, namespace="default")


def by_token_file(
    path: Path, *, server: str, ca_file: Path, token_file: Path, namespace: str
) -> Path:
    """Write a kubeconfig whose token is read from a file, so that it can be replaced."""
    user = {"tokenFile": str(token_file)}
    return _write(path, server=server, ca_file=ca_file, user=user, namespace=namespace)
