"""Tables of commands that are no reports: no wider than the terminal, as far as their words allow."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

from tabulate import tabulate

NARROWEST = 14
"""Characters below which a column of prose is not pressed."""


def fitted(
    rows: Sequence[Sequence[str]], headers: Sequence[str], *, prose: Sequence[str], spare: Sequence[str] = ()
) -> str:
    """Return a table, its columns of prose wrapped where the terminal is too narrow for it.

    Elsewhere, such as in a pipe, a row is one line, so that it can be searched.

    Args:
        rows: Their cells.
        headers: Of the columns.
        prose: Headers of the columns that may be wrapped; figures and names stay whole.
        spare: Headers of the columns that are left out, the first one first, where wrapping is not enough.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        return tabulate(rows, headers=headers)
    columns = shutil.get_terminal_size().columns
    table = _wrapped(rows, headers, prose, columns)
    if spare and _width(table) > columns:
        kept = [index for index, head in enumerate(headers) if head != spare[0]]
        narrower = [[row[index] for index in kept] for row in rows]
        return fitted(narrower, [headers[index] for index in kept], prose=prose, spare=spare[1:])
    return table


def _wrapped(rows: Sequence[Sequence[str]], headers: Sequence[str], prose: Sequence[str], columns: int) -> str:
    table = tabulate(rows, headers=headers)
    widths = {
        index: max(len(row[index]) for row in (headers, *rows)) for index, head in enumerate(headers) if head in prose
    }
    words = [max(map(len, head.split()), default=1) for head in headers]
    while (over := _width(table) - columns) > 0 and max(widths.values(), default=0) > NARROWEST:
        widest = max(widths, key=lambda index: widths[index])
        second = max((width for index, width in widths.items() if index != widest), default=0)
        # Down to the next widest at once, and then together.
        widths[widest] = max(NARROWEST, min(widths[widest] - 1, max(widths[widest] - over, second)))
        table = tabulate(
            rows,
            headers=headers,
            maxcolwidths=[widths.get(index) for index in range(len(headers))],
            maxheadercolwidths=[widths.get(index, word) for index, word in enumerate(words)],
        )
    return table


def _width(table: str) -> int:
    return max(map(len, table.splitlines()), default=0)
