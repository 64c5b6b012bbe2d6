"""Pipelines from folders and single files of every family, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from crdiff_ext.errors import CRDiffError
from harness.locate import read_json
from harness.pipelines import load_pipeline
from harness.single_file import CONFIGS, write_config_folder

FAMILIES = ("sd15", "sd2-base", "sd2-v", "sdxl")
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")

pytestmark = pytest.mark.usefixtures("no_network")


class Model(NamedTuple):
    """A tiny pipeline, its configuration's folder, and the original single file of it."""

    pipe: Any
    config: Path
    file: Path


@pytest.fixture(scope="module")
def models(builders: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    made = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        pipe = builders.build(builders.shrunken(family), folder / "config")
        file = builders.single_file(pipe, folder / "model.safetensors")
        made[family] = Model(pipe, folder / "config", file)
    return made


def assert_same_weights(one: Any, other: Any) -> None:
    for name in PARTS:
        if hasattr(one, name):
            expected, found = getattr(one, name).state_dict(), getattr(other, name).state_dict()
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_gives_the_pipeline_that_it_was_made_from(
    models: dict[str, Model], family: str
) -> None:
    model = models[family]
    loaded = load_pipeline(model.file, config=model.config)
    assert_same_weights(model.pipe, loaded.pipe)
    expected = model.pipe.scheduler.config.prediction_type
    assert loaded.pipe.scheduler.config.prediction_type == expected
    # Weights that lie at other addresses give other last bits.
    assert np.allclose(draw(loaded.pipe), draw(model.pipe), atol=2e-3)


def draw(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a red circle",
        num_inference_steps=2,
        height=32,
        width=64,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_file_is_recognised_by_itself(
    models: dict[str, Model], family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The bundled configuration is chosen by the family: here a stand-in of the tiny shape."""
    from crdiff_ext.families import FAMILIES as known
    from harness.checkpoints import Checkpoint

    shrunken = json.dumps(read_json_tree(models[family].config))
    (tmp_path / f"{family}.json").write_text(shrunken)
    monkeypatch.setattr("harness.single_file.CONFIGS", tmp_path)
    monkeypatch.setattr(Checkpoint, "family", lambda self, prediction=None: known[family])
    loaded = load_pipeline(models[family].file, dtype="bf16")
    assert loaded.pipe.unet.dtype == torch.bfloat16
    assert loaded.model_id == "model.safetensors"
    assert loaded.files == (models[family].file,)


def read_json_tree(folder: Path) -> dict[str, Any]:
    """A configuration folder in the form of the bundled files."""
    tree = {path.parent.name: read_json(path) for path in folder.glob("*/*config.json")}
    tokenizers = {name: {"pad_token": tree[name]["pad_token"]} for name in tree if "token" in name}
    return tree | tokenizers | {"model_index": read_json(folder / "model_index.json")}


@pytest.mark.parametrize("family", FAMILIES)
def test_bundled_configurations_have_the_published_shapes(family: str) -> None:
    import diffusers
    import transformers

    from crdiff_ext.families import identify_module

    millions = {
        "sd15": {"unet": 859.52, "vae": 83.65, "text_encoder": 123.06},
        "sd2-base": {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39},
        "sd2-v": {"unet": 865.91, "vae": 83.65, "text_encoder": 340.39},
        "sdxl": {"unet": 2567.46, "vae": 83.65, "text_encoder": 123.06, "text_encoder_2": 694.66},
    }[family]
    configs = read_json(CONFIGS / f"{family}.json")
    for name, expected in millions.items():
        values = dict(configs[name])
        with torch.device("meta"):
            if name in ("unet", "vae"):
                part = getattr(diffusers, values["_class_name"]).from_config(values)
            else:
                cls = getattr(transformers, values.pop("architectures")[0])
                values.pop("model_type")
                part = cls(transformers.CLIPTextConfig(**values))
        assert sum(p.numel() for p in part.parameters()) / 1e6 == pytest.approx(expected, abs=0.01)
        if name == "unet":
            prediction = configs["scheduler"]["prediction_type"]
            assert identify_module(part, prediction_type=prediction).name == family


def test_prediction_can_be_overridden(models: dict[str, Model]) -> None:
    model = models["sd15"]
    loaded = load_pipeline(model.file, config=model.config, prediction="v")
    assert loaded.pipe.scheduler.config.prediction_type == "v_prediction"
    plain = load_pipeline(model.file, config=model.config)
    assert not np.allclose(draw(loaded.pipe), draw(plain.pipe), atol=2e-3)


def test_a_folder(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd15"]
    model.pipe.save_pretrained(tmp_path / "plain")
    (tmp_path / "plain" / "crdiff.json").write_text('{"steps": 7}')
    loaded = load_pipeline(tmp_path / "plain")
    assert_same_weights(model.pipe, loaded.pipe)
    assert loaded.defaults == {"steps": 7}
    assert loaded.model_id == "plain"


def test_a_folder_with_half_precision_files_only(models: dict[str, Model], tmp_path: Path) -> None:
    models["sd15"].pipe.save_pretrained(tmp_path / "half", variant="fp16")
    assert_same_weights(models["sd15"].pipe, load_pipeline(tmp_path / "half").pipe)


def test_a_pickle_of_nothing_but_weights(models: dict[str, Model], tmp_path: Path) -> None:
    model = models["sd15"]
    torch.save({"state_dict": load_file(model.file)}, tmp_path / "model.ckpt")
    loaded = load_pipeline(tmp_path / "model.ckpt", config=model.config)
    assert_same_weights(model.pipe, loaded.pipe)


# Errors


def without(file: Path, start: str, target: Path) -> Path:
    state = {n: t for n, t in load_file(file).items() if not n.startswith(start)}
    save_file(state, target)
    return target


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("first_stage_model.", "holds no VAE"),
        ("cond_stage_model.", "text_encoder"),
        ("model.diffusion_model.input_blocks.2.0.out", "some of its weights are missing"),
    ],
)
def test_a_file_that_lacks_a_part(
    models: dict[str, Model], tmp_path: Path, start: str, says: str
) -> None:
    path = without(models["sd15"].file, start, tmp_path / "part.safetensors")
    with pytest.raises(CRDiffError, match=says):
        load_pipeline(path, config=models["sd15"].config)


def test_a_configuration_of_another_shape(models: dict[str, Model]) -> None:
    with pytest.raises(CRDiffError, match="cannot be loaded as a pipeline"):
        load_pipeline(models["sd15"].file, config=models["sd2-v"].config)


def test_an_unknown_family_asks_for_a_configuration(models: dict[str, Model]) -> None:
    with pytest.raises(CRDiffError, match="give --config"):
        load_pipeline(models["sd15"].file)


@pytest.mark.parametrize(
    ("family", "says"),
    [("sd2", "add --prediction"), ("sd15-inpaint", "picture"), ("sdxl-refiner", "picture")],
)
def test_families_that_need_something_more(
    models: dict[str, Model], family: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crdiff_ext.families import FAMILIES as known
    from harness.checkpoints import Checkpoint

    monkeypatch.setattr(Checkpoint, "family", lambda self, prediction=None: known[family])
    with pytest.raises(CRDiffError, match=says):
        load_pipeline(models["sd15"].file)


def test_a_configuration_folder_that_is_none(models: dict[str, Model], tmp_path: Path) -> None:
    with pytest.raises(CRDiffError, match="not a diffusers folder"):
        load_pipeline(models["sd15"].file, config=tmp_path)


def test_a_folder_of_another_pipeline(models: dict[str, Model], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    models["sd15"].pipe.save_pretrained(folder)
    index = read_json(folder / "model_index.json") | {"_class_name": "SanaPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CRDiffError, match="describes a SanaPipeline"):
        load_pipeline(folder)
    with pytest.raises(CRDiffError, match="pipeline's folder"):
        load_pipeline(folder / "unet")


def test_a_folder_with_a_damaged_part(models: dict[str, Model], tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    models["sd15"].pipe.save_pretrained(folder)
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.write_bytes(vae.read_bytes()[:-100])
    with pytest.raises(CRDiffError, match="cannot be loaded as a pipeline"):
        load_pipeline(folder)


def test_a_folder_whose_unet_lacks_weights(models: dict[str, Model], tmp_path: Path) -> None:
    """diffusers alone would fill them with random numbers and draw."""
    folder = tmp_path / "short"
    models["sd15"].pipe.save_pretrained(folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    without(file, "mid_block.attentions.0.proj_in", file)
    with pytest.raises(CRDiffError, match=r"lacks 2 weights .* mid_block.attentions.0.proj_in"):
        load_pipeline(folder)


def test_an_unknown_dtype(models: dict[str, Model]) -> None:
    with pytest.raises(CRDiffError, match="fp32, fp16, bf16"):
        load_pipeline(models["sd15"].file, dtype="int4")


@pytest.mark.slow
def test_a_single_file_of_sd15s_true_size(builders: ModuleType, tmp_path: Path) -> None:
    """2.1 GB in fp16; every tensor holds a number of its own, so that none can be mistaken."""
    import diffusers
    import transformers

    configs = read_json(CONFIGS / "sd15.json")
    write_config_folder(configs, tmp_path / "config")
    with torch.device("meta"):
        parts = {
            "unet": diffusers.UNet2DConditionModel.from_config(configs["unet"]),
            "vae": diffusers.AutoencoderKL.from_config(configs["vae"]),
            "text_encoder": transformers.CLIPTextModel(
                transformers.CLIPTextConfig.from_pretrained(tmp_path / "config" / "text_encoder")
            ),
        }
    number = 0
    for part in parts.values():
        filled = {}
        for name, tensor in part.state_dict().items():
            number += 1
            filled[name] = torch.full(tensor.shape, number / 1024, dtype=torch.float16)
        part.load_state_dict(filled, assign=True)
    scheduler = diffusers.PNDMScheduler.from_config(configs["scheduler"])
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "config" / "tokenizer")
    absent = {"safety_checker": None, "feature_extractor": None}
    pipe = diffusers.StableDiffusionPipeline(
        **parts, scheduler=scheduler, tokenizer=tokenizer, **absent, requires_safety_checker=False
    )
    path = builders.single_file(pipe, tmp_path / "v1-5-pruned-emaonly-fp16.safetensors")
    loaded = load_pipeline(path, "fp16")
    assert loaded.family.name == "sd15"
    assert loaded.pipe.tokenizer("a photo of a cat").input_ids[1:-1] == [320, 1125, 539, 320, 2368]
    assert_same_weights(pipe, loaded.pipe)
