"""Where the Forge adapter's pruned weights come from: LoRA, casts, GGUF; the cache's key."""

from __future__ import annotations

import gc
import json
import struct
import types

import pytest
import torch

from crdiff_ext.settings import Settings
from crdiff_ext.webui.forge_weights import ForgeWeights, is_exact_cast
from tests.core.tiny import sd15_ldm_shapes
from tests.webui.fakes.forge import Linear, UNet
from tests.webui.fakes.forge_world import (
    LORA,
    assert_same,
    masked,
    pattern,
    run,
    state_of,
    unet_of,
    worlds,
    zeros,
)
from tests.webui.forge_checks import (
    a_merged_lora_is_pruned_and_goes,
    layers_of,
)


@pytest.fixture
def world(monkeypatch):
    return worlds(monkeypatch)


def test_lora_is_merged_before_thresholds_and_gone_afterwards(world):
    a_merged_lora_is_pruned_and_goes(world())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_storage_in_fewer_bits_prunes_what_is_stored(world, dtype):
    """Ties are many in fp8: all weights at the threshold go, as in the core."""
    host = world(UNet(dtype=dtype, manual_cast=True))
    before = state_of(unet_of(host))
    off = run(host, None)[0]
    image, job, passes = run(host)
    assert pattern([[p - d for p, d in zip(*passes[:2][::-1], strict=True)]]) == "p"
    stored = [linear.weight.float() for linear in layers_of(unet_of(host))]
    assert_same(passes[0], stored)
    assert_same(passes[1], masked(stored))
    assert job.records[0].actor.plan().dtypes["down"] == str(dtype).removeprefix("torch.")
    assert not torch.equal(image, off)
    assert state_of(unet_of(host)) == before


def test_scaled_fp8_is_ranked_by_what_it_stands_for(world):
    unet = UNet(dtype=torch.float8_e4m3fn, manual_cast=True)
    for index, linear in enumerate(layers_of(unet)):
        linear.scale_weight = torch.nn.Parameter(torch.tensor(1.0 + index % 7))
    host = world(unet)
    passes = run(host)[2]
    assert_same(passes[1], masked(passes[0]))
    stored = masked([linear.weight.float() for linear in layers_of(unet)])
    assert any(not torch.equal(a == 0, b == 0) for a, b in zip(stored, passes[1], strict=True)), (
        "the scales change nothing: this test tests nothing"
    )


def test_online_lora_is_pruned_with_the_weight(world):
    """The host adds it at each forward; its own patches stay the very same objects."""
    host = world(UNet(dtype=torch.float8_e4m3fn, manual_cast=True))
    host.data.sd_model.use_lora(LORA, online=True)
    passes = run(host)[2]
    assert_same(passes[1], masked(passes[0]))
    first = layers_of(unet_of(host))[0]
    assert not torch.equal(passes[0][0], first.weight.float())
    patches = first.forge_online_loras
    before = state_of(unet_of(host))
    run(host)
    assert first.forge_online_loras is patches
    assert len(patches["weight"]) == 1
    assert state_of(unet_of(host)) == before
    assert [hasattr(linear, "forge_online_loras") for linear in layers_of(unet_of(host))[1:3]] == [
        False,
        False,
    ]


def test_an_inexact_cast_is_ranked_after_it(world):
    """Stored in fp32, computed in fp16: values that round to one number are ties."""
    source = make_source(UNet(manual_cast=True), torch.float16)
    for weight in source.weights():
        assert weight.tensor.dtype == torch.float16
    assert is_exact_cast(torch.float8_e5m2, torch.bfloat16)
    assert is_exact_cast(torch.float16, torch.float32)
    assert not is_exact_cast(torch.bfloat16, torch.float16)
    assert not is_exact_cast(torch.float32, torch.float16)
    assert not is_exact_cast(torch.float16, None)


def make_source(unet, dtype=torch.float32):
    from crdiff_ext.webui.forge_online import OnlineLoras
    from tests.webui.fakes import forge

    model = forge.KModel(unet)
    model.computation_dtype = dtype
    online = OnlineLoras(forge.CALCULATORS, forge.get_weight_and_bias, forge.dequantize_tensor)
    source = ForgeWeights(model, torch.device("cpu"), online)
    source.keep = model  # the source itself refers to it weakly
    return source


class Packed(torch.nn.Parameter):
    """backend/operations_gguf.py, ParameterGGUF: integers in the shape of the floats."""

    gguf_cls = "Q8"


def test_gguf_is_pruned_after_unpacking(world):
    unet = UNet()
    for linear in layers_of(unet):
        packed = (linear.weight * 64).round().clamp(-127, 127).to(torch.int8)
        linear.weight = Packed(packed, requires_grad=False)
    host = world(unet)
    passes = run(host)[2]
    assert zeros(passes[1]) > zeros(passes[0])
    assert_same(passes[1], masked(passes[0]))


def test_four_bits_are_refused(world):
    host = world()
    for linear in layers_of(unet_of(host)):
        linear.weight.bnb_quantized = True
    off = run(host, None)[0]
    image, job, passes = run(host)
    assert torch.equal(image, off)
    assert pattern(passes) == "dd"
    assert job.said == [
        "CR-Diff: this model is not supported: its weights are in 4 bits (nf4 or fp4)"
    ]
    assert job.acted() == []


def test_an_unknown_architecture_is_refused(world):
    class Flux(UNet):
        def named_modules(self, *args, **kwargs):
            for name, module in super().named_modules(*args, **kwargs):
                yield name.replace("transformer_blocks", "double_blocks"), module

    host = world(Flux())
    _, job, passes = run(host)
    assert pattern(passes) == "dd"
    assert "no layer that CR-Diff knows" in job.said[0]


