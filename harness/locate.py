"""From what the user typed after --model to files on this machine: a file, a folder, a hub id."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError

VARIANTS = ("", "fp16", "bf16")
_STEM = "diffusion_pytorch_model"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_DENOISERS = ("unet", "transformer")
"""The folder of a pipeline's network that is pruned: a UNet, or SD3's and FLUX' transformer."""
_UNET_ONLY = (
    "model_index.json",
    "scheduler/*.json",
    *(f"{part}/*.{ending}" for part in _DENOISERS for ending in ("json", "safetensors")),
)
_PIPELINE = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
NOT_LOADED = {"safety_checker", "feature_extractor", "image_encoder"}
"""Components of a pipeline folder that are never used here."""
_NEVER = ("*non_ema*", "safety_checker/*", "image_encoder/*")


@dataclass(frozen=True)
class UnetFiles:
    """The weight files of one network's folder, and the variant ("" or "fp16") they belong to."""

    files: tuple[Path, ...]
    variant: str


def locate(model: str | Path, whole: bool = True) -> Path:
    """The file or folder that ``model`` means. Raises CRDiffError if there is none.

    A name such as ``owner/model`` that is no path here is looked for in the Hugging Face cache,
    then on the hub; ``whole=False`` asks for the UNet alone.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if _HUB_ID.fullmatch(str(model)) and path.suffix != ".safetensors":
        return _from_hub(str(model), whole)
    raise CRDiffError(
        f"there is no model at {model}: check the path, or give a hub id such as owner/model"
    )


def unet_folder(folder: Path) -> Path:
    """The folder of the weights to prune: a pipeline's ``unet`` or ``transformer``, or itself."""
    inner = (folder / part for part in _DENOISERS)
    chosen = next((part for part in inner if part.is_dir()), folder)
    if chosen is folder and not list(folder.glob(f"{_STEM}*")):
        raise CRDiffError(
            f"the folder {folder} holds no UNet: give a diffusers pipeline folder (with unet/ or "
            "transformer/ in it), a UNet's own folder, or the checkpoint file itself"
        )
    return chosen


def unet_files(folder: Path) -> UnetFiles:
    """The weight files in a UNet folder: full precision first, safetensors before pickles."""
    for ending in ("safetensors", "bin"):
        for variant in VARIANTS:
            found = _one_variant(folder, ending, variant)
            if found:
                return UnetFiles(found, variant)
    raise CRDiffError(
        f"the folder {folder} has no weights ({_STEM}.safetensors or its shards): copy or download "
        "the model again"
    )


def _one_variant(folder: Path, ending: str, variant: str) -> tuple[Path, ...]:
    dotted = f".{variant}" if variant else ""
    index = folder / f"{_STEM}.{ending}.index{dotted}.json"
    if index.is_file():
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CRDiffError(
                f"{folder} lacks {missing[0]}, which its index names: copy or download the model "
                "again"
            )
        return tuple(folder / name for name in names)
    single = folder / f"{_STEM}{dotted}.{ending}"
    return (single,) if single.is_file() else ()


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CRDiffError(f"{index} is damaged (it has no weight_map): download it again")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise CRDiffError(f"{index} names {name!r}, which is no file of its own folder")
    return weight_map


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CRDiffError if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CRDiffError(f"{path} cannot be read ({error}): copy or download it again") from error
    if not isinstance(value, dict):
        raise CRDiffError(f"{path} is damaged (it holds no JSON object): download it again")
    return value


def _from_hub(repo: str, whole: bool) -> Path:
    """The snapshot folder of a hub model: from the local cache if complete, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    def snapshot(local: bool, ignored: tuple[str, ...]) -> Path | None:
        path = Path(
            snapshot_download(
                repo,
                local_files_only=local,
                allow_patterns=list(_PIPELINE if whole else _UNET_ONLY),
                ignore_patterns=[*_NEVER, *ignored],
            )
        )
        return path if (_is_whole(path) if whole else _has_unet(path)) else None

    reason: Exception | None = None
    # Full precision first; half-precision files only for models that have nothing else.
    for local, ignored in ((True, ()), (False, ("*.fp16.*", "*.bf16.*")), (False, ())):
        try:
            if found := snapshot(local, ignored):
                return found
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = error
    why = f" ({type(reason).__name__})" if reason else ": it has no UNet in safetensors"
    raise CRDiffError(
        f"{repo} is no file or folder here, is not in the Hugging Face cache, and could not be had "
        f"from the hub{why}: check the name and the network, or give a local folder"
    )


def _is_whole(folder: Path) -> bool:
    """Whether every component that the pipeline's index names has come, the UNet with weights.

    A cache may hold a part of a model only: what ``crdiff inspect`` read, or a download cut short.
    """
    index = folder / "model_index.json"
    if not index.is_file() or not _has_unet(folder):
        return False
    named = {name for name, kind in read_json(index).items() if isinstance(kind, list) and kind[0]}
    parts = [folder / name for name in named - NOT_LOADED]
    return all(part.is_dir() and any(part.iterdir()) for part in parts)


def _has_unet(folder: Path) -> bool:
    return any(any((folder / part).glob(f"{_STEM}*.safetensors")) for part in _DENOISERS)
