"""What a single file lacks to be a pipeline: its configuration and its tokenizers, in a folder.

The folder is put together from ``harness/configs`` (architecture facts of the published families)
and the CLIP vocabulary that open_clip brings. diffusers then reads the file against it and asks
the hub for nothing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family
from harness.clip_vocabulary import openai_vocabulary, write_clip_tokenizer
from harness.locate import read_json

CONFIGS = Path(__file__).parent / "configs"
_CONFIG_FILES = {
    "model_index": "model_index.json",
    "scheduler": "scheduler/scheduler_config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "text_encoder_2": "text_encoder_2/config.json",
}


def refuse_other_tasks(family: Family, path: Path) -> None:
    """Raises CRDiffError for inpainting and refiner models, which do not start from text alone."""
    if family.name.endswith(("-inpaint", "-refiner")):
        raise CRDiffError(
            f"{path.name} is of the family {family.label}, which needs a picture to start from: "
            "use a text-to-image checkpoint here"
        )


@contextmanager
def config_folder(
    path: Path, family: Family, given: Path | None, prediction: str | None
) -> Iterator[Path]:
    """A folder with the pipeline's configuration and tokenizers, for as long as it is needed."""
    if given is not None:
        if not (given / "model_index.json").is_file():
            raise CRDiffError(f"--config {given} is not a diffusers folder with model_index.json")
        yield given
        return
    if family.name == "embedded":
        from harness.embedded.weights import embedded_model_dir

        yield embedded_model_dir()
        return
    refuse_other_tasks(family, path)
    if family.name == "sd2":
        raise CRDiffError(
            f"{path.name} is an SD2 checkpoint that does not say whether it is the 512 model or "
            "the 768 one: add --prediction epsilon (512) or --prediction v_prediction (768)"
        )
    source = CONFIGS / f"{family.name}.json"
    if not source.is_file():
        raise CRDiffError(
            f"{path.name} is not of a family that can be loaded from a single file "
            f"({family.label}): give --config a diffusers folder of the same model"
        )
    with tempfile.TemporaryDirectory(prefix="crdiff-config-") as folder:
        write_config_folder(read_json(source), Path(folder), prediction)
        yield Path(folder)


def write_config_folder(
    configs: Mapping[str, Any], folder: Path, prediction: str | None = None
) -> None:
    """Write a pipeline's configuration and CLIP tokenizers as diffusers reads them.

    ``configs``: one of the files in ``harness/configs``. ``prediction`` replaces the scheduler's.
    """
    for part, name in _CONFIG_FILES.items():
        if part in configs:
            values = dict(configs[part])
            if part == "scheduler" and prediction:
                values["prediction_type"] = prediction
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(values), encoding="utf-8")
    vocabulary = openai_vocabulary()
    for part in ("tokenizer", "tokenizer_2"):
        if part in configs:
            length = configs["text_encoder"]["max_position_embeddings"]
            write_clip_tokenizer(folder / part, vocabulary, length, configs[part])
