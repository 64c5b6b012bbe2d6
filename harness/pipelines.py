"""Load a diffusers pipeline: from a folder, a hub id, or a single file; offline for local ones."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family, identify_module
from harness.checkpoints import Checkpoint, open_checkpoint
from harness.denoisers import denoiser
from harness.environment import default_dtype
from harness.hints import prediction_name
from harness.locate import NOT_LOADED, locate, read_json, unet_files, unet_folder
from harness.single_file import config_folder, refuse_other_tasks

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
T5_PARTS = ("text_encoder_3", "tokenizer_3")
"""Of SD3, which can be drawn without them."""
_VAE_PREFIXES = ("first_stage_model.", "vae.")


@dataclass(frozen=True)
class LoadedPipeline:
    """A text-to-image pipeline on its device, and what it was made from.

    Attributes:
        model_id: a name for people: the hub id, or the file's or folder's name.
        files: the weight files of the UNet or transformer.
        defaults: ``steps`` and ``guidance`` that the model's folder recommends (crdiff.json).
    """

    pipe: Any
    family: Family
    model_id: str
    path: Path
    files: tuple[Path, ...]
    defaults: dict[str, Any] = field(default_factory=dict)

    @property
    def denoiser(self) -> Any:
        """The network that is pruned: a UNet or a transformer."""
        return denoiser(self.pipe)

    def unet(self, what: str) -> Any:
        """The UNet, for ``what`` is made for UNets only. Raises CRDiffError."""
        if self.family.is_dit or not hasattr(self.pipe, "unet"):
            raise CRDiffError(
                f"{what} is for models with a UNet, which {self.family.label} has not: use an "
                "SD1.5, SD2 or SDXL model"
            )
        return self.pipe.unet

    def notes(self) -> list[str]:
        """What has to be said about the pictures of this model, beside its name."""
        if self.family.is_dit and getattr(self.pipe, "text_encoder_3", self) is None:
            return ["the model was loaded without its T5 text encoder, which changes every image"]
        return []


def load_pipeline(
    model: str | Path,
    dtype: str | torch.dtype = "fp32",
    device: str = "cpu",
    *,
    config: Path | None = None,
    prediction: str | None = None,
) -> LoadedPipeline:
    """Load ``model`` (folder, single file or hub id) ready to draw.

    ``config``: a diffusers folder whose configuration a single file is read with. ``prediction``:
    "epsilon" or "v_prediction", overriding what the model says. Raises CRDiffError.
    """
    check_device(device)
    path = locate(model)
    torch_dtype = _dtype(dtype)
    wanted = prediction_name(prediction) if prediction else None
    checkpoint = open_checkpoint(path)
    family = checkpoint.family(wanted)
    if family.is_dit:
        _refuse_unet_options(path, family, wanted)
    if path.is_dir():
        pipe = _from_folder(path, torch_dtype)
        _check_complete(denoiser(pipe), checkpoint)
    else:
        if not any(name.startswith(_VAE_PREFIXES) for name in checkpoint.infos):
            raise CRDiffError(
                f"{path.name} holds no VAE, so it cannot draw by itself: use a whole checkpoint "
                "or a diffusers pipeline folder (`crdiff inspect` can read it)"
            )
        said = wanted or checkpoint.hints.get("prediction_type")
        with config_folder(path, family, config, said) as folder:
            pipe = _from_file(path, folder, torch_dtype)
    if wanted:
        pipe.scheduler.register_to_config(prediction_type=wanted)
    family = identify_module(
        denoiser(pipe),
        prediction_type=pipe.scheduler.config.get("prediction_type"),
        sample_size=denoiser(pipe).config.get("sample_size"),
    )
    refuse_other_tasks(family, path)
    pipe.to(device)
    name = path.name if Path(model).expanduser().exists() else str(model)
    return LoadedPipeline(pipe, family, name, path, checkpoint.files, _recommended(path))


def check_device(name: str) -> None:
    """Refuse a device that torch does not know or that is not there. Raises CRDiffError."""
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise CRDiffError(f"device {name!r} is not known: use auto, cpu, cuda or cuda:1") from None
    missing = kind == "cuda" and not torch.cuda.is_available()
    if missing or (kind == "mps" and not torch.backends.mps.is_available()):
        raise CRDiffError(f"there is no {kind} device that torch can use here: use --device cpu")


def usual_dtype(model: str | Path, device: str) -> str:
    """The number format to load ``model`` in: fp32 on a CPU, else fp16, or bf16 for FLUX.

    bf16 is what FLUX' model cards load it in; in fp16 diffusers has to clip what its blocks give.
    """
    index = locate(model) / "model_index.json"
    flux = index.is_file() and read_json(index).get("_class_name") == "FluxPipeline"
    usual = default_dtype(device)
    return "bf16" if flux and usual == "fp16" else usual


def _refuse_unet_options(path: Path, family: Family, prediction: str | None) -> None:
    """What goes with UNets only. Raises CRDiffError."""
    if not path.is_dir():
        raise CRDiffError(
            f"{path.name} is a single file of {family.label}, which is drawn from a diffusers "
            "pipeline folder only: give that (`crdiff inspect` can read the file)"
        )
    if prediction:
        raise CRDiffError(
            f"{family.label} samples by flow matching and has no prediction type: leave out "
            "--prediction"
        )


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise CRDiffError(f"dtype {dtype!r} is not known: use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _from_folder(path: Path, dtype: torch.dtype) -> Any:
    """A pipeline folder. Its class must be one of ``PIPELINES``; no code of it is run."""
    index = path / "model_index.json"
    if not index.is_file():
        raise CRDiffError(
            f"{path} is a UNet's or transformer's folder, which cannot draw by itself: give the "
            "pipeline's folder (the one with model_index.json)"
        )
    parts = read_json(index)
    cls = _pipeline_class(parts, index)
    _check_parts(path, parts)
    variant = unet_files(unet_folder(path)).variant or None
    options: dict[str, Any] = {}
    if cls.__name__ == PIPELINES[0]:
        options = {"safety_checker": None, "requires_safety_checker": False}
    # diffusers takes [null, null] for the T5 only when it is told so again.
    options |= {name: None for name in T5_PARTS if parts.get(name) == [None, None]}
    with _as_sentence(f"The pipeline folder {path}"):
        return cls.from_pretrained(
            str(path),
            dtype=dtype,
            variant=variant,
            local_files_only=True,
            **options,
        )


def _from_file(path: Path, config: Path, dtype: torch.dtype) -> Any:
    cls = _pipeline_class(read_json(config / "model_index.json"), config)
    with _as_sentence(f"The checkpoint {path}"):
        return cls.from_single_file(
            str(path), config=str(config), dtype=dtype, local_files_only=True
        )


def _pipeline_class(index: Mapping[str, Any], source: Path) -> Any:
    import diffusers

    name = index.get("_class_name")
    if name not in PIPELINES:
        raise CRDiffError(
            f"{source} describes a {name}, but only text-to-image pipelines of SD1.5, SD2, SDXL, "
            f"SD3 and FLUX ({', '.join(PIPELINES)}) can be run"
        )
    return getattr(diffusers, name)


def _check_parts(path: Path, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline folder without a component that its index names. Raises CRDiffError."""
    named = {name for name, kind in index.items() if isinstance(kind, list) and kind[0]}
    missing = sorted(name for name in named - NOT_LOADED if not (path / name).is_dir())
    if not missing:
        return
    hint = ""
    if set(missing) <= set(T5_PARTS):
        hint = " (or to draw without the T5, write [null, null] for both of its parts there)"
    raise CRDiffError(
        f"{path} lacks {', '.join(missing)}, which its model_index.json names: copy or download "
        f"the model again{hint}"
    )


