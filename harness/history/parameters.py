"""Kinds of values on the history's command line."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta, timezone
from typing import Any

import click

from harness.history.limits import DriftLimit
from harness.history.points import sortable

ANY = "any"


class Since(click.ParamType[str]):
    """A day or a time of day, or how many days ago: `2026-03-02`, `30d`. Converted to ISO 8601 in UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).strip()
        if days := re.fullmatch(r"(\d{1,5})d", text):
            then = datetime.now(timezone.utc) - timedelta(days=int(days[1]))
            return then.isoformat(timespec="seconds")
        try:
            when = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            self.fail(f"'{text}' is neither a day such as 2026-03-02 nor a number of days such as 30d.", param, ctx)
        return sortable((when if when.tzinfo else when.replace(tzinfo=timezone.utc)).isoformat())


class Growth(click.ParamType[float]):
    """How much larger a figure may become: `5%`, converted to a share; `any` is infinite."""

    name = "growth"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value).strip()
        if text == ANY:
            return math.inf
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*%", text)
        if found is None:
            self.fail(f"'{text}' is neither a growth in percent such as 5%, nor: {ANY}", param, ctx)
        return float(found[1]) / 100


class DriftGrowth(click.ParamType[DriftLimit]):
    """What drift may become: `10x` what it was, a distance such as `1e-3`, `pass`, or `any`."""

    name = "drift"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DriftLimit:
        if isinstance(value, DriftLimit):
            return value
        text = str(value).strip()
        if text == "pass":
            return DriftLimit(kind="pass")
        if text == ANY:
            return DriftLimit(kind="any")
        factor = text.endswith("x")
        try:
            number = float(text.removesuffix("x"))
        except ValueError:
            number = math.nan
        if not (math.isfinite(number) and number >= (1 if factor else 0)):
            self.fail(
                f"'{text}' is none of: so many times what it was, such as 10x; a relative L2 distance such as 1e-3; "
                f"pass; {ANY}",
                param,
                ctx,
            )
        return DriftLimit(kind="factor" if factor else "distance", value=number)
