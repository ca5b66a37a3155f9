"""The console script, as pip would write it."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

from _harness_boot import main  # noqa: E402 - the path comes first

main()
