"""A user's own model from the Hugging Face hub, or from a folder in its layout: `--model hf:ORG/NAME`.

Built by transformers' own classes. Code from the hub is never run, and only safetensors weights are read, so that no
pickle is. What the hub client's cache holds is used without asking the network, so a model stays the same from one run
to the next; the report names the commit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.api import InputSpec, Model, PublicWeights
from harness.artifact import sha256
from harness.errors import ExportError, HarnessError, UnsupportedError, UsageError
from harness.modelspec import ModelSpec
from harness.public import revision_of, unreachable
from harness.weights import SHOWN, Provenance, listed
from models.hub_inputs import FACTORY, inputs_of, preprocessing_of

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

LAYOUT = "the folder needs config.json and model.safetensors, as save_pretrained() writes them"


class Hub(Model):
    """A transformers model, by the class that its configuration names."""

    def __init__(self, spec: ModelSpec) -> None:
        self._name = spec.name
        self._local = Path(spec.name).is_absolute()
        self._inputs: tuple[InputSpec, ...] = ()
        self._module: torch.nn.Module | None = None
        self._sizes: dict[str, int] = {}
        self._commit: str | None = None
        self.dims: dict[str, int] = {"batch": 1}
        """Of free dimensions; the rest is known once the configuration is read."""
        self.notes: list[str] = []
        """What the report says about how the model was taken."""
        self.sources: list[str] = []
        """The configuration's file where the model lies in a folder of the user's."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return self._inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """The keys of the model's `ModelOutput`, found by running it once."""
        if self._module is None:
            return ()
        return _names_of(self._module, self.example_inputs(self._sizes, seed=0))

    def build(self, dims: Mapping[str, int]) -> torch.nn.Module:
        """Return the module as its configuration describes it, initialised at random."""
        import torch

        config, kind = self._described()
        try:
            return self._ready(dims, kind._from_config(config, dtype=torch.float32))
        except (HarnessError, MemoryError):
            raise
        except Exception as exc:  # transformers lets through what any of its parts raises
            raise ExportError(f"transformers cannot build hf:{self._name}: {exc}", hint=FACTORY) from exc

    def load_public(self, dims: Mapping[str, int]) -> torch.nn.Module:
        """Return the module with its trained weights, in float32.

        Raises:
            ExportError: They cannot be had, or do not fill the module.
            UnsupportedError: The model needs code from the hub, or inputs that its configuration does not describe.
        """
        import torch

        config, kind = self._described()
        os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # else transformers asks the hub to convert

        def attempt(**where: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
            module, found = kind.from_pretrained(
                self._name,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **where,
            )
            return module, found

        try:
            module, found = self._cached_first(attempt, revision=self._commit or "main")
        except (HarnessError, MemoryError):
            raise
        except Exception as exc:  # transformers lets through what any of its parts raises
            raise ExportError(
                f"transformers cannot load hf:{self._name}: {_first_line(exc)}",
                hint="get its files again; --weights seeded compares speed without them",
            ) from exc
        self._check(type(module).__name__, found)
        return self._ready(dims, module)

    def _check(self, kind: str, found: Mapping[str, Any]) -> None:
        """Refuse weights that do not fill the module: the loader puts random values there and only warns."""
        missing = sorted(found["missing_keys"])
        other = [
            f"{key} (expected {list(wanted)}, got {list(got)})"
            for key, got, wanted in sorted(found.get("mismatched_keys") or ())
        ]
        if missing or other:
            lacking = listed({"missing": missing, "of another shape": other})
            raise ExportError(
                f"the weights of hf:{self._name} do not fill {kind}: {lacking}",
                hint="--weights seeded compares speed without them",
            )
        unused = sorted(found.get("unexpected_keys") or ())
        if unused:
            shown = ", ".join(unused[:SHOWN])
            self.notes.append(f"{kind} does not use {len(unused)} tensors of the published weights, first {shown}")

    def provenance(self) -> Provenance:
        """Return where the weights came from that `load_public()` loaded."""
        folder = self._folder()
        files = _weight_files(folder) if folder else []
        digests = [sha256(path) for path in files]
        # Weights in several files get the digest of their digests.
        whole = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
        commit = f" at {self._commit[:12]}" if self._commit else ""
        names = f" ({files[0].name})" if len(files) == 1 else f" ({len(files)} files)" if files else ""
        name = Path(self._name).name if self._local else self._name
        return Provenance(
            f"pretrained {name}{names}{commit}",
            whole if digests else None,
            [*self.sources, *(str(path) for path in files)] if self._local else [],
        )

    def _described(self) -> tuple[Any, Any]:
        """Return the configuration and the class it names, after working out the inputs."""
        try:
            import transformers
        except ImportError as exc:
            raise ExportError("models of the hub need transformers", hint="pip install 'harness[models]'") from exc

        if self._local and not (Path(self._name) / "config.json").is_file():
            raise UsageError(f"{self._name} does not hold a model: there is no config.json", hint=LAYOUT)

        def attempt(**where: Any) -> Any:
            return transformers.AutoConfig.from_pretrained(self._name, trust_remote_code=False, **where)

        try:
            config = self._cached_first(attempt)
        except (HarnessError, MemoryError):
            raise
        except Exception as exc:  # transformers lets through what any of its parts raises
            if "trust_remote_code" in str(exc) or "custom code" in str(exc):
                raise self._needs_code() from exc
            raise ExportError(
                f"transformers cannot read the configuration of hf:{self._name}: {_first_line(exc)}"
            ) from exc
        self._commit = getattr(config, "_commit_hash", None)
        kind = self._class(transformers, config)
        folder = self._folder()
        if self._local and folder:
            self.sources = [str(folder / "config.json")]
        processor = _json(folder / "preprocessor_config.json") if folder else {}
        self._inputs, defaults = inputs_of(kind, config, processor, self._name)
        self.dims = {"batch": 1, **defaults}
        self.preprocessing = preprocessing_of(self._inputs, processor)
        return config, kind

    def _class(self, transformers: Any, config: Any) -> Any:
        named = (getattr(config, "architectures", None) or [None])[0]
        kind = getattr(transformers, named, None) if named else None
        if kind is None and getattr(config, "auto_map", None):
            raise self._needs_code()
        if kind is None:
            kind = transformers.models.auto.modeling_auto.MODEL_MAPPING.get(type(config), None)
            kind = kind[0] if isinstance(kind, tuple) else kind
            self.notes = [f"transformers has no class {named}: {kind.__name__} is compared"] if named and kind else []
        if kind is None or not hasattr(kind, "_from_config"):
            raise UnsupportedError(f"transformers has no class '{named}' for hf:{self._name}", hint=FACTORY)
        return kind

    def _needs_code(self) -> UnsupportedError:
        return UnsupportedError(
            f"hf:{self._name} needs code from its repository, and code from the hub is never run",
            hint=f"install that code as a package and {FACTORY}",
        )

    def _ready(self, dims: Mapping[str, int], model: Any) -> torch.nn.Module:
        self._sizes = {**self.dims, **dims}
        names = tuple(spec.name for spec in self._inputs)
        self._module = _positional(model.eval(), names)
        return self._module

    def _folder(self) -> Path | None:
        """Return the folder that holds the model's files: the user's own or a snapshot in the client's cache."""
        if self._local:
            return Path(self._name)
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self._name, "config.json", revision=self._commit)
        if not isinstance(found, str):
            return None
        self._commit = self._commit or revision_of(Path(found))
        return Path(found).parent

    def _cached_first(self, attempt: Callable[..., T], **where: Any) -> T:
        """Try without the network, then with it.

        Raises:
            UsageError: The user's folder does not hold what transformers looks for.
            ExportError: Neither the cache nor the network has it.
        """
        try:
            return attempt(local_files_only=True, **where)
        except OSError as exc:
            if self._local:
                raise UsageError(
                    f"{self._name} does not hold a model that transformers reads: {_first_line(exc)}",
                    hint=LAYOUT,
                ) from exc
        try:
            return attempt(**where)
        except OSError as exc:
            if "does not appear to have" in str(exc) and "safetensors" in str(exc):
                raise ExportError(
                    f"hf:{self._name} has no safetensors weights, and pickled ones are not loaded",
                    hint="convert them: load the model with transformers and save_pretrained() it into a folder, "
                    "then --model hf:FOLDER",
                ) from exc
            public = PublicWeights(repository=self._name, file="model.safetensors", licence="see its page")
            error = unreachable(public, _hub_error(exc))
            raise ExportError(
                error.message,
                hint=f"{error.hint}; or copy the whole repository here and give its folder: --model hf:FOLDER",
            ) from exc


