"""Fetch public weights through the hub's ordinary client and its cache, and check them against its checksum."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness.api import PublicWeights
from harness.artifact import sha256
from harness.errors import ExportError

HUB = "https://huggingface.co"
SHA256_DIGITS = 64
GIT_DIGITS = 40


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A file in the hub client's cache."""

    path: Path
    revision: str | None
    """The commit of the repository, where the cache's layout tells it."""
    sha256: str


def fetch(public: PublicWeights) -> Fetched:
    """Return the file of public weights, downloaded unless the client's cache has it.

    Raises:
        ExportError: The hub cannot be reached, refuses, or the file does not have the hub's checksum.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as exc:
        raise ExportError(
            "public weights need huggingface_hub", hint="pip install 'harness[models]', or --weights FILE"
        ) from exc
    try:
        # What is in the cache is used as it is: a comparison stays the same from one day to the next.
        found = cached(public)
        if found:
            return found
        path = Path(hf_hub_download(public.repository, public.file))
    except ExportError:
        raise
    except Exception as exc:  # the client raises its own, its HTTP library's and the system's errors
        raise unreachable(public, exc) from exc
    return _fetched(path)


def cached(public: PublicWeights) -> Fetched | None:
    """Return the file of public weights if the client's cache has it, without asking the network.

    Raises:
        ExportError: The file does not have the hub's checksum.
    """
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(public.repository, public.file)
    return _fetched(Path(found)) if isinstance(found, str) else None


def _fetched(path: Path) -> Fetched:
    return Fetched(path=path, revision=revision_of(path), sha256=_checked(path))


def revision_of(path: Path) -> str | None:
    """Return the commit out of a path in the client's cache: `.../snapshots/<commit>/file`."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _checked(path: Path) -> str:
    """Return the file's sha256 after comparing it with the name that the client's cache gave its content.

    That name is the hub's checksum: sha256 of a large file, git's sha1 of a small one.
    """
    digest = sha256(path)
    expected = path.resolve().name
    if len(expected) == SHA256_DIGITS:
        good = expected == digest
    elif len(expected) == GIT_DIGITS:
        good = expected == _git_sha1(path)
    else:
        good = True  # a cache without symbolic links: the client checked the size only
    if not good:
        raise ExportError(
            f"{path} does not have the checksum that the hub states ({expected[:12]}...): it is damaged",
            hint=f"delete {path.resolve()} and run again",
        )
    return digest


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    digest.update(path.read_bytes())
    return digest.hexdigest()


def unreachable(public: PublicWeights, exc: BaseException) -> ExportError:
    """Return the error for weights that cannot be had, which says how to get the file by hand."""
    url = f"{HUB}/{public.repository}/resolve/main/{public.file}"
    kind, text = type(exc).__name__, str(exc).strip()
    first = text.splitlines()[0] if text else kind
    status = getattr(getattr(exc, "response", None), "status_code", None)
    if kind == "GatedRepoError" or status in (401, 403):
        return ExportError(
            f"cannot reach {public.repository}: its publisher asks for consent ({public.licence}): {first}",
            hint=f"accept the licence at {HUB}/{public.repository} and set HF_TOKEN, "
            f"or download {url} in a browser and give it: --weights FILE",
        )
    return ExportError(
        f"cannot reach {public.repository} ({public.file}): {kind}: {first}",
        hint=f"download {url} where there is a network and give it: --weights FILE",
    )
