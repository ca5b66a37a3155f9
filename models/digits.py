"""A classifier of handwritten digits that is trained on the spot: real accuracy without a download.

Two of three images of `harness.digits` train the network, the others are for judging; input and calibration sets are
drawn from the former.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from harness.api import InputSpec, ReferenceModel
from harness.digits import SIDE, images_and_labels

if TYPE_CHECKING:
    import numpy as np
    import torch

    from harness.weights import Provenance

CLASSES = 10
EPOCHS, BATCH, RATE = 12, 32, 3e-3


class Digits(ReferenceModel):
    """Two convolutions and a linear layer."""

    name = "digits"
    summary = "classifier of 8x8 handwritten digits, trained on the spot in seconds; for --dataset digits"
    tags = ("vision", "classification", "test")
    parameters = 9_930
    gflop = 0.000176
    memory_gib = 0.5
    task = "classification"
    trained = True
    default_weights = "pretrained"
    requires = ("sklearn",)
    install = "pip install 'harness[datasets]'"

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return (InputSpec(name="image", dtype="float32", shape=("batch", 1, SIDE, SIDE)),)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("logits",)

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from torch import nn

        return nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1),  # (B, 16, 8, 8)
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),  # (B, 32, 4, 4)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, CLASSES),  # (B, 10)
        ).eval()

    def example_inputs(self, dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Draw images of the part that trains: what is judged stays unseen, by the calibration too."""
        import numpy as np

        images, _ = images_and_labels(judged=False)
        return {"image": images[np.random.default_rng(seed).integers(0, len(images), dims["batch"])]}

    def load_public(self, dims: Mapping[str, int]) -> torch.nn.Module:
        """Return the module trained from torch's current random state; the same again for the same seed."""
        import torch

        images, labels = (torch.from_numpy(array) for array in images_and_labels(judged=False))
        module = self.build(dims).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
        for _ in range(EPOCHS):
            for chosen in torch.randperm(len(images)).split(BATCH):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(module(images[chosen]), labels[chosen]).backward()
                optimizer.step()
        return module.eval()

    def provenance(self) -> Provenance:
        """Return what the weights come from, for the report."""
        from importlib.metadata import version

        from harness.weights import Provenance

        return Provenance(f"trained on scikit-learn {version('scikit-learn')}'s digits", None, [])
