from __future__ import annotations

import hashlib
import math

import pytest
import torch

from crdiff_ext import counting
from crdiff_ext.blocks import PrunableWeight, prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.pruning import PrunePlan, group_threshold, keep_mask, make_plan, report
from crdiff_ext.settings import GROUPS, Ratios
from tests.core.tiny import DIFFUSERS_BLOCKS, LDM_BLOCKS, TinyUNet, to_ldm

RATIOS = Ratios(0.3, 0.5, 0.7)


def weights_of(dtype=torch.float32, **options):
    return prunable_parameters(TinyUNet(dtype=dtype, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_each_group_has_the_threshold_of_all_its_layers_together(dtype):
    weights = weights_of(dtype)
    plan = make_plan(weights, RATIOS)
    for group, ratio in RATIOS.as_dict().items():
        flat = torch.cat([w.tensor.detach().flatten() for w in weights if w.group == group]).abs()
        n = int(flat.numel() * ratio)
        assert plan.thresholds[group] == float(flat.float().kthvalue(n).values)
        assert plan.totals[group] == flat.numel()
        assert plan.dtypes[group] == str(dtype).removeprefix("torch.")
    assert plan.ratios == RATIOS
    assert not plan.is_noop
    assert plan.why_noop is None


def test_n_is_rounded_down_and_zero_leaves_the_group_alone():
    tensor = torch.arange(1.0, 11.0)
    assert group_threshold([tensor], 0.0999) is None
    assert group_threshold([tensor], 0.1) == 1.0
    assert group_threshold([tensor], 0.1999) == 1.0
    assert group_threshold([tensor], 0.9999) == 9.0
    assert group_threshold([], 0.5) is None


def test_ties_go_together_and_zero_can_be_the_threshold():
    tensor = torch.tensor([0.0, -0.0, 0.0, 1.0, -1.0, 1.0, 2.0, 3.0])
    zero = group_threshold([tensor], 0.2)
    assert zero == 0.0
    assert keep_mask(tensor, zero).tolist() == [False] * 3 + [True] * 5
    one = group_threshold([tensor], 0.5)
    assert one == 1.0
    assert keep_mask(tensor, one).tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize(
    ("weights", "ratios", "said"),
    [
        (weights_of(), Ratios(0, 0, 0), "all ratios are 0"),
        (weights_of(), Ratios(1e-9, 0, 1e-9), "too small"),
        ([], RATIOS, "no prunable layer"),
    ],
)
def test_a_plan_that_does_nothing_says_why(weights, ratios, said):
    plan = make_plan(weights, ratios)
    assert plan.is_noop
    assert said in plan.why_noop
    assert dict(plan.thresholds) == dict.fromkeys(GROUPS)
    empty = report(weights, plan)
    assert empty.mask_sha256 == hashlib.sha256().hexdigest()
    assert not empty.pruned_per_layer


def test_plans_are_values():
    assert make_plan(weights_of(), RATIOS) == make_plan(weights_of(), RATIOS)
    plan = make_plan(weights_of(), RATIOS)
    with pytest.raises(TypeError):
        plan.thresholds["down"] = 0.0
    assert not any(isinstance(value, torch.Tensor) for value in vars(plan).values())


@pytest.mark.parametrize("ratio", [0.01, 0.5])
def test_nan_names_the_layer(ratio):
    unet = TinyUNet()
    layer = unet.up_blocks._modules["1"].attentions._modules["0"].transformer_blocks._modules["0"]
    with torch.no_grad():
        layer.ff.net._modules["2"].weight[3, 5] = math.nan
    with pytest.raises(
        CRDiffError, match=r"up_blocks\.1\.attentions\.0\.transformer_blocks\.0\.ff\.net\.2\.weight"
    ):
        make_plan(prunable_parameters(unet), Ratios(ratio, ratio, ratio))
    assert make_plan(prunable_parameters(unet), Ratios(ratio, ratio, 0)).thresholds["up"] is None


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.empty(4, 4, device="meta"), "meta device"),
        (torch.zeros(4, 4, dtype=torch.int8), "int8"),
    ],
)
def test_unreadable_weights_name_the_layer(tensor, said):
    bad = PrunableWeight("the.layer", "mid_block.x", "mid", tensor)
    with pytest.raises(CRDiffError, match=f"the.layer.*{said}"):
        make_plan([bad], RATIOS)
    plan = PrunePlan(RATIOS, dict.fromkeys(GROUPS, 0.1), dict.fromkeys(GROUPS, 16))
    with pytest.raises(CRDiffError, match=r"the\.layer"):
        report([bad], plan)


def test_mixed_types_in_a_group():
    weights = weights_of()
    mixed = [
        PrunableWeight(w.name, w.canonical, w.group, w.tensor.half() if index % 2 else w.tensor)
        for index, w in enumerate(weights)
    ]
    plan = make_plan(mixed, RATIOS)
    assert plan.dtypes["down"] == "mixed (float16, float32)"
    for group, ratio in RATIOS.as_dict().items():
        flat = torch.cat([w.tensor.detach().double().flatten() for w in mixed if w.group == group])
        n = int(flat.numel() * ratio)
        assert plan.thresholds[group] == float(flat.abs().kthvalue(n).values)
        pruned = report(mixed, plan).groups[group].pruned
        assert pruned == int((flat.abs() <= plan.thresholds[group]).sum())


def test_report_counts_and_hash(monkeypatch):
    monkeypatch.setattr(counting, "CHUNK_BYTES", 100)  # several chunks a layer
    weights = weights_of()
    plan = make_plan(weights, Ratios(0.3, 0, 0.7))
    found = report(reversed(weights), plan)
    digest = hashlib.sha256()
    for w in weights:
        threshold = plan.thresholds[w.group]
        if threshold is None:
            assert w.canonical not in found.pruned_per_layer
            continue
        mask = w.tensor.detach().abs() > threshold
        digest.update(bytes(mask.flatten().to(torch.uint8).tolist()))
        assert found.pruned_per_layer[w.canonical] == int((~mask).sum())
    assert found.mask_sha256 == digest.hexdigest()
    assert found.groups["mid"].threshold is None
    assert found.groups["mid"].pruned == 0
    assert [found.groups[group].layers for group in GROUPS] == [12, 6, 24]
    assert [found.groups[group].total for group in GROUPS] == list(plan.totals.values())
    data = found.to_dict()
    assert set(data) == {"groups", "pruned_per_layer", "mask_sha256"}
    assert data["groups"]["down"]["pruned"] == found.groups["down"].pruned


def test_either_layout_gives_the_same_plan_and_hash():
    tensors = TinyUNet(DIFFUSERS_BLOCKS).state_dict()
    plain = prunable_parameters(tensors)
    ldm = prunable_parameters(to_ldm(tensors, "model.diffusion_model."))
    module = prunable_parameters(TinyUNet(LDM_BLOCKS))  # same seed, same order of layers
    plan = make_plan(plain, RATIOS)
    assert plan == make_plan(ldm, RATIOS) == make_plan(module, RATIOS)
    assert report(plain, plan) == report(ldm, plan) == report(module, plan)


def test_a_different_weight_gives_a_different_hash():
    weights = weights_of()
    plan = make_plan(weights, RATIOS)
    before = report(weights, plan).mask_sha256
    with torch.no_grad():
        row = weights[0].tensor[0]
        row[int(row.abs().argmax())] = 0.0
    assert report(weights, plan).mask_sha256 != before
