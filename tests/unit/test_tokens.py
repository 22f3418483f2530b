"""A token is read back as its Session's, and shown by nothing."""

import hashlib

import pytest

from gpusession import tokens

UID = "0f6ac3ae-90a4-4f21-9b3c-0a6b6f2d6a11"


def test_a_token_leads_back_to_its_session() -> None:
    """The uid is in the text, and the digest is of the whole text."""
    token = tokens.mint(UID)

    assert tokens.parse(token.text) == (UID, token.digest)
    assert token.digest == hashlib.sha256(token.text.encode()).hexdigest()


def test_a_token_has_the_promised_shape() -> None:
    """Clients and redactors lean on prefix and length."""
    text = tokens.mint(UID).text

    assert text.startswith("gs1_0f6ac3ae90a44f219b3c0a6b6f2d6a11_")
    assert len(text) == 4 + 32 + 1 + 43


def test_two_tokens_of_a_session_differ() -> None:
    """Chance, not the uid, makes a token."""
    assert tokens.mint(UID).text != tokens.mint(UID).text


def test_no_repr_shows_a_token() -> None:
    """A traceback with locals, or a careless log line, gives nothing away."""
    token = tokens.mint(UID)

    assert token.text not in repr(token)
    assert token.digest not in repr(token)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gs1_",
        "gs2_" + "0" * 32 + "_" + "a" * 43,
        "gs1_" + "0" * 31 + "_" + "a" * 43,
        "gs1_" + "A" * 32 + "_" + "a" * 43,
        "gs1_" + "0" * 32 + "_" + "a" * 42,
        "gs1_" + "0" * 32 + "_" + "a" * 44,
        "gs1_" + "0" * 32 + "_" + "a" * 42 + "!",
        "gs1_" + "0" * 32 + "_" + "a" * 43 + "\n",
        "\udc80",
    ],
    ids=["empty", "prefix", "version", "uid", "case", "short", "long", "sign", "line", "bytes"],
)
def test_what_is_no_token_is_refused_without_a_look(text: str) -> None:
    """Redis is asked only for what could be a token."""
    assert tokens.parse(text) is None


def test_a_uid_that_is_none_is_refused() -> None:
    """Every Session's uid is a UUID; another one is a mistake of ours."""
    with pytest.raises(ValueError, match="badly formed"):
        tokens.mint("session-1")
