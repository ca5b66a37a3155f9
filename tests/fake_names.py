"""What each fault must look like in the table: case -> (status, stage, part of the reason)."""

EXPECTED = {
    "fake-segfault-at-compile": ("crashed", "compile", "SIGSEGV"),
    "fake-segfault-at-probe": ("crashed", "import", "SIGSEGV"),
    "fake-exit-at-load": ("crashed", "warm load", "exit code 3"),
    "fake-hang-at-compile": ("timeout", "compile", "no answer within 15 s"),
    "fake-hang-in-round": ("timeout", "measure", "no answer within 15 s"),
    "fake-segfault-in-round": ("crashed", "measure", "SIGSEGV"),
    "fake-fork-at-compile": ("ok", "", ""),
    "fake-fork-and-crash": ("crashed", "compile", "exit code 1"),
    "fake-eat-memory": ("out_of_memory", "compile", "the limit is 1.5 GiB"),
    "fake-memory-error-at-compile": ("out_of_memory", "compile", "1 TiB"),
    "fake-half-line": ("crashed", "compile", "not the protocol"),
    "fake-chatty": ("ok", "", ""),
    "fake-odd-exception": ("compile_failed", "compile", "KeyError"),
    "fake-sys-exit": ("crashed", "compile", "exit code 0"),
    "fake-nan": ("drifted", "judge", "NaN"),
    "fake-wrong-shape": ("drifted", "judge", "shape"),
    "fake-too-few": ("drifted", "judge", "missing"),
    "fake-cannot-save": ("run_failed", "save", "No space left"),
}
