from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crdiff_ext.blocks import (
    BlockLayout,
    ldm_to_diffusers,
    parse_name,
    prunable_layers,
    prunable_names,
    prunable_parameters,
    unet_prefix,
)
from crdiff_ext.errors import CRDiffError
from tests.core.tiny import (
    DIFFUSERS_BLOCKS,
    LAYERS,
    LDM_BLOCKS,
    TinyUNet,
    embedded_ldm_shapes,
    ldm_shapes,
    refiner_ldm_shapes,
    sd15_ldm_shapes,
    sdxl_ldm_shapes,
    to_ldm,
)

T = "transformer_blocks.0"


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "unet.", "a.b."])
@pytest.mark.parametrize("suffix", ["", ".weight", ".base_layer.weight"])
@pytest.mark.parametrize(
    ("name", "canonical", "group"),
    [
        ("input_blocks.1.1", "down_blocks.0.attentions.0", "down"),
        ("input_blocks.2.1", "down_blocks.0.attentions.1", "down"),
        ("input_blocks.4.1", "down_blocks.1.attentions.0", "down"),
        ("input_blocks.8.1", "down_blocks.2.attentions.1", "down"),
        ("middle_block.1", "mid_block.attentions.0", "mid"),
        ("output_blocks.3.1", "up_blocks.1.attentions.0", "up"),
        ("output_blocks.11.1", "up_blocks.3.attentions.2", "up"),
        ("down_blocks.2.attentions.1", "down_blocks.2.attentions.1", "down"),
        ("mid_block.attentions.0", "mid_block.attentions.0", "mid"),
        ("up_blocks.3.attentions.2", "up_blocks.3.attentions.2", "up"),
    ],
)
def test_prunable_names(prefix, suffix, name, canonical, group):
    for layer in LAYERS:
        parsed = parse_name(f"{prefix}{name}.{T}.{layer}{suffix}")
        assert parsed is not None
        assert parsed.canonical == f"{canonical}.{T}.{layer}"
        assert (parsed.group, parsed.prefix) == (group, prefix)
        assert parsed.kind == layer.split(".")[0]


@pytest.mark.parametrize(
    "name",
    [
        f"down_blocks.0.attentions.0.{T}.attn2.to_q.weight",
        f"down_blocks.0.attentions.0.{T}.attn1.to_q.bias",
        f"down_blocks.0.attentions.0.{T}.attn1.to_out.0.bias",
        f"down_blocks.0.attentions.0.{T}.attn1.to_out.1",
        f"down_blocks.0.attentions.0.{T}.ff.net.1",
        f"down_blocks.0.attentions.0.{T}.norm1.weight",
        f"down_blocks.0.attentions.0.{T}.attn1.to_q.lora_A.default.weight",
        f"down_blocks.0.attentions.0.{T}.attn1.to_q.weight_scale",
        "down_blocks.0.attentions.0.proj_in.weight",
        f"down_blocks.0.motion_modules.0.{T}.attn1.to_q.weight",
        f"down_blocks.0.attentions.0.temporal_{T}.attn1.to_q.weight",
        "mid_block.attentions.0.to_q.weight",  # a VAE's
        f"mid_block.0.attentions.0.{T}.attn1.to_q.weight",
        f"input_blocks.4.0.{T}.attn1.to_q.weight",
        f"input_blocks.1.{T}.attn1.to_q.weight",
        f"middle_block.0.1.{T}.attn1.to_q.weight",
        f"output_blocks.1.2.{T}.attn1.to_q.weight",
        "input_blocks.1.0.in_layers.2.weight",
        "time_embed.0.weight",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
        "",
    ],
)
def test_all_else_is_left_alone(name):
    assert parse_name(name) is None
    assert ldm_to_diffusers(name, BlockLayout()) is None


def test_a_downsampler_cannot_hold_attention():
    for index in (0, 3):
        with pytest.raises(CRDiffError, match=f"input_blocks.{index} "):
            parse_name(f"input_blocks.{index}.1.{T}.attn1.to_q.weight")


