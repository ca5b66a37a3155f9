"""What a report is made of, without a format. All text is one line each, without control characters."""

from __future__ import annotations

from dataclasses import dataclass

from reports.table import Emphasis, Table

FOLDED = ("stages", "facts", "reference", "environment", "machine advice")
"""Titles of sections that a format which can fold keeps closed until somebody wants them."""


@dataclass(frozen=True, kw_only=True)
class Heading:
    """The title of the blocks that follow, up to the next one."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One statement, with the name of what it is about."""

    label: str = ""
    text: str
    emphasis: Emphasis = ""


@dataclass(frozen=True, kw_only=True)
class Banners:
    """What the reader must know before any number that follows."""

    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Legend:
    """How to read a table."""

    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Throughput in items a second against the size of a free dimension, a series a case."""

    title: str
    dim: str
    sizes: tuple[int, ...]
    series: tuple[tuple[str, tuple[float | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """A figure over runs, a series a case. The table before it holds the same numbers."""

    unit: str
    runs: tuple[str, ...]
    """What each is called below the axis, oldest first."""
    series: tuple[tuple[str, tuple[float | None, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """Statements that belong together."""

    title: str
    lines: tuple[Line, ...]
    level: int = 3
    """Of its title, where the report's own has 2 and a `Heading` 3."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A case, or a whole workload, that went wrong and how to see it again."""

    subject: str
    status: str
    stage: str
    reason: str
    emphasis: Emphasis = "bad"
    hint: str = ""
    log: str = ""
    log_tail: tuple[str, ...] = ()
    reproduce: str = ""


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What went wrong."""

    problems: tuple[Problem, ...]
    level: int = 3


@dataclass(frozen=True, kw_only=True)
class Code:
    """Lines to copy, with what they are."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """What a person would say."""

    text: str


Block = Heading | Banners | Table | Legend | Plot | Timeline | Section | Failures | Code | Sentence
