"""A model card's Markdown -> HTML: headings, lists, tables, paragraphs, *emphasis* and `code`: all that cards have.

Whoever wrote the card is not trusted: every character of it is text, and nothing in it becomes a tag or a link.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import groupby

_HEADING = re.compile(r"(#{1,3}) +(.*)")
_MARKED = ((re.compile(r"`([^`]+)`"), r"<code>\1</code>"), (re.compile(r"(?<!\w)\*([^*`]+)\*(?!\w)"), r"<em>\1</em>"))
_RULE = re.compile(r"[|\s:-]+")


def render(markdown: str) -> str:
    """The body of a page."""
    return "\n".join(_block(kind, list(lines)) for kind, lines in groupby(markdown.splitlines(), _kind))


def _kind(line: str) -> str:
    if not line.strip():
        return "nothing"
    if _HEADING.fullmatch(line):
        return "heading"
    return {"- ": "list", "| ": "table", "|-": "table"}.get(line[:2], "paragraph")


def _block(kind: str, lines: list[str]) -> str:
    if kind == "heading":
        return "\n".join(_headings(lines))
    if kind == "list":
        return f"<ul>{''.join(f'<li>{_text(line[2:])}</li>' for line in lines)}</ul>"
    if kind == "table":
        first, *rest = [line for line in lines if not _RULE.fullmatch(line)] or [""]
        body = "".join(_row(line, "td") for line in rest)
        return f"<table><thead>{_row(first, 'th')}</thead><tbody>{body}</tbody></table>"
    return f"<p>{_text(' '.join(lines))}</p>" if kind == "paragraph" else ""


def _text(line: str) -> str:
    text = html.escape(line)
    for found, made in _MARKED:
        text = found.sub(made, text)
    return text


def _headings(lines: list[str]) -> Iterator[str]:
    for line in lines:
        found = _HEADING.fullmatch(line)
        level, text = (len(found[1]), found[2]) if found else (2, line)
        yield f"<h{level}>{html.escape(text)}</h{level}>"


def _row(line: str, cell: str) -> str:
    cells = (html.escape(text.strip()) for text in line.strip().strip("|").split("|"))
    return f"<tr>{''.join(f'<{cell}>{text}</{cell}>' for text in cells)}</tr>"
