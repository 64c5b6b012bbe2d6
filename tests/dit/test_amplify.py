"""Thresholds and amplification on small SD3 and FLUX transformers, against plain torch."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from crdiff_ext.amplify import combine
from crdiff_ext.blocks import prunable_layers, prunable_parameters
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import make_plan, prune
from crdiff_ext.settings import Ratios
from tests.core.dits import thresholds_by_the_authors_rule
from tests.core.pruned import Snapshot
from tests.dit.models import flux_transformer, inputs, sd3_transformer

K = 1.5
PARTS = ("to_q", "to_k", "to_v", "to_out.0")
ENDS = (
    *(f"{attention}.{part}.weight" for attention in ("attn1", "attn2") for part in PARTS),
    "ff.net.0.proj.weight",
    "ff.net.2.weight",
)
"""The authors' rule: what a name must end in. ``ff_context.net.2`` does not end in ``ff.net.2``."""

MODELS = {
    "sd3": (sd3_transformer, 4),
    "sd35": (lambda: sd3_transformer(dual=True), 8),
    "flux-dev": (flux_transformer, 4),
    "flux-schnell": (lambda: flux_transformer(guided=False), 4),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return MODELS[request.param][0]()


def by_the_rule(name: str) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ENDS)


def plan_of(model: Any, ratio: float) -> Any:
    return make_plan(prunable_parameters(model), Ratios(ratio, ratio, ratio))


def pruned_for_good(model: Any, ratio: float) -> Any:
    """An independent copy whose weights are pruned by kthvalue, layer by layer."""
    other = copy.deepcopy(model)
    state = dict(other.named_parameters())
    with torch.no_grad():
        for name, t in thresholds_by_the_authors_rule(state, ratio, by_the_rule).items():
            if t is not None:
                state[name][state[name].abs() <= t] = 0
    return other