def _positional(model: Any, names: tuple[str, ...]) -> torch.nn.Module:
    """Return a module that takes its inputs by position and returns a plain tuple of tensors."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.fixed = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            result = self.model(**dict(zip(names, inputs, strict=True)), **self.fixed, return_dict=True)
            return tuple(value for value in result.values() if isinstance(value, torch.Tensor))

    return Positional()


def _names_of(module: Any, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    import torch

    with torch.inference_mode():
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        result = module.model(**tensors, **module.fixed, return_dict=True)
    return tuple(name for name, value in result.items() if isinstance(value, torch.Tensor))


def _weight_files(folder: Path) -> list[Path]:
    parts = _json(folder / "model.safetensors.index.json").get("weight_map")
    names = sorted(set(parts.values())) if isinstance(parts, dict) else ["model.safetensors"]
    return [folder / name for name in names if (folder / name).is_file()]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _hub_error(exc: BaseException) -> BaseException:
    """Return the hub client's error beneath transformers' own: it says whether consent or a network is missing."""
    cause = exc.__cause__ or exc.__context__
    return cause if cause is not None and type(cause).__module__.startswith("huggingface_hub") else exc


def _first_line(exc: BaseException) -> str:
    text = str(exc).strip()
    return text.splitlines()[0] if text else type(exc).__name__
