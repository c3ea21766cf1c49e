"""What the endpoint refuses before a route sees it; each carries the headers that its answer needs."""

from __future__ import annotations

from collections.abc import Mapping

from metainit.errors import EndpointError


class Refusal(EndpointError):
    """A request that is refused; `headers` go with the answer."""

    def __init__(self, text: str, headers: Mapping[str, str] | None = None) -> None:
        """Keep the text and the headers."""
        super().__init__(text)
        self.headers = dict(headers or {})


class Unauthorized(Refusal):
    """There is no key where one is needed, or a wrong, expired or revoked one."""


class Forbidden(Refusal):
    """The key is good, but lacks the scope; or the request came around the front door."""


class TooMany(Refusal):
    """More requests than the rate allows."""


class TooLong(Refusal):
    """The address is longer than the limit."""


class HeadersTooLarge(Refusal):
    """The headers are larger than the limit."""


class BodyTooLarge(Refusal):
    """The body is larger than the limit."""


class Overloaded(Refusal):
    """As many requests as allowed are under way already."""


class TooSlow(Refusal):
    """No answer began within the time."""


class KeysUnreadable(Refusal):
    """The file of keys cannot be read, so nobody is let in."""


class NoRoute(Refusal):
    """The table of scopes does not know the path."""


class NoMethod(Refusal):
    """The table of scopes knows the path, but not with this method."""
