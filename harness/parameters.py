"""Kinds of values on the command line, beyond those that click knows."""

from __future__ import annotations

import math
from typing import Any

import click

from harness.errors import UsageError


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "number"


class Amount(click.FloatRange):
    """A finite number above zero: JSON, and so `run.json`, has neither infinity nor NaN."""

    name = "number"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Sizes(click.ParamType[list[int]]):
    """One or more sizes, such as `1,4,32`; in a file of defaults also a list."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        from harness.workloads import parse_sizes

        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        try:
            return parse_sizes("sizes", text)
        except UsageError as exc:
            self.fail(exc.message, param, ctx)


class ClockRate(click.ParamType["int | str"]):
    """A clock in MHz, or `base`: what the card holds at its rated power."""

    name = "MHz"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "base":
            return "base"
        if not str(value).isdecimal() or not 0 < int(value) <= 10_000:
            self.fail(f"'{value}' is not a clock in MHz, such as 1800, or: base", param, ctx)
        return int(value)
