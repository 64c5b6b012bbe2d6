"""Export to the original single-file layout: names, shapes, yaml, vocabulary, and the way back."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from crdiff_ext.blocks import prunable_names
from crdiff_ext.errors import CRDiffError
from harness.clip_vocabulary import openai_vocabulary, write_clip_tokenizer
from harness.layouts.export import export_ldm
from harness.layouts.unet import unet_to_ldm
from harness.layouts.webui_yaml import webui_config
from harness.locate import read_json
from harness.pipelines import load_pipeline
from harness.single_file import CONFIGS

CAPTIONS = [
    "a photo of a cat",
    "Hello, WORLD!! it's 12345 o'clock",
    "we'll don't they've I'm he'd",
    "naïve café déjà-vu Ærøskøbing",
    "日本語のテスト и немного русского",
    "two 😀 emoji 👩‍🚀 here",
    "tab\tand\nnew line   and spaces",
    "100% of $5.00 #hash @home (brackets) [more] {and} <less>",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
    "",
]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A pipeline of the embedded model's shape, and the folder that it is saved in."""
    from diffusers import StableDiffusionPipeline

    from harness.embedded import architecture
    from harness.embedded.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("embedded")
    tokenizer = build_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        pipe = StableDiffusionPipeline(
            vae=architecture.make_vae(),
            text_encoder=architecture.make_text_encoder(len(tokenizer)),
            tokenizer=tokenizer,
            unet=architecture.make_unet(),
            scheduler=architecture.make_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder / "model")
    return pipe, folder / "model"