def test_a_transformer_without_the_rest_of_flux_is_refused(world):
    """It has FLUX' names, as Chroma and FLUX.2 do: see test_forge_transformers.py for FLUX."""

    class Flux(UNet):
        def named_modules(self, *args, **kwargs):
            for name, module in super().named_modules(*args, **kwargs):
                tail = name.partition(".ff.net.")[2]
                names = {"0.proj": "double_blocks.0.img_mlp.0", "2": "double_blocks.0.img_mlp.2"}
                yield names.get(tail, name.replace("transformer_blocks", "single_blocks")), module

    host = world(Flux())
    _, job, passes = run(host)
    assert pattern(passes) == "dd"
    assert "it is a transformer of another structure" in job.said[0]


def test_damaged_weights_end_in_a_dense_image_that_does_not_claim_more(world):
    host = world()
    linear = layers_of(unet_of(host))[3]
    with torch.no_grad():
        linear.weight[0, 0] = float("nan")
    _, job, passes = run(host)
    assert len(passes) == 2
    assert job.acted() == []


def test_the_key_ignores_moves_and_notices_writes():
    source = make_source(UNet())
    unet = source.keep.diffusion_model
    key = source.key()
    for linear in layers_of(unet):  # memory_management.py: a swap makes new Parameters
        linear.weight = torch.nn.Parameter(linear.weight.clone(), requires_grad=False)
    gc.collect()
    assert source.key() == key
    for linear in layers_of(unet):  # Module.to: the same Parameter, other data
        linear.weight.data = linear.weight.data.clone()
    assert source.key() == key
    assert make_source(UNet()).key() == key  # the same checkpoint, loaded again
    assert make_source(UNet(seed=1)).key() != key
    assert make_source(UNet(dtype=torch.float16)).key() != key
    with torch.no_grad():
        layers_of(unet)[5].weight.mul_(1.5)
    changed = source.key()
    assert changed != key
    source.keep.lora_loader.loaded_hash = "[('a.safetensors', 0.5)]"
    assert source.key() != changed
    with torch.inference_mode():
        merged = torch.nn.Parameter(torch.ones(8, 8), requires_grad=False)
    layers_of(unet)[0].weight = merged  # the host's merged weights have no version
    assert source.key() != changed


def test_the_key_notices_online_strength():
    source = make_source(UNet())
    key = source.key()
    first = layers_of(source.keep.diffusion_model)[0]
    first.forge_online_loras = {"weight": [[0.5, ("diff", (torch.ones(8, 8),)), 1.0, None, None]]}
    half = source.key()
    first.forge_online_loras = {"weight": [[0.7, ("diff", (torch.ones(8, 8),)), 1.0, None, None]]}
    assert len({key, half, source.key()}) == 3


def test_ratios_are_part_of_the_plan_but_weights_are_read_once(world, monkeypatch):
    host = world()
    reads = []
    original = ForgeWeights.weights
    monkeypatch.setattr(ForgeWeights, "weights", lambda self: reads.append(1) or original(self))
    run(host)
    run(host)
    assert len(reads) == 1
    run(host, Settings(mode="always", ratios="0.1"))
    assert len(reads) == 2


@pytest.mark.parametrize("state", ["LOW_VRAM", "NORMAL_VRAM"])
def test_no_copies_where_the_host_is_short_of_memory(world, state):
    host = world()
    host.adapter._memory.vram_state = types.SimpleNamespace(name=state)
    seen = []

    def look(unet, index):
        if index == 0 and len(unet.passes) % 2:
            linear = unet.order[0][0]
            seen.append(bool(linear._forward_pre_hooks))

    unet_of(host).interrupt = look
    run(host)
    assert seen == [state == "LOW_VRAM"] * 2


def test_hosts_without_online_patches(world):
    """Forge Classic (ldm_patched): stored weights are masked, cast or not."""
    host = world(UNet(dtype=torch.float16, manual_cast=True), online=False)
    off = run(host, None)[0]
    image, _, passes = run(host)
    assert_same(passes[1], masked([linear.weight for linear in layers_of(unet_of(host))]))
    assert not torch.equal(image, off)
    layers_of(unet_of(host))[0].weight_function = [lambda weight: weight]
    image, job, _ = run(host)
    assert torch.equal(image, off)
    assert job.acted() == []


def test_the_panel_is_told_of_the_model_to_come(world, tmp_path):
    """Forge loads at the first generation what was chosen in the page."""
    host = world()
    assert host.adapter.loaded_model().checkpoint == "base"
    path = tmp_path / "chosen.safetensors"
    write_header(path, {f"model.diffusion_model.{n}": s for n, s in sd15_ldm_shapes().items()})
    info = types.SimpleNamespace(filename=str(path), shorthash="0123456789")
    host.data.forge_loading_parameters = {"checkpoint_info": info}
    facts = host.adapter.loaded_model()
    assert (facts.family.name, facts.checkpoint, facts.hash) == ("sd15", "chosen", "0123456789")
    path.write_bytes(b"not a checkpoint")
    assert host.adapter.loaded_model().family.name == "unknown"
    info.filename = str(tmp_path / "gone.safetensors")
    assert host.adapter.loaded_model() is None
    host.data.sd_model = types.SimpleNamespace()  # modules/sd_models.py, FakeInitialModel
    host.data.forge_loading_parameters = {}
    assert host.adapter.loaded_model() is None


def write_header(path, shapes):
    entries = {n: {"dtype": "F16", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_the_fakes_layers_are_no_torch_linear():
    assert not isinstance(Linear(torch.ones(2, 2)), torch.nn.Linear)
