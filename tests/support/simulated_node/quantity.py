"""Reads amounts as Kubernetes writes them."""

import re

_UNITS = {"": 1, "m": 1e-3, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("KMGT", start=1)
}


def parse_quantity(text: str) -> int:
    """Give the whole number that a quantity such as 6Gi, 500M or 1 stands for."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text.strip())
    if found is None or found.group(2) not in _UNITS:
        raise ValueError(f"not a Kubernetes quantity: {text!r}")
    return int(float(found.group(1)) * _UNITS[found.group(2)])