@pytest.fixture(scope="module")
def exported(embedded: tuple[Any, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "embedded.safetensors"
    written = export_ldm(embedded[0], path)
    assert all(file.is_file() for file in written)
    assert not list(path.parent.glob(".*"))
    return path


def test_the_file_loads_back_to_the_same_tensors(
    embedded: tuple[Any, Path], exported: Path, no_network: None
) -> None:
    pipe, folder = embedded
    loaded = load_pipeline(exported, config=folder)
    assert loaded.family.name == "embedded"
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(pipe, name).state_dict()
        found = getattr(loaded.pipe, name).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_names_and_shapes_are_the_original_ones(exported: Path) -> None:
    """A selection, checked against the original code's modules by hand."""
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(exported).items()}
    unet, vae = "model.diffusion_model.", "first_stage_model."
    text = "cond_stage_model.transformer.text_model."
    expected = {
        f"{unet}input_blocks.0.0.weight": (64, 4, 3, 3),
        f"{unet}time_embed.2.weight": (256, 256),
        f"{unet}input_blocks.1.1.proj_in.weight": (64, 64),
        f"{unet}input_blocks.2.0.op.weight": (64, 64, 3, 3),
        f"{unet}input_blocks.3.0.skip_connection.weight": (128, 64, 1, 1),
        f"{unet}input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": (128, 96),
        f"{unet}middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (1024, 128),
        f"{unet}middle_block.2.out_layers.3.bias": (128,),
        f"{unet}output_blocks.1.2.conv.weight": (128, 128, 3, 3),
        f"{unet}output_blocks.3.0.in_layers.2.weight": (64, 128, 3, 3),
        f"{unet}out.2.weight": (4, 64, 3, 3),
        f"{vae}encoder.down.2.downsample.conv.weight": (64, 64, 3, 3),
        f"{vae}encoder.mid.attn_1.q.weight": (64, 64, 1, 1),
        f"{vae}decoder.mid.attn_1.proj_out.weight": (64, 64, 1, 1),
        f"{vae}decoder.mid.block_2.norm2.weight": (64,),
        f"{vae}decoder.up.3.block.0.conv1.weight": (64, 64, 3, 3),
        f"{vae}decoder.up.1.upsample.conv.bias": (64,),
        f"{vae}encoder.norm_out.weight": (64,),
        f"{vae}quant_conv.weight": (8, 8, 1, 1),
        f"{text}embeddings.position_embedding.weight": (77, 96),
        f"{text}embeddings.position_ids": (1, 77),
        f"{text}encoder.layers.1.mlp.fc1.weight": (384, 96),
        f"{text}final_layer_norm.bias": (96,),
        "alphas_cumprod": (1000,),
    }
    assert {name: shapes.get(name) for name in expected} == expected
    assert f"{vae}decoder.up.0.upsample.conv.weight" not in shapes
    assert f"{vae}encoder.down.3.downsample.conv.weight" not in shapes


@pytest.mark.parametrize("family", ["sd15", "sd2-v", "sdxl"])
def test_unet_names_agree_with_the_walk_and_with_the_core(
    family: str, builders: ModuleType
) -> None:
    """One rule in three hands: the harness, the core, and a walk as the original code builds."""
    from diffusers import UNet2DConditionModel

    config = read_json(CONFIGS / f"{family}.json")["unet"]
    with torch.device("meta"):
        names = unet_to_ldm(UNet2DConditionModel.from_config(config).state_dict())
    assert len(set(names.values())) == len(names)
    for old, new in builders.ldm_unet_names(config).items():
        mine = {names[name] for name in names if name.startswith(f"{old}.")}
        assert mine
        assert all(name.startswith(f"{new}.") for name in mine)
    back = prunable_names(names.values())
    assert {f"{parsed.canonical}.weight": name for name, parsed in back.items()} == {
        name: names[name] for name in prunable_names(names)
    }
    assert all(f"{parsed.canonical}.weight" in names for parsed in back.values())


def test_the_yaml_describes_the_architecture(exported: Path) -> None:
    params = yaml.safe_load(exported.with_suffix(".yaml").read_text())["model"]["params"]
    assert params["parameterization"] == "v"
    assert (params["linear_start"], params["linear_end"]) == (0.00085, 0.012)
    unet = params["unet_config"]["params"]
    expected = {
        "model_channels": 64,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [1, 2],
        "num_head_channels": 32,
        "transformer_depth": 1,
        "context_dim": 96,
        "use_linear_in_transformer": True,
        "legacy": False,
    }
    assert {name: unet[name] for name in expected} == expected
    vae = params["first_stage_config"]["params"]["ddconfig"]
    assert (vae["ch"], vae["ch_mult"], vae["num_res_blocks"]) == (64, [1, 1, 1, 1], 0)
    text = params["cond_stage_config"]
    assert text["target"] == "ldm.modules.encoders.modules.FrozenCLIPEmbedder"
    assert Path(text["params"]["version"]) == exported.with_name("embedded-clip")


def test_sd15s_yaml_is_the_published_one(builders: ModuleType, tmp_path: Path) -> None:
    """The bundled configuration comes out as CompVis wrote it for SD1."""
    pipe = builders.build(builders.shrunken("sd15"), tmp_path)
    configs = read_json(CONFIGS / "sd15.json")
    with torch.device("meta"):
        import diffusers

        pipe.unet = diffusers.UNet2DConditionModel.from_config(configs["unet"])
        pipe.vae = diffusers.AutoencoderKL.from_config(configs["vae"])
    params = webui_config(pipe, "clip")["model"]["params"]
    unet = params["unet_config"]["params"]
    assert params["parameterization"] == "eps"
    assert params["scale_factor"] == 0.18215
    assert unet["attention_resolutions"] == [1, 2, 4]
    assert unet["channel_mult"] == [1, 2, 4, 4]
    assert (unet["model_channels"], unet["num_res_blocks"], unet["num_heads"]) == (320, 2, 8)
    assert "num_head_channels" not in unet
    vae = params["first_stage_config"]["params"]["ddconfig"]
    assert (vae["ch"], vae["ch_mult"], vae["num_res_blocks"]) == (128, [1, 2, 4, 4], 2)


def test_what_the_original_code_cannot_express_is_refused(
    embedded: tuple[Any, Path], tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(embedded[1])
    pipe.vae.register_to_config(mid_block_add_attention=False)
    with pytest.raises(CRDiffError, match="no attention in the middle"):
        export_ldm(pipe, tmp_path / "no.safetensors")
    assert not list(tmp_path.iterdir())


def test_schedule_buffers_are_the_schedulers(embedded: tuple[Any, Path], exported: Path) -> None:
    state = load_file(exported)
    alphas = embedded[0].scheduler.alphas_cumprod
    torch.testing.assert_close(state["alphas_cumprod"], alphas)
    torch.testing.assert_close(state["betas"], embedded[0].scheduler.betas)
    assert all(torch.isfinite(state[name]).all() for name in state)


def test_the_exported_vocabulary_tokenises_alike(
    embedded: tuple[Any, Path], exported: Path
) -> None:
    from transformers import CLIPTokenizer

    from harness.embedded.scenes import all_specs, caption

    tokenizer = CLIPTokenizer.from_pretrained(exported.with_name("embedded-clip"))
    captions = [caption(spec) for spec in all_specs()][::37] + CAPTIONS
    assert tokenizer(captions).input_ids == embedded[0].tokenizer(captions).input_ids
    assert tokenizer.model_max_length == 77
    assert tokenizer.pad_token_id == embedded[0].tokenizer.pad_token_id


def test_the_published_vocabulary_tokenises_as_open_clip_does(tmp_path: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    from harness.embedded.scenes import all_specs, caption

    vocabulary = openai_vocabulary()
    assert len(vocabulary[0]) == 49408
    assert vocabulary[0]["<|startoftext|>"] == 49406
    write_clip_tokenizer(tmp_path / "plain", vocabulary)
    write_clip_tokenizer(tmp_path / "bang", vocabulary, specials={"pad_token": "!"})
    plain, bang = (CLIPTokenizer.from_pretrained(tmp_path / name) for name in ("plain", "bang"))
    theirs = SimpleTokenizer()
    captions = [caption(spec) for spec in all_specs()][::37] + CAPTIONS
    ids = plain(captions, add_special_tokens=False).input_ids
    assert ids == [theirs.encode(text) for text in captions]
    calm = [text for text in captions if "!" not in text]
    assert len(calm) == len(captions) - 1
    assert bang(calm).input_ids == plain(calm).input_ids
    assert plain("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (plain.pad_token_id, bang.pad_token_id) == (49407, 0)
    assert plain.model_max_length == bang.model_max_length == 77
