"""API keys: what a key is, how a token is made and told, and whether it opens anything. Pure values.

A token is ``mi_<id>_<secret>``. The id finds the key; of the secret only the SHA-256 is kept. A slow hash
(bcrypt, argon2) protects secrets that people choose, of which an attacker can try the likely ones; these
are 256 random bits, so that nothing faster than trying 2^255 of them exists, whatever the hash costs, and
a slow one would only be a way to keep the endpoint busy.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Literal, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, field_validator

from metainit.errors import EndpointError, suggestion
from serving.scopes import SCOPES, Scope

TOKEN = re.compile(r"mi_([0-9a-f]{12})_([0-9a-f]{64})")
SECRET_IN_TEXT = re.compile(r"(mi_[0-9a-f]{12}_)[0-9A-Za-z]+")
NOBODY = hashlib.sha256(b"").hexdigest()
"""What an unknown id is compared with, so that it takes the time of a known one."""
MAX_KEYS = 10_000
KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
State = Literal["active", "expired", "revoked"]


class BadKey(EndpointError):
    """A key does not exist, or cannot be changed so."""


class Key(BaseModel):
    """One key as it is kept: no secret in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: KeyId
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(repr=False)
    scopes: frozenset[Scope]
    label: str = Field("", max_length=200)
    created: AwareDatetime
    expires: AwareDatetime | None = None
    revoked: AwareDatetime | None = None
    replaced_by: KeyId | None = None

    @field_validator("label")
    @classmethod
    def _label_is_one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("a label is one line of printable text")
        return value

    def state(self, now: datetime) -> State:
        """Return whether the key opens anything at a moment."""
        if self.revoked is not None and self.revoked <= now:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class Made(NamedTuple):
    """A new key and its token, which is told once and kept nowhere."""

    key: Key
    token: str

    def __repr__(self) -> str:
        """Name the key; the token stays secret."""
        return f"Made(key={self.key.id})"


def make(scopes: Iterable[str], now: datetime, label: str = "", lifetime: timedelta | None = None) -> Made:
    """Make a key.

    Raises:
        BadKey: a scope is unknown, or there is none.

    Example:
        >>> from datetime import UTC
        >>> made = make(['read'], datetime(2030, 1, 1, tzinfo=UTC))
        >>> made.key.scopes, made.token.startswith(f'mi_{made.key.id}_')
        (frozenset({'read'}), True)
    """
    wanted = frozenset(scopes)
    for scope in sorted(wanted - set(SCOPES)):
        several = "; give --scope once for each" if "," in scope else ""
        raise BadKey(f"{scope!r} is no scope; {suggestion(scope, SCOPES)}{several}")
    if not wanted:
        raise BadKey(f"a key without a scope opens nothing; the scopes are: {', '.join(SCOPES)}")
    if not label.isprintable() or len(label) > 200:
        raise BadKey(f"the label {label!r} is not one line of at most 200 printable characters")
    secret = secrets.token_hex(32)
    key = Key(
        id=secrets.token_hex(6),
        sha256=_digest(secret),
        scopes=wanted,
        label=label,
        created=now,
        expires=None if lifetime is None else now + lifetime,
    )
    return Made(key, f"mi_{key.id}_{secret}")


def find(keys: Mapping[str, Key], token: str) -> Key | None:
    """Return the key of a token, whatever its state; None for a wrong one.

    Digests of one length are compared in a time that does not depend on where they differ.
    """
    match = TOKEN.fullmatch(token)
    if match is None:
        return None
    key = keys.get(match[1])
    same = hmac.compare_digest(_digest(match[2]), NOBODY if key is None else key.sha256)
    return key if same else None


def revoke(keys: Mapping[str, Key], id_: str, now: datetime) -> Key:
    """Return a key that opens nothing from now on; one that was revoked before stays as it is.

    Raises:
        BadKey: there is no such key.
    """
    key = require(keys, id_)
    return key if key.revoked is not None else key.model_copy(update={"revoked": now})


def rotate(keys: Mapping[str, Key], id_: str, now: datetime, grace: timedelta) -> tuple[Key, Made]:
    """Return the old key, which ends after the grace period, and a new one of the same scopes and label.

    The new one lives as long from now on as the old one was made for.

    Raises:
        BadKey: there is no such key, or it opens nothing any more.
    """
    old = require(keys, id_)
    if old.state(now) != "active":
        raise BadKey(f"key {id_} is {old.state(now)}; make a new one: metainit keys make")
    lifetime = None if old.expires is None else old.expires - old.created
    made = make(old.scopes, now, old.label, lifetime)
    end = now + grace if old.expires is None else min(old.expires, now + grace)
    return old.model_copy(update={"expires": end, "replaced_by": made.key.id}), made


def require(keys: Mapping[str, Key], id_: str) -> Key:
    """Return a key by its id.

    Raises:
        BadKey: there is no such key.
    """
    key = keys.get(id_)
    if key is None:
        shown = redacted(id_)
        hint = suggestion(shown, keys) if keys else "there are no keys yet"
        raise BadKey(f"no key has the id {shown!r}; {hint}")
    return key


def redacted(text: str) -> str:
    """Return a text in which a token has lost its secret.

    Example:
        >>> redacted('GET /v1/inits/mi_0123456789ab_' + 'f' * 64)
        'GET /v1/inits/mi_0123456789ab_…'
    """
    return SECRET_IN_TEXT.sub(r"\1…", text) if "mi_" in text else text


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
