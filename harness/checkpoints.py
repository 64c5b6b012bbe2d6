"""Open a checkpoint without reading its weights: names, shapes, dtypes, hints; tensors one by one.

Nothing here runs code from a file: safetensors hold none, and pickles are read only through
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family, identify
from harness.hints import folder_hints, single_file_hints
from harness.locate import locate, unet_files, unet_folder

PICKLES = {".ckpt", ".pt", ".pth", ".bin"}
_LFS = b"version https://git-lfs"
_ORIGINAL = ("input_blocks.", "joint_blocks.", "double_blocks.")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor (dtype None: one that torch has no name for)."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


class _Source(Protocol):
    infos: dict[str, TensorInfo]

    def tensor(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. ``infos`` holds every stored tensor under its name in the file.

    Attributes:
        path: the file or folder that was found.
        kind: "file", "folder" (a pipeline or a UNet folder) or "pickle".
        files: the weight files that ``infos`` come from.
        hints: what tells families apart beside shapes: ``prediction_type``, ``sample_size``.
    """

    path: Path
    kind: str
    files: tuple[Path, ...]
    hints: dict[str, Any]
    _sources: tuple[_Source, ...] = field(repr=False)

    @cached_property
    def infos(self) -> dict[str, TensorInfo]:
        """Every stored tensor's shape and dtype, under its name in the file."""
        return {name: info for source in self._sources for name, info in source.infos.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every stored tensor's shape."""
        return {name: info.shape for name, info in self.infos.items()}

    @property
    def is_ldm(self) -> bool:
        """Whether the network has the original single-file names."""
        return any(part in name for name in self.infos for part in _ORIGINAL)

    def family(self, prediction: str | None = None) -> Family:
        """The model's family; ``prediction`` (diffusers' name) overrides what the file says."""
        said = {"prediction_type": prediction} if prediction else {}
        return identify(self.shapes, self.hints | said)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, read now; it alone is in memory, and only while it is referenced."""
        for source in self._sources:
            if name in source.infos:
                return source.tensor(name)
        raise KeyError(name)


def open_checkpoint(model: str | Path) -> Checkpoint:
    """Open a file, a diffusers folder or a hub id. Raises CRDiffError with what to do."""
    path = locate(model, whole=False)
    if path.is_dir():
        folder = unet_folder(path)
        files = unet_files(folder).files
        sources = tuple(_open_file(file) for file in files)
        return Checkpoint(path, "folder", files, folder_hints(path, folder), sources)
    source = _open_file(path)
    kind = "pickle" if path.suffix.lower() in PICKLES else "file"
    metadata = getattr(source, "metadata", {})
    hints = single_file_hints(path, source.infos, metadata)
    return Checkpoint(path, kind, (path,), hints, (source,))


def _open_file(path: Path) -> _Source:
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise CRDiffError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise CRDiffError(f"{path} is empty (0 bytes): copy or download it again")
    if start == _LFS:
        raise CRDiffError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`")
    if path.suffix.lower() in PICKLES:
        return _Pickle(path, zipped=start[:2] == b"PK")
    if start[:4] == b"PK\x03\x04":
        raise CRDiffError(
            f"{path} is a pickle checkpoint under a safetensors name: rename it to .ckpt, or "
            "convert it to safetensors"
        )
    return _Safetensors(path)


class _Safetensors:
    """A safetensors file. Each tensor is a mapping of its own bytes, which goes with the tensor.

    safetensors' own ``get_tensor`` maps the whole file and keeps every page that was touched until
    the last of its tensors is gone; a group of an SDXL file would hold gigabytes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt") as file:  # checks the header against the size
                self.metadata: dict[str, str] = file.metadata() or {}
                self.infos = {name: _info(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CRDiffError(
                f"{path} is not a whole safetensors file ({error}): it was cut short, damaged or "
                "is something else, so copy or download it again"
            ) from error
        if not self.infos:
            raise CRDiffError(f"{path} holds no tensors: it is not a checkpoint")
        with open(path, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        self._starts = {n: 8 + length + header[n]["data_offsets"][0] for n in self.infos}

    def tensor(self, name: str) -> torch.Tensor:
        info = self.infos[name]
        if info.dtype is None:
            raise CRDiffError(
                f"{self.path} stores {name} in a number format that torch does not have: "
                "use a copy in fp16, bf16 or fp32"
            )
        size = math.prod(info.shape) * info.dtype.itemsize
        if not size:
            return torch.empty(info.shape, dtype=info.dtype)
        # Copy on write: torch warns about memory that cannot be written.
        raw = np.memmap(self.path, np.uint8, "c", offset=self._starts[name], shape=(size,))
        if raw.ctypes.data % info.dtype.itemsize:  # old writers did not align the data
            raw = raw.copy()
        return torch.from_numpy(raw).view(info.dtype).reshape(info.shape)


def _info(stored: Any) -> TensorInfo:
    return TensorInfo(tuple(stored.get_shape()), _DTYPES.get(stored.get_dtype()))


class _Pickle:
    """A torch pickle, refused unless it holds nothing but tensors and plain values."""

    def __init__(self, path: Path, zipped: bool) -> None:
        self.state = _tensors(path, _unpickle(path, zipped))
        self.infos = {n: TensorInfo(tuple(t.shape), t.dtype) for n, t in self.state.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.state[name]


def _unpickle(path: Path, zipped: bool) -> Any:
    try:
        # mmap works for the zipped format only (torch 1.6 and newer)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CRDiffError(
            f"{path} is a pickle that cannot be read without running code from it (or it is "
            "damaged), so it is refused: convert it to safetensors, or get it in that form"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CRDiffError(
            f"{path} is damaged ({reason}): copy or download it again, best as safetensors"
        ) from error


def _tensors(path: Path, loaded: Any) -> dict[str, torch.Tensor]:
    """The state dict in a loaded pickle, which training frameworks put under "state_dict"."""
    while isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    items = loaded.items() if isinstance(loaded, dict) else ()
    state = {name: value for name, value in items if isinstance(value, torch.Tensor)}
    if not state:
        raise CRDiffError(f"{path} holds no weights by name: it is not a checkpoint")
    return state
