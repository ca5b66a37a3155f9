"""Quantities with a unit on the command line: `20ms`, `10m`, `8GB`, `99%`. A bare duration or size is refused."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import click

_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ%]*)\s*")
DURATIONS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2.0**20, "GiB": 2.0**30}
SHARES = {"%": 0.01, "": 1.0}


class Quantity(click.ParamType[float]):
    """A positive number with a unit."""

    units: ClassVar[dict[str, float]]
    example: ClassVar[str]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):  # a default of ours
            return value
        found = _NUMBER.fullmatch(str(value))
        unit = self._unit(found.group(2)) if found else None
        if found is None or unit is None:
            units = ", ".join(name for name in self.units if name)
            self.fail(
                f"'{value}' is not a {self.name}; give a number with one of {units}, such as {self.example}.",
                param,
                ctx,
            )
        number = float(found.group(1)) * unit
        if not (number > 0 and math.isfinite(number)):
            self.fail(f"'{value}' is not a {self.name} above zero.", param, ctx)
        return number

    def _unit(self, text: str) -> float | None:
        return self.units.get(text)


class Duration(Quantity):
    """A duration, in seconds."""

    name = "duration"
    units = DURATIONS
    example = "20ms or 10m"


class Bytes(Quantity):
    """A size, in bytes. Units are decimal, as in the reports, unless they say `iB`; their case does not matter."""

    name = "size"
    units = SIZES
    example = "8GB"

    def _unit(self, text: str) -> float | None:
        return {name.lower(): size for name, size in SIZES.items()}.get(text.lower())


class Share(Quantity):
    """A share from above 0 to 1: `99%` or `0.99`."""

    name = "share"
    units = SHARES
    example = "99%"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        if number > 1:
            self.fail(f"'{value}' is more than all, which is 100% or 1.", param, ctx)
        return number


class Threshold(Quantity):
    """From which growth on it counts, as a share of what it was: `5%`; `300%` is four times as large."""

    name = "threshold"
    units: ClassVar = {"%": 0.01}
    example = "5%"


class Drift(click.ParamType[str | float]):
    """`pass`, `any`, or the largest relative L2 distance."""

    name = "drift"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        if value in ("pass", "any") or isinstance(value, float):
            return str(value) if isinstance(value, str) else float(value)
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not (number > 0 and math.isfinite(number)):
            self.fail(
                f"'{value}' is neither pass, any, nor a relative L2 distance above zero such as 1e-3.", param, ctx
            )
        return number