@contextmanager
def _as_sentence(what: str) -> Iterator[None]:
    """Turn what diffusers and transformers raise about bad files into one sentence."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    known = (SafetensorError, SingleFileComponentError, OSError, ValueError, RuntimeError)
    try:
        with _without_bars():
            yield
    except CRDiffError:
        raise
    except (*known, KeyError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        logger.debug("loading failed", exc_info=True)
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, NotImplementedError):  # torch's, for what was left on "meta"
            reason = "some of its weights are missing"
        raise CRDiffError(
            f"{what} cannot be loaded as a pipeline ({reason}): it is incomplete, damaged, or of "
            "another shape; get it again, or give --config the diffusers folder it belongs to"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars for the seconds of loading; what was set before is set again."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    shown = [m for m in (diffusers_logging, transformers_logging) if m.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()


def _check_complete(unet: Any, checkpoint: Checkpoint) -> None:
    """Diffusers fills weights that the network's folder lacks with random numbers and goes on."""
    missing = sorted(set(unet.state_dict()) - set(checkpoint.infos))
    if missing:
        raise CRDiffError(
            f"{checkpoint.files[0]} lacks {len(missing)} weights (the first: {missing[0]}): copy "
            "or download the model again"
        )


def _recommended(path: Path) -> dict[str, Any]:
    """``steps``, ``guidance`` and ``batch`` from the model folder's crdiff.json, if it has one."""
    settings = path / "crdiff.json"
    return read_json(settings) if path.is_dir() and settings.is_file() else {}
