"""Diffusion transformers: which layers, one ratio, a threshold for each layer; families."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch

from crdiff_ext.blocks import prunable_parameters, unet_layers, unet_prefix
from crdiff_ext.dit_names import parse_dit
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import identify
from crdiff_ext.pruning import make_plan, prune, report
from crdiff_ext.settings import Ratios
from crdiff_ext.weights import PrunedWeights
from tests.core.dits import (
    FLUX,
    SD3,
    SD35_LARGE,
    SD35_MEDIUM,
    flux_original,
    random,
    sd3_original,
    thresholds_by_the_authors_rule,
)
from tests.core.tiny import TinyUNet, sd15_ldm_shapes

PREFIXES = ["", "model.diffusion_model."]
TINY = {"width": 8, "double": 3, "pooled": 4, "context": 6}
TINY_SD3 = dict(sd3_original(**TINY))
TINY_FLUX = dict(flux_original(single=2, **TINY))


def selected(name):
    """The rule, said once more in the original names."""
    return name.endswith((".x_block.mlp.fc1.weight", ".x_block.mlp.fc2.weight",
                          ".img_mlp.0.weight", ".img_mlp.2.weight"))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("transformer_blocks.3.ff.net.0.proj.weight", "transformer_blocks.3.ff.net.0.proj"),
        ("transformer.transformer_blocks.3.ff.net.2", "transformer_blocks.3.ff.net.2"),
        ("transformer_blocks.3.ff.net.2.base_layer.weight", "transformer_blocks.3.ff.net.2"),
        ("transformer_blocks.11.attn2.to_out.0.weight", "transformer_blocks.11.attn2.to_out.0"),
        ("joint_blocks.7.x_block.mlp.fc1.weight", "transformer_blocks.7.ff.net.0.proj"),
        ("model.diffusion_model.joint_blocks.7.x_block.mlp.fc2.weight",
         "transformer_blocks.7.ff.net.2"),
        ("joint_blocks.7.x_block.attn2.proj.weight", "transformer_blocks.7.attn2.to_out.0"),
        ("joint_blocks.7.x_block.attn2.qkv.weight", "transformer_blocks.7.attn2.to_qkv"),
        ("double_blocks.18.img_mlp.0.weight", "transformer_blocks.18.ff.net.0.proj"),
        ("model.diffusion_model.double_blocks.0.img_mlp.2.weight", "transformer_blocks.0.ff.net.2"),
    ],
)  # fmt: skip
def test_names_that_the_rule_selects(name, canonical):
    assert parse_dit(name)[1] == canonical


@pytest.mark.parametrize(
    "name",
    [
        "transformer_blocks.3.ff.net.2.bias",
        "transformer_blocks.3.attn.to_q.weight",
        "transformer_blocks.3.attn.add_q_proj.weight",
        "transformer_blocks.3.ff_context.net.0.proj.weight",
        "single_transformer_blocks.3.proj_mlp.weight",
        "single_transformer_blocks.3.proj_out.weight",
        "joint_blocks.7.context_block.mlp.fc1.weight",
        "joint_blocks.7.x_block.attn.qkv.weight",
        "double_blocks.18.txt_mlp.0.weight",
        "double_blocks.18.img_mod.lin.weight",
        "single_blocks.18.linear1.weight",
        "control_net.transformer_blocks.3.ff.net.2.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight",
    ],
)
def test_names_that_it_does_not(name):
    assert parse_dit(name) is None


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("shapes", "blocks"), [(TINY_SD3, 3), (TINY_FLUX, 3)])
def test_a_layer_is_a_pool_of_its_own(shapes, blocks, prefix):
    tensors = {prefix + name: tensor for name, tensor in random(shapes).items()}
    assert unet_prefix(tensors) == prefix
    weights = prunable_parameters(tensors)
    assert len(weights) == len({w.pool for w in weights}) == 2 * blocks
    assert {w.group for w in weights} == {"all"}
    assert {w.pool for w in weights} == {
        f"transformer_blocks.{n}.ff.net.{end}" for n in range(blocks) for end in ("0.proj", "2")
    }
    assert {w.name for w in weights} == {prefix + n for n in shapes if selected(n)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.0, 0.001, 0.1, 0.37, 0.9])
@pytest.mark.parametrize("shapes", [TINY_SD3, TINY_FLUX])
def test_thresholds_are_the_authors_rule_layer_by_layer(shapes, ratio, dtype):
    tensors = random(shapes, dtype)
    weights = prunable_parameters(tensors)
    plan = make_plan(weights, Ratios(ratio, ratio, ratio))
    wanted = thresholds_by_the_authors_rule(tensors, ratio, selected)
    assert {w.name: plan.thresholds[w.pool] for w in weights} == wanted
    assert plan.is_noop == (ratio < 1 / 256)  # int(256 * ratio) == 0: a layer is left alone
    found = report(weights, plan)
    for w in weights:
        entry, threshold = found.groups[w.pool], wanted[w.name]
        pruned = 0 if threshold is None else int((w.tensor.abs() <= threshold).sum())
        assert (entry.threshold, entry.pruned, entry.total) == (threshold, pruned, w.tensor.numel())
        if threshold is not None:
            by_rule = torch.where(w.tensor.abs() <= threshold, torch.zeros_like(w.tensor), w.tensor)
            assert torch.equal(prune(w.tensor, threshold), by_rule)


def test_a_layer_that_is_too_small_is_left_alone_alone():
    tensors = {"double_blocks.0.img_mlp.0.weight": torch.randn(2, 2),
               "double_blocks.0.img_mlp.2.weight": torch.randn(20, 20)}  # fmt: skip
    plan = make_plan(prunable_parameters(tensors), Ratios(0.2, 0.2, 0.2))
    small, large = plan.thresholds.values()
    assert small is None
    assert large is not None


def test_both_namings_give_one_plan_and_one_mask():
    original = random(TINY_FLUX)
    renamed = {f"transformer.{parse_dit(name)[1]}.weight": tensor
               for name, tensor in original.items() if parse_dit(name)}  # fmt: skip
    ratios = Ratios(0.3, 0.3, 0.3)
    plans = [make_plan(prunable_parameters(t), ratios) for t in (original, renamed)]
    assert dict(plans[0].thresholds) == dict(plans[1].thresholds)
    reports = [report(prunable_parameters(t), plans[0]) for t in (original, renamed)]
    assert reports[0] == reports[1]


def test_unequal_ratios_are_refused():
    weights = prunable_parameters(random(TINY_SD3))
    with pytest.raises(CRDiffError, match=r"one ratio for all layers, not 0\.1 / 0\.1 / 0\.2"):
        make_plan(weights, Ratios(0.1, 0.1, 0.2))


def fused_and_apart():
    """SD3.5 medium's second attention in both namings: one matrix, and what diffusers makes of it.

    diffusers' converter: ``torch.chunk(qkv, 3, dim=0)`` is to_q, to_k, to_v.
    """
    fused = random(dict(sd3_original(dual=2, normed=True, **TINY)))
    apart = {}
    for name, tensor in fused.items():
        parsed = parse_dit(name)
        if parsed and parsed[1].endswith("to_qkv"):
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                apart[f"{parsed[1].removesuffix('qkv')}{letter}.weight"] = rows.clone()
        elif parsed:
            apart[f"{parsed[1]}.weight"] = tensor.clone()
    return fused, apart


@pytest.mark.parametrize("ratio", [0.005, 0.02, 0.3, 0.9])
def test_a_fused_second_attention_is_three_layers(ratio):
    fused, apart = fused_and_apart()
    assert identify(fused).name == "unknown"  # never raises
    weights, other = prunable_parameters(fused), prunable_parameters(apart)
    assert [w.canonical for w in weights] == [w.canonical for w in other]
    assert len(weights) == 2 * 3 + 4 * 2
    for w, o in zip(weights, other, strict=True):
        assert torch.equal(w.tensor, o.tensor)
        assert w.tensor.untyped_storage().data_ptr() in {
            t.untyped_storage().data_ptr() for t in fused.values()
        }
    ratios = Ratios(ratio, ratio, ratio)
    plan = make_plan(weights, ratios)
    assert dict(plan.thresholds) == dict(make_plan(other, ratios).thresholds)
    assert report(weights, plan) == report(other, plan)
    qkv = torch.nn.Linear(8, 24, bias=False)
    qkv.weight.data = fused["joint_blocks.0.x_block.attn2.qkv.weight"].clone()
    module = torch.nn.Module()
    module.joint_blocks = torch.nn.ModuleList([torch.nn.Module()])
    module.joint_blocks[0].x_block = torch.nn.ModuleDict({"attn2": torch.nn.Module()})
    module.joint_blocks[0].x_block["attn2"].qkv = qkv
    before = qkv.weight
    names = [f"transformer_blocks.0.attn2.to_{letter}" for letter in "qkv"]
    rows = [apart[f"{name}.weight"] for name in names]
    limits = [plan.thresholds[name] for name in names]
    assert all(limit is None for limit in limits) == (ratio < 1 / 64)
    for memory in ("copy", "recompute"):
        for factor in (0.0, -0.5, -0.3):
            expected = [
                part if limit is None else prune(part, limit, factor)
                for part, limit in zip(rows, limits, strict=True)
            ]
            with PrunedWeights(module, plan, memory, factor).active():
                found = qkv(torch.eye(8)).T
            assert torch.equal(found, torch.cat(expected))
            assert qkv.weight is before


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_parts_of_narrow_types(dtype):
    weight = torch.randn(6, 5).to(dtype)
    limits = (0.25, 1.0, 0.5)
    expected = [prune(p, t, -0.5).float() for p, t in zip(weight.chunk(3), limits, strict=True)]
    found = prune(weight, limits, -0.5)
    assert found.dtype == dtype
    assert torch.equal(found.float(), torch.cat(expected))


def test_effective_weights_of_a_transformer_are_needed_one_at_a_time():
    """They may have been unpacked for the purpose: 2.7 GiB for FLUX."""
    alive = []

    def made():
        for weight in prunable_parameters(random(TINY_FLUX)):
            tensor = weight.tensor.clone()
            alive.append(weakref.ref(tensor))
            assert sum(ref() is not None for ref in alive) <= 2
            yield replace(weight, tensor=tensor)
            del tensor

    assert len(make_plan(made(), Ratios(0.3, 0.3, 0.3)).thresholds) == len(alive) == 6


def test_damaged_weights_name_the_layer():
    tensors = random(TINY_SD3)
    tensors["joint_blocks.1.x_block.mlp.fc2.weight"][0, 0] = float("nan")
    with pytest.raises(CRDiffError, match=r"joint_blocks\.1\.x_block\.mlp\.fc2\.weight holds NaN"):
        make_plan(prunable_parameters(tensors), Ratios(0.3, 0.3, 0.3))


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    ("shapes", "family"),
    [
        (dict(sd3_original(**SD3)), "sd3"),
        (dict(sd3_original(**SD35_MEDIUM)), "sd35-medium"),
        (dict(sd3_original(**SD35_LARGE)), "sd35-large"),
        (dict(flux_original(**FLUX)), "flux-dev"),
        (dict(flux_original(guided=False, **FLUX)), "flux-schnell"),
        (dict(sd3_original(**SD3 | {"normed": True})), "unknown"),
        (dict(sd3_original(**SD3 | {"double": 20})), "unknown"),
        (dict(flux_original(**FLUX | {"double": 8})), "unknown"),  # FLUX with blocks taken out
        (dict(flux_original(**FLUX | {"context": 2048})), "unknown"),
        ({n: s for n, s in flux_original(**FLUX) if "vector_in" not in n}, "unknown"),  # Chroma
        (dict(flux_original(**FLUX)) | {"img_in.weight": (3072, 128)}, "unknown"),  # for canny
    ],
)  # fmt: skip
def test_families(shapes, family, prefix):
    known = {prefix + name: shape for name, shape in shapes.items()}
    assert identify(known).name == family


def test_layers_of_unets_only():
    assert len(unet_layers(TinyUNet())) == 42
    dit = torch.nn.Module()
    dit.double_blocks = torch.nn.ModuleList([torch.nn.Module()])
    dit.double_blocks[0].img_mlp = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4)
    )
    assert len(prunable_parameters(dit)) == 2
    assert unet_layers(dit) == []


def test_a_plan_of_one_kind_acts_on_every_layer_by_its_own_threshold():
    tensors = random(TINY_FLUX)
    module = torch.nn.Module()
    module.double_blocks = torch.nn.ModuleList()
    for block in range(3):
        made = torch.nn.Module()
        made.img_mlp = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(),
                                           torch.nn.Linear(32, 8))  # fmt: skip
        for index in (0, 2):
            tensor = tensors[f"double_blocks.{block}.img_mlp.{index}.weight"]
            made.img_mlp[index].weight.data = tensor.clone()
        module.double_blocks.append(made)
    plan = make_plan(prunable_parameters(module), Ratios(0.3, 0.3, 0.3))
    assert len(set(plan.thresholds.values())) == 6
    with PrunedWeights(module, plan, "copy").active():
        for w in prunable_parameters(module):
            assert torch.equal(w.tensor, prune(tensors[w.name], plan.thresholds[w.pool]))
    for w in prunable_parameters(module):
        assert torch.equal(w.tensor, tensors[w.name])


def test_a_unet_is_still_a_unet():
    assert identify(sd15_ldm_shapes()).name == "sd15"
    assert {w.pool for w in prunable_parameters(TinyUNet())} == {"down", "mid", "up"}