def call(model: Any, seed: int = 0, **changes: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(**inputs(model, seed) | changes)
    return output[0] if isinstance(output, tuple) else output.sample


@pytest.mark.parametrize("name", MODELS)
def test_diffusers_names_and_the_rule(name: str) -> None:
    make, layers = MODELS[name]
    model = make()
    weights = prunable_parameters(model)
    assert len(weights) == layers
    assert {w.name for w in weights} == {n for n, _ in model.named_parameters() if by_the_rule(n)}
    assert {w.name for w in weights} == {f"{w.canonical}.weight" for w in weights}
    dense = {
        n.split(".", 2)[2] for n, _ in model.named_parameters() if n[0] == "t" and "blocks" in n
    }
    assert {"attn.to_q.weight", "attn.add_q_proj.weight", "ff_context.net.2.weight"} <= dense


@pytest.mark.parametrize("ratio", [0.0, 0.0002, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_thresholds_are_kthvalue_s(model: Any, ratio: float, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    wanted = thresholds_by_the_authors_rule(dict(model.named_parameters()), ratio, by_the_rule)
    plan = plan_of(model, ratio)
    assert {f"{pool}.weight": value for pool, value in plan.thresholds.items()} == wanted


@pytest.mark.parametrize("memory", ["copy", "recompute"])
@pytest.mark.parametrize("k", [1.0, 1.5, 3.0])
def test_amplification_is_the_formula_bit_for_bit(model: Any, k: float, memory: str) -> None:
    z_dense, z_pruned = call(model), call(pruned_for_good(model, 0.4))
    assert not torch.equal(z_dense, z_pruned)
    before = Snapshot(model)
    handle = CRDiff(model, plan_of(model, 0.4), k, memory)
    with handle.attached():
        z = call(model)
        as_output = call(model, return_dict=True)
    before.check()
    assert torch.equal(z, combine(z_dense, z_pruned, k))
    assert torch.equal(z, as_output)
    assert torch.allclose(z, k * z_pruned + (1 - k) * z_dense, atol=1e-5)
    assert torch.equal(call(model), z_dense)
    passes = (handle.stats.dense_passes, handle.stats.pruned_passes)
    assert passes == ((0, 2) if k == 1 else (2, 2))


@pytest.mark.parametrize("memory", ["copy", "recompute"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_dense_weights_come_back_when_a_pass_fails(
    model: Any, memory: str, error: type[BaseException]
) -> None:
    before = Snapshot(model)
    block = model.transformer_blocks[1].ff
    original = block.forward
    handle = CRDiff(model, plan_of(model, 0.4), K, memory)
    calls = []

    def fails(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:  # the pruned pass, in the middle of it
            raise error("broken")
        return original(*args, **kwargs)

    block.forward = fails
    try:
        with pytest.raises(error, match="broken"), handle.attached():
            call(model)
    finally:
        del block.forward
    before.check()


@pytest.mark.parametrize(("ratio", "k"), [(0.0, 1.5), (0.00001, 1.5), (0.4, 0.0)])
def test_nothing_to_do_is_dense_to_the_bit(model: Any, ratio: float, k: float) -> None:
    handle = CRDiff(model, plan_of(model, ratio), k)
    assert "one dense pass, nothing changed" in (handle.note or "")
    z_dense = call(model)
    with handle.attached():
        assert torch.equal(call(model), z_dense)
    assert handle.stats.pruned_passes == 0


def test_a_folded_pass_sees_the_small_weights_times_one_minus_k(model: Any) -> None:
    folded = copy.deepcopy(model)
    plan = plan_of(model, 0.4)
    with torch.no_grad():
        for layer in prunable_layers(folded):
            weight = layer.module.weight
            weight.copy_(prune(weight, layer.threshold(plan.thresholds), 1 - K))
    handle = CRDiff(model, plan, K, amplification="folded")
    with handle.attached():
        assert torch.equal(call(model), call(folded))
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (0, 1)


def test_folded_is_equal_to_first_order(model: Any) -> None:
    """The error is far below the effect, and falls about with its square."""
    model = model.double()

    def errors(ratio: float) -> tuple[float, float]:
        plan = plan_of(model, ratio)
        given = {
            n: v.double() if isinstance(v, torch.Tensor) else v for n, v in inputs(model).items()
        }
        with torch.no_grad():
            dense = model(**given)[0]
            with CRDiff(model, plan, K).attached():
                exact = model(**given)[0]
            with CRDiff(model, plan, K, amplification="folded").attached():
                folded = model(**given)[0]
        return float((folded - exact).norm()), float((exact - dense).norm())

    small, large = errors(0.05), errors(0.2)
    for error, effect in (small, large):
        assert error < 0.1 * effect
    order = math.log(large[0] / small[0]) / math.log(large[1] / small[1])
    assert order > 1.6


def test_a_reused_difference_is_of_the_same_conditioning(model: Any) -> None:
    """Two calls a step with different text, as true guidance makes them; levels by keyword."""
    plan = plan_of(model, 0.4)
    pruned = pruned_for_good(model, 0.4)
    texts = [inputs(model, seed)["encoder_hidden_states"] for seed in (1, 2)]
    scale = float(inputs(model)["timestep"][0])
    handle = CRDiff(model, plan, K, amplification="reuse-2")
    with handle.attached():
        for step, level in enumerate((1.0, 0.5)):
            for text in texts:
                given = {
                    "encoder_hidden_states": text,
                    "timestep": torch.full((2,), level * scale),
                }
                z = call(model, **given)
                if not step:
                    continue
                first = given | {"timestep": torch.full((2,), scale)}
                with torch.no_grad():
                    original = type(model).forward
                    old = original(model, **inputs(model) | first)[0]
                delta = call(pruned, **first) - old
                wanted = call(pruned, **given) + (K - 1) * delta
                assert torch.allclose(z, wanted, atol=1e-6)
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (2, 4)


def test_arguments_by_position_are_known_by_the_forward_s_own_names(model: Any) -> None:
    """A transformer's order is not a UNet's: the timestep comes fourth, after the text."""
    order = ["hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"]
    given = inputs(model)
    rest = {name: value for name, value in given.items() if name not in order}
    handle = CRDiff(model, plan_of(model, 0.4), K, amplification="reuse-2")
    with torch.no_grad(), handle.attached():
        for level in (1.0, 0.5, 0.25, 0.125):
            args = [given[name] for name in order[:3]] + [given["timestep"] * level]
            model(*args, **rest)
    assert (handle.stats.dense_passes, handle.stats.pruned_passes) == (2, 4)