@pytest.mark.parametrize(
    ("shapes", "res_blocks"),
    [(sd15_ldm_shapes(), 2), (sdxl_ldm_shapes(), 2), (refiner_ldm_shapes(), 2),
     (embedded_ldm_shapes(), 1)],
)  # fmt: skip
def test_layout_of_real_models(shapes, res_blocks):
    assert BlockLayout.from_names(shapes) == BlockLayout(res_blocks)
    prunable_only = [name for name in shapes if ".op." not in name]
    assert BlockLayout.from_names(prunable_only) == BlockLayout(res_blocks)


@settings(max_examples=60)
@given(
    res_blocks=st.integers(1, 4),
    depths=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    with_samplers=st.booleans(),
)
def test_ldm_names_of_any_layout(res_blocks, depths, with_samplers):
    """Against names that are numbered as the LDM constructor numbers them."""
    if not with_samplers and not any(depths):
        return
    levels = len(depths)
    names = list(dict(ldm_shapes((8,) * levels, depths, 4, res_blocks)))
    if not with_samplers:
        names = [name for name in names if ".op." not in name]
    found = {parsed.canonical for parsed in prunable_names(names).values()}
    expected = set()
    for level, depth in enumerate(depths):
        up = levels - 1 - level
        for index in range(depth):
            for layer in LAYERS:
                end = f"transformer_blocks.{index}.{layer}"
                expected |= {f"down_blocks.{level}.attentions.{n}.{end}" for n in range(res_blocks)}
                expected |= {f"up_blocks.{up}.attentions.{n}.{end}" for n in range(res_blocks + 1)}
    middle = {f"mid_block.attentions.0.transformer_blocks.{n}.{layer}"
              for n in range(max(depths[-1], 1)) for layer in LAYERS}  # fmt: skip
    if levels == 1 and with_samplers and not any(depths):
        expected = set()
    assert found == expected | middle


def test_same_weights_in_either_layout():
    tensors = TinyUNet().state_dict()
    plain = prunable_parameters(tensors)
    ldm = prunable_parameters(to_ldm(tensors, "model.diffusion_model."))
    assert [(w.canonical, w.group) for w in plain] == [(w.canonical, w.group) for w in ldm]
    assert all(a.tensor is b.tensor for a, b in zip(plain, ldm, strict=True))
    assert [w.canonical for w in plain] == sorted(w.canonical for w in plain)
    assert len(plain) == 6 * len(DIFFUSERS_BLOCKS)


@pytest.mark.parametrize("blocks", [DIFFUSERS_BLOCKS, LDM_BLOCKS])
def test_modules_are_matched_by_name_and_weight(blocks):
    unet = TinyUNet(blocks)
    layers = prunable_layers(unet)
    assert len(layers) == 42
    assert not any(isinstance(layer.module, torch.nn.Linear) for layer in layers)
    weights = prunable_parameters(unet)
    assert all(w.tensor is layer.module.weight for w, layer in zip(weights, layers, strict=True))
    assert {w.name for w in weights} <= set(dict(unet.named_parameters()))


def test_a_whole_checkpoint_gives_its_unet_alone():
    tensors = TinyUNet().state_dict()
    names = [f"{prefix}{name}" for name in to_ldm(tensors)
             for prefix in ("control_model.", "model.diffusion_model.")]  # fmt: skip
    names += ["cond_stage_model.x.weight", "first_stage_model.decoder.conv_in.weight"]
    assert unet_prefix(names) == "model.diffusion_model."
    assert all(name.startswith("model.diffusion_model.") for name in prunable_names(names))


def test_what_cannot_be_told_apart_is_refused():
    name = f"down_blocks.0.attentions.0.{T}.attn1.to_q.weight"
    with pytest.raises(CRDiffError, match="several networks"):
        prunable_names([f"one.{name}", f"two.{name}"])
    with pytest.raises(CRDiffError, match="same layer"):
        prunable_names([name, f"input_blocks.1.1.{T}.attn1.to_q.weight"])
    with pytest.raises(CRDiffError, match="unfuse"):
        prunable_names([name, f"down_blocks.0.attentions.0.{T}.attn1.to_qkv.weight"])


def test_nothing_prunable():
    assert prunable_parameters({}) == []
    assert prunable_parameters(torch.nn.Linear(2, 2)) == []
    assert unet_prefix(["conv.weight"]) is None


def test_pairs_are_accepted():
    unet = TinyUNet()
    assert len(prunable_parameters(unet.named_parameters())) == 42
