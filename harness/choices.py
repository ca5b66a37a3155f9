"""What is wrong with the value of an option, in words: the error that names all values that there are."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from harness import registry
from harness.errors import UsageError


def refusal(
    exc: msgspec.ValidationError, options: type[msgspec.Struct], raw: Mapping[str, str], *, of: str, hint: str
) -> UsageError:
    """Return the error for a value that an option may not have, with the nearest of those that it may.

    Args:
        exc: What msgspec says of the values, such as "Expected `int | null`, got `str` - at `$.trials`".
        options: The type that they were converted to.
        raw: The values as they were typed, by option.
        of: Whose options they are.
        hint: What lists them.
    """
    text, _, where = str(exc).partition(" - at `$.")
    key = where.rstrip("`")
    if key not in raw:
        return UsageError(f"options of {of}: {text}", hint=hint)
    if known := _values(options, key):
        error = registry.unknown(f"value of {of}:{key}", raw[key], known)
        return UsageError(error.message, hint=hint)
    # The name and the value first; and every value that was typed is a `str`.
    text = text.replace(" | null", "").removesuffix(", got `str`")
    return UsageError(f"options of {of}: {key}={raw[key]}: {text}", hint=hint)


def _values(options: type[msgspec.Struct], key: str) -> list[str]:
    """Return all values that an option may have; none where they are too many to be counted."""
    facts = msgspec.json.schema(options)["$defs"][options.__name__]["properties"][key]
    kinds = facts.get("anyOf", [facts])
    if any(kind.get("type") == "boolean" for kind in kinds):
        return ["true", "false"]
    return [value for kind in kinds for value in kind.get("enum", ())]
