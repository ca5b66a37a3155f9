"""Pages in Debian's chromium, opened as files: what they ask for, what they complain of, what can be reached.

Tests in a browser skip without it, unless HARNESS_REQUIRE names `chromium`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any  # playwright's objects

import pytest

CHROMIUM = shutil.which("chromium")
_FOCUSABLE = "a[href], button, input, summary, [tabindex='0']"
_REACHABLE = f"""() => [...document.querySelectorAll("{_FOCUSABLE}")].filter(one => one.checkVisibility()).length"""
_MARK = """() => {
  const one = document.activeElement;
  const first = one !== document.body && !one.dataset.reached;
  if (first) one.dataset.reached = "yes";
  return first;
}"""


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser, or skip the test."""
    required = "chromium" in os.environ.get("HARNESS_REQUIRE", "").split(",")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        if required:
            raise
        pytest.skip("playwright is not installed")
    if CHROMIUM is None:
        assert not required, "chromium is required here"
        pytest.skip("there is no chromium; apt-get install chromium")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visitor:
    """Opens pages as files and remembers all that they ask for and complain of."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._tabs: list[Any] = []

    def open(self, path: Path, *, width: int = 1280, scheme: str = "light") -> Any:
        """Return a tab with the page; it keeps what was `asked` for, and what the page complained of as `seen`."""
        tab = self._browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.seen, tab.asked = [], []
        tab.on("console", lambda message: tab.seen.append(message.text))
        tab.on("pageerror", lambda error: tab.seen.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(path.as_uri())
        tab.own = {path.as_uri()}
        self._tabs.append(tab)
        return tab

    def leave(self) -> None:
        """Close all tabs; complain of what they did."""
        for tab in self._tabs:
            assert tab.seen == [], "the page complained"
            assert [url for url in tab.asked if url.partition("#")[0] not in tab.own] == [], (
                "the page asked for something"
            )
            tab.close()


def reached_by_keyboard(tab: Any) -> tuple[int, int]:
    """Return how many things the Tab key reaches, and how many there are to reach."""
    wanted = tab.evaluate(_REACHABLE)
    reached = 0
    for _ in range(wanted + 3):
        tab.keyboard.press("Tab")
        reached += tab.evaluate(_MARK)
    return reached, wanted
