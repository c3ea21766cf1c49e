"""The API as a page that needs nothing but itself: no script, and no server but the endpoint's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; } h3 { margin: 1.75rem 0 .25rem; font-weight: 600; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; } p { margin: .25rem 0; white-space: pre-line; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; }
"""


def reference_page(schema: Mapping[str, Any]) -> str:
    """Return an OpenAPI description as HTML: routes by tag, what they take, and what they answer.

    Example:
        >>> page = reference_page({'info': {'title': 'a<b'}, 'paths': {'/x': {'get': {'summary': 'X'}}}})
        >>> 'a&lt;b' in page, '<code>GET /x</code>' in page
        (True, True)
    """
    info = schema.get("info", {})
    title = escape(str(info.get("title", "API")))
    tagged: dict[str, list[str]] = {}
    for path, operations in schema.get("paths", {}).items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["other"])[0]
            tagged.setdefault(tag, []).append("".join(_operation(method, path, operation)))
    parts = [f"<h2>{escape(tag)}</h2>{''.join(shown)}" for tag, shown in tagged.items()]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: the API</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
        f"<h1>{title} {escape(str(info.get('version', '')))}</h1>"
        f"<p>{escape(str(info.get('summary', '')))}. "
        'For programs: <a href="openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}</main></body></html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3><code>{escape(method.upper())} {escape(path)}</code></h3>"
    yield f"<p>{escape(str(operation.get('description') or operation.get('summary', '')))}</p>"
    if parameters := operation.get("parameters"):
        yield "<table><tr><th>parameter</th><th>in</th><th>type</th><th></th></tr>"
        for one in parameters:
            cells = (one["name"], one["in"], _type(one.get("schema", {})), one.get("description", ""))
            yield f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in cells)}</tr>"
        yield "</table>"
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>body: {escape(kind)}, {escape(_type(body.get('schema', {})))}</p>"
    answers = ", ".join(
        f"{status} {answer.get('description', '')}"
        for status, answer in operation.get("responses", {}).items()
    )
    if answers:
        yield f"<p>answers: {escape(answers)}</p>"


def _type(schema: Mapping[str, Any]) -> str:
    """Return a schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if some := schema.get("anyOf"):
        return " or ".join(_type(one) for one in some)
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"array of {_type(schema.get('items', {}))}"
    return f"{kind} ({schema['format']})" if "format" in schema else kind
