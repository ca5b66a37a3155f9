"""Where cases run, or what they are built for. The grammar of `--device` and `--target` is defined here.

    devices = device ("," device)*
    device  = "auto" | "cpu" | "cuda" [":" number]
    targets = target ("," target)*
    target  = "sm_" number                  a compute capability, as CUDA's compilers write it

`auto` is the first GPU where one answers, else the CPU. `cuda` is `cuda:0`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from harness import registry
from harness.errors import UsageError

AUTO, CPU, CUDA = "auto", "cpu", "cuda"
CARDS: Mapping[str, str] = {
    "A10": "sm_86",
    "A100": "sm_80",
    "B200": "sm_100",
    "GTX 1080 Ti": "sm_61",
    "H100": "sm_90",
    "H200": "sm_90",
    "Jetson Orin": "sm_87",
    "L4": "sm_89",
    "L40S": "sm_89",
    "RTX 2080 Ti": "sm_75",
    "RTX 3080": "sm_86",
    "RTX 3090": "sm_86",
    "RTX 4060": "sm_89",
    "RTX 4070": "sm_89",
    "RTX 4080": "sm_89",
    "RTX 4090": "sm_89",
    "RTX 5080": "sm_120",
    "RTX 5090": "sm_120",
    "T4": "sm_75",
    "V100": "sm_70",
}
"""Card -> compute capability, as NVIDIA's list of CUDA GPUs has it."""


def kind(device: str) -> str:
    """Return `cpu` or `cuda`."""
    return device.partition(":")[0]


def parse_devices(text: str, gpus: Sequence[str]) -> list[str]:
    """Return the devices of `--device`, each once, in the order asked for.

    Args:
        text: In the grammar above.
        gpus: Names of the GPUs that the driver reports. Where it reports none, `cuda` is taken as asked: every case
            then says for itself what it misses.

    Raises:
        UsageError: A word that is no device, or a GPU beyond those that there are.
    """
    found: list[str] = []
    for word in (part.strip().lower() for part in text.split(",")):
        device = _device(word, gpus)
        if device not in found:
            found.append(device)
    return found


def _device(word: str, gpus: Sequence[str]) -> str:
    if word == AUTO:
        return f"{CUDA}:0" if gpus else CPU
    if word == CPU:
        return CPU
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?", word)
    if match is None:
        known = [AUTO, CPU, CUDA, *(f"{CUDA}:{index}" for index in range(len(gpus)))]
        raise registry.unknown("device", word, known)
    index = int(match[1] or 0)
    if gpus and index >= len(gpus):
        here = ", ".join(f"{CUDA}:{number} ({name})" for number, name in enumerate(gpus))
        raise UsageError(f"this machine has no {CUDA}:{index}", hint=f"it has {here}")
    return f"{CUDA}:{index}"


def parse_targets(target: str | None, card: str | None) -> list[str]:
    """Return the compute capabilities of `--target` and `--for`, each once.

    Raises:
        UsageError: A word that is no compute capability, or a card that is not in the table.
    """
    words = [part.strip().lower() for part in (target or "").split(",") if part.strip()]
    for word in words:
        if not re.fullmatch(r"sm_\d{2,3}a?", word):
            raise UsageError(f"--target {word} is no compute capability", hint="--target sm_89, or --for 'RTX 4090'")
    names = [_card(part.strip()) for part in (card or "").split(",") if part.strip()]
    return list(dict.fromkeys([*words, *names]))


def _card(name: str) -> str:
    plain = _plain(name)
    for known, target in CARDS.items():
        if _plain(known) == plain:
            return target
    raise registry.unknown("card", name, CARDS)


def _plain(name: str) -> str:
    # "NVIDIA GeForce RTX 4090", "rtx4090" and "RTX 4090" are one card.
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())
