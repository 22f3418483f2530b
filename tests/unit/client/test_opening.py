"""What a client is put together from."""

import pytest

from gpusession.client import connect
from gpusession.client.opening import gateway_base


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://gateway:8080", "http://gateway:8080"),
        ("wss://gateway/", "https://gateway"),
        ("https://edge/gpusession/", "https://edge/gpusession"),
    ],
)
def test_address_may_name_either_protocol_and_a_path(url: str, base: str) -> None:
    """HTTP and WebSocket are one address."""
    assert gateway_base(url) == base


@pytest.mark.parametrize(
    "url",
    ["gateway:8080", "ftp://g", "http://", "http://u:secret@g", "http://g?token=secret"],
)
def test_address_with_anything_else_is_refused_and_not_quoted(url: str) -> None:
    """It would end up in somebody's log."""
    with pytest.raises(ValueError, match="address") as refused:
        gateway_base(url)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("sources", [{}, {"token": "a", "token_file": "b"}], ids=["none", "two"])
async def test_exactly_one_source_of_a_token_is_needed(sources: dict[str, str]) -> None:
    """Two would leave open which one is used."""
    with pytest.raises(ValueError, match="exactly one"):
        async with connect("http://gateway", **sources):  # type: ignore[arg-type]
            pass
