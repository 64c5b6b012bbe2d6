"""What a host of the Forge family has loaded, or will load at the next generation."""

from __future__ import annotations

import json
import logging
import weakref
from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..dit_names import parse_dit
from ..errors import CRDiffError
from ..families import UNKNOWN, identify, identify_module
from .forge_online import Online
from .forge_weights import UNKNOWN_TRANSFORMER, why_unreadable
from .job import ModelFacts

logger = logging.getLogger("crdiff")

_MAX_HEADER = 100_000_000  # the format's own limit


class Models:
    """Facts of models, each looked at once.

    Args:
        sd_models: the host's ``modules.sd_models``.
        online: what the host can do with weights.
    """

    def __init__(self, sd_models: Any, online: Online | None) -> None:
        self._sd_models = sd_models
        self._online = online
        self._loaded: tuple[Callable[[], Any], ModelFacts] | None = None
        self._file: tuple[Hashable, ModelFacts] | None = None

    def facts_of(self, sd_model: Any, now: Any = None) -> ModelFacts:
        """A loaded model's family and name; ``now``: the checkpoint whose weights it has taken."""
        model = sd_model.forge_objects.unet.model
        loaded = self._loaded  # the page's threads may replace it meanwhile
        if loaded is None or loaded[0]() is not model:
            loaded = self._loaded = (weakref.ref(model), _examine(sd_model, model, self._online))
        facts = loaded[1]
        if now is not None:
            facts = replace(facts, checkpoint=_name(now))
        if facts.refused is None and is_compiled(model):
            facts = replace(facts, refused="a compiled model (torch.compile) can't be pruned")
        info = getattr(sd_model, "sd_checkpoint_info", None) if now is None else now
        # The hash may come later than the model: the host computes it when it has the time.
        return _unless_it_edits(replace(facts, hash=_hash(info)), info)

    def chosen(self) -> ModelFacts | None:
        """The model of the next generation.

        Forge loads what was chosen only then, so this may be a file (modules/sd_models.py,
        ``forge_model_reload``).
        """
        data = self._sd_models.model_data
        sd_model = data.sd_model
        info = getattr(data, "forge_loading_parameters", {}).get("checkpoint_info")
        if getattr(sd_model, "forge_objects", None) is not None and (
            info is None or info.filename == sd_model.sd_checkpoint_info.filename
        ):
            return self.facts_of(sd_model)
        facts = None if info is None else self._facts_of_file(Path(info.filename))
        return None if facts is None else _unless_it_edits(replace(facts, hash=_hash(info)), info)

    def settle(self) -> None:
        """Have the chosen checkpoint loaded, where a host does that when it is chosen (reForge).

        There a refiner's or a hires pass' checkpoint stays in memory until the next generation.
        """
        data = self._sd_models.model_data
        if not hasattr(data, "forge_loading_parameters") and data.sd_model is not None:
            self._sd_models.reload_model_weights()  # nothing, if it is the chosen one

    def _facts_of_file(self, path: Path) -> ModelFacts | None:
        if path.suffix != ".safetensors" or not path.is_file():
            return None
        state = (path, path.stat().st_mtime_ns)
        known = self._file
        if known is None or known[0] != state:
            known = self._file = (state, _facts_in(path))
        return known[1]


def is_compiled(model: Any) -> bool:
    """Whether the UNet runs compiled (Forge Neo's extensions-builtin/sd_forge_compile).

    What was compiled does not look for hooks that come later, so a pruned pass would be dense.
    """
    compiled = getattr(model, "_torch_compile_config", None) is not None
    return compiled or hasattr(model.diffusion_model, "_orig_mod")


def _unless_it_edits(facts: ModelFacts, info: Any) -> ModelFacts:
    """Refused if it is FLUX Kontext, whose shapes are FLUX dev's.

    Forge Neo knows it by its file's path too (``forge_loader`` of backend/loader.py).
    """
    named = "kontext" in str(getattr(info, "filename", "")).lower()
    if not named or not facts.family.is_dit or facts.refused is not None:
        return facts
    return replace(facts, refused="this model is not supported: FLUX Kontext edits images")


def _name(info: Any) -> str:
    return str(getattr(info, "name_for_extra", None) or "the loaded model")


def _hash(info: Any) -> str:
    """The start of the file's SHA-256; empty while the host doesn't know it (--no-hashing)."""
    return str(getattr(info, "shorthash", None) or "")


def _examine(sd_model: Any, model: Any, online: Online | None) -> ModelFacts:
    name = _name(getattr(sd_model, "sd_checkpoint_info", None))
    try:
        family = identify_module(model.diffusion_model, prediction_type=_prediction(model))
        return ModelFacts(family, name, why_unreadable(model.diffusion_model, online, family))
    except CRDiffError as error:
        return ModelFacts(UNKNOWN, name, f"this model is not supported: {error}")


def _prediction(model: Any) -> str | None:
    """What the model predicts, as ``identify_module`` calls it.

    reForge and Forge Classic tell it by a class alone (ldm_patched/modules/model_sampling.py).
    """
    predictor = getattr(model, "predictor", None)
    if predictor is not None:
        return getattr(predictor, "prediction_type", None)
    classes = [kind.__name__ for kind in type(getattr(model, "model_sampling", None)).__mro__]
    names = {"V_PREDICTION": "v_prediction", "EPS": "epsilon"}  # a V_PREDICTION is an EPS too
    return next((names[name] for name in classes if name in names), None)


def _facts_in(path: Path) -> ModelFacts:
    """What a safetensors file is, by the names and shapes in its header."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
        family = identify(shapes)
        other = family is UNKNOWN and any(parse_dit(name) for name in shapes)
        return ModelFacts(family, path.stem, UNKNOWN_TRANSFORMER if other else None)
    except (OSError, ValueError, KeyError, TypeError, CRDiffError) as error:
        logger.info("%s: its header tells no family (%s)", path.name, error)
        return ModelFacts(UNKNOWN, path.stem)
