"""Which release of a backend changed a figure: `harness bisect`.

`search` decides which pair of versions is judged next, `versions` installs them, `judging` measures a pair and keeps
what came of it, `pairs` says what its runs amount to, `found` holds the answer.
"""
