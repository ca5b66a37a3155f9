"""Kinds of values on the history's command line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Any

import click

from harness.history.points import sortable


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
