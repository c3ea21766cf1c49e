"""How an initialization on an endpoint is named: a reference as ``faces@champion``, or its URL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from metainit.errors import EndpointError

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_REFERENCE = re.compile(rf"(?P<name>{NAME})(?:@(?P<alias>{NAME})|/(?:versions/)?(?P<version>[0-9]{{1,9}}))?")
_SOURCE = re.compile(r"(?P<base>https?://[^?#]+?)/v1/inits/(?P<reference>[^?#]+?)(?:/weights)?/?")


@dataclass(frozen=True)
class Reference:
    """A registered name, at an alias or a version; with neither, the champion (else the newest).

    Example:
        >>> Reference.parse('faces@champion').path
        '/v1/inits/faces@champion'
        >>> Reference.parse('faces/3').path
        '/v1/inits/faces/versions/3'
    """

    name: str
    alias: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read ``name``, ``name@alias`` or ``name/version``.

        Raises:
            EndpointError: the text has another form.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise EndpointError(
                f"{text!r} names no initialization; expected name, name@alias or name/version, "
                "with letters, digits, '.', '_' and '-' in names"
            )
        version = match["version"]
        return cls(match["name"], match["alias"], int(version) if version else None)

    @property
    def path(self) -> str:
        """The path of the initialization on an endpoint."""
        if self.version is not None:
            return f"/v1/inits/{self.name}/versions/{self.version}"
        return f"/v1/inits/{self.name}@{self.alias}" if self.alias else f"/v1/inits/{self.name}"

    def __str__(self) -> str:
        """Return the reference as a user writes it."""
        if self.version is not None:
            return f"{self.name}/{self.version}"
        return f"{self.name}@{self.alias}" if self.alias else self.name


def parse_url(source: str) -> tuple[str, Reference]:
    """Split the address of an initialization into the endpoint's base URL and the reference.

    Raises:
        EndpointError: the address has another form.

    Example:
        >>> base, reference = parse_url('https://host/team/v1/inits/faces@champion')
        >>> base, str(reference)
        ('https://host/team', 'faces@champion')
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise EndpointError(
            f"{source!r} is not the address of an initialization; "
            "expected http(s)://host[:port]/v1/inits/name[@alias|/versions/n]"
        )
    return match["base"], Reference.parse(match["reference"])
