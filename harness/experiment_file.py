"""An experiment as a YAML file: flat, typed, and nothing in it is ignored.

The keys are those of the command line in the plural where they hold several values. What is given
on the command line replaces what the file says. ``docs/experiments.md`` lists every key.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import GROUPS

Settings = dict[str, Any]


class Wrong(ValueError):
    """What a value should have been, as the end of a sentence."""


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Wrong("a text")
    return str(value)


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise Wrong("a path")
    return Path(value).expanduser()


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Wrong("a whole number")
    return value


def _number(value: Any) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            raise Wrong("a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Wrong("a number")
    return float(value)


def _several(read: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    """One value, or a list of them."""

    def values(value: Any) -> tuple[Any, ...]:
        listed = value if isinstance(value, list) else [value]
        try:
            return tuple(read(one) for one in listed)
        except Wrong as wrong:
            raise Wrong(f"{wrong}, or a list of such") from None

    return values


def _ratios(value: Any) -> str:
    """``auto``, ``stored``, one number, ``d/m/u``, or a mapping of down, mid and up."""
    if isinstance(value, dict):
        if set(value) != set(GROUPS):
            raise Wrong("auto, stored, or three ratios: down, mid and up")
        return "/".join(repr(_number(value[group])) for group in GROUPS)
    return _text(value)


class Key(NamedTuple):
    """One key of the file: how its value is read, and what it is for."""

    read: Callable[[Any], Any]
    what: str


KEYS: dict[str, Key] = {
    "model": Key(_text, "diffusers folder, single file, or hub id"),
    "sizes": Key(_several(_text), "height x width, such as 512x512"),
    "prompts": Key(_path, ".txt, .csv, .tsv, or COCO's captions_val2014.json"),
    "out": Key(_path, "folder of images and results"),
    "methods": Key(_several(_text), "names of methods (default: dense, crdiff)"),
    "ratios": Key(_ratios, "auto, stored, or down/mid/up"),
    "presets": Key(_path, "file of one's own stored ratios"),
    "k": Key(_number, "amplification, 0 to 3"),
    "seeds": Key(_several(_whole), "one image of each prompt a seed (default: 0)"),
    "steps": Key(_whole, "sampling steps"),
    "guidance": Key(_number, "classifier-free guidance"),
    "negative": Key(_text, "negative prompt"),
    "scheduler": Key(_text, "default, ddim, euler, ..."),
    "dtype": Key(_text, "auto, fp32, fp16, bf16"),
    "device": Key(_text, "auto, cpu, cuda, cuda:1, mps"),
    "batch": Key(_whole, "images drawn together"),
    "config": Key(_path, "diffusers folder to read a single file with"),
    "prediction": Key(_text, "epsilon or v_prediction"),
    "limit": Key(_whole, "only the first prompts"),
    "calibration": Key(_path, "prompts to calibrate criteria with"),
    "reference": Key(_path, "folder of real images, or an .npz of mu and sigma"),
}


def read_experiment(path: Path) -> Settings:
    """The settings of a YAML file, each of its key's type. Raises CRDiffError."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise CRDiffError(f"the experiment file {path} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CRDiffError(f"the experiment file {path} cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise CRDiffError(
            f"the experiment file {path} is not YAML: {' '.join(str(error).split())}"
        ) from None
    if not isinstance(content, dict):
        raise CRDiffError(
            f"the experiment file {path} holds no settings: write such as model: my/model, a key "
            "on each line"
        )
    return {str(key): _value(path, key, value) for key, value in content.items()}


def _value(path: Path, key: Any, value: Any) -> Any:
    if key not in KEYS:
        near = difflib.get_close_matches(str(key), KEYS, 1)
        hint = f"did you mean {near[0]}? The keys are" if near else "use"
        raise CRDiffError(f"{path} has the unknown key {key!r}: {hint} {', '.join(KEYS)}")
    try:
        return KEYS[key].read(value)
    except Wrong as wrong:
        raise CRDiffError(f"{key} in {path} is {value!r}: it must be {wrong}") from None


def merge(file: Mapping[str, Any], given: Mapping[str, Any]) -> Settings:
    """The file's settings, replaced by those that were ``given`` (not None)."""
    return {**file, **{key: value for key, value in given.items() if value is not None}}


def need(settings: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Refuse settings that lack one of ``names`` (key -> its option). Raises CRDiffError."""
    for key, option in names.items():
        if not settings.get(key):
            raise CRDiffError(
                f"{option} is missing: give it, or write {key} into the experiment file"
            )
