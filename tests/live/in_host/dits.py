"""SD3 and FLUX in small, of a host's own classes, through its own sampling: run by its interpreter.

    dits.py WEBUI EXTENSION

Everything under ``backend`` is the host's: the networks, their layers, the patcher, KModel, the
predictors, the batches of conds. Of ``modules`` only what the adapter asks for is there, empty.
Prints a line of JSON for each model and storage type; ends with an error at the first thing wrong.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
import os
import sys
import types
from pathlib import Path

WEBUI, EXTENSION = (Path(argument).resolve() for argument in sys.argv[1:3])
NEO = not (WEBUI / "packages_3rdparty").is_dir()
sys.argv = [sys.argv[0], "--cpu" if NEO else "--always-cpu"]
os.chdir(WEBUI)
for folder in ("modules_forge/packages", "repositories/huggingface_guess", "packages_3rdparty", ""):
    sys.path.insert(0, str(WEBUI / folder))

import backend.args  # noqa: E402, F401 - reads sys.argv
import torch  # noqa: E402
from backend.modules import k_prediction  # noqa: E402
from backend.nn.flux import IntegratedFluxTransformer2DModel  # noqa: E402
from backend.operations import using_forge_operations  # noqa: E402
from backend.patcher.unet import UnetPatcher  # noqa: E402
from backend.sampling import condition, sampling_function  # noqa: E402

CALLBACKS: list = []
for name, contents in {
    "modules": {"__path__": []},
    "modules.script_callbacks": {"on_cfg_denoiser": CALLBACKS.append},
    "modules.sd_models": {"model_data": None},
}.items():
    stub = types.ModuleType(name)
    stub.__spec__ = importlib.util.spec_from_loader(name, None)
    vars(stub).update(contents)
    sys.modules[name] = stub

sys.path.append(str(EXTENSION))  # after the host

from crdiff_ext import dit_shapes  # noqa: E402
from crdiff_ext.settings import Settings  # noqa: E402
from crdiff_ext.webui.forge import ForgeAdapter  # noqa: E402
from crdiff_ext.webui.job import Job  # noqa: E402

ADAPTER = ForgeAdapter()
ADAPTER.install()
TEXT, POOLED, RATIO = 48, 32, 0.3
CPU = torch.device("cpu")


def flux(guided: bool):
    known = {
        **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": POOLED},
        **{"context_in_dim": TEXT, "hidden_size": 64, "mlp_ratio": 4.0, "num_heads": 2, "depth": 2},
        **{"depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True},
        "guidance_embed": guided,
    }
    wanted = inspect.signature(IntegratedFluxTransformer2DModel).parameters
    return IntegratedFluxTransformer2DModel(**{k: v for k, v in known.items() if k in wanted})


def sd3(dual: bool):
    from backend.nn.mmditx import MMDiTX

    return MMDiTX(
        input_size=None, patch_size=2, in_channels=16, depth=2, adm_in_channels=POOLED,
        context_embedder_config={
            "target": "torch.nn.Linear", "params": {"in_features": TEXT, "out_features": 128}
        },
        num_patches=256, pos_embed_max_size=16, qk_norm="rms" if dual else None,
        x_block_self_attn_layers=[0] if dual else [],
    )  # fmt: skip


def predictor(is_flux: bool):
    if NEO:
        return k_prediction.PredictionFlux(types.SimpleNamespace(sampling_settings={}))
    if is_flux:
        return k_prediction.PredictionFlux(mu=1.0)
    return k_prediction.PredictionDiscreteFlow(shift=3.0)


def loaded(make, is_flux: bool, dtype: torch.dtype, family: str):
    """What ``p.sd_model`` is in the host, as far as the adapter and the sampling go."""
    cast = dtype != torch.float32
    with using_forge_operations(device=CPU, dtype=dtype, manual_cast_enabled=cast):
        network = make().to(device=CPU, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in make().state_dict().items():  # Forge's layers are empty until loaded
        fan = math.prod(tensor.shape[1:])
        drawn = torch.randn(tensor.shape, generator=generator)
        state[name] = (drawn * fan**-0.5 if tensor.ndim > 1 else 1 + drawn / 10).to(dtype)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert {name.rpartition(".")[2] for name in missing} <= {"dummy"}, missing
    assert unexpected == []
    network.eval()
    network.requires_grad_(False)
    network.storage_dtype, network.computation_dtype = dtype, torch.float32
    network.load_device = network.initial_device = network.offload_device = CPU
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    dit_shapes.KNOWN[dit_shapes.fingerprint(shapes)] = family
    config = types.SimpleNamespace(memory_usage_factor=1.0)
    unet = UnetPatcher.from_model(
        model=network, diffusers_scheduler=None, config=config, k_predictor=predictor(is_flux)
    )
    info = types.SimpleNamespace(filename=f"{family}.safetensors", name_for_extra=family)
    objects = types.SimpleNamespace(unet=unet)
    engine = Engine()
    engine.forge_objects, engine.sd_checkpoint_info = objects, info
    return engine, network


class Engine:
    """The host's model with all its parts (backend/diffusion_engine/base.py)."""


class Processing:
    """The host's processing object."""

    refiner_checkpoint_info = None


class Counted:
    """The forwards of a network."""

    def __init__(self, network) -> None:
        self.calls = 0
        network.register_forward_pre_hook(self)

    def __call__(self, *_) -> None:
        self.calls += 1


def conds(guided: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    made = {
        "crossattn": torch.randn(1, 5, TEXT, generator=generator),
        "vector": torch.randn(1, POOLED, generator=generator),
    }
    if guided:
        made["guidance"] = torch.tensor([3.5])
    return condition.compile_conditions(made)


@torch.inference_mode()
def sample(sd_model, x, guided, job=None, cfg=True, steps=2):
    """A few steps of Euler; x0 of cond and uncond at each, as the host's sampling gives them."""
    fresh = sd_model.forge_objects.unet  # modules/processing.py puts it back before each sampling
    p = Processing()
    p.sd_model, p.crdiff_job = sd_model, job
    p.height, p.width = x.shape[-2] * 8, x.shape[-1] * 8
    ADAPTER.before_sampling(p)
    outputs = []
    for step in range(steps):
        sigma = torch.full((len(x),), 1.0 - step / steps)
        denoiser = types.SimpleNamespace(p=p, step=step, total_steps=steps)
        for callback in CALLBACKS:
            callback(types.SimpleNamespace(x=x, sigma=sigma, denoiser=denoiser))
        unet = sd_model.forge_objects.unet
        cond, uncond = conds(guided, 1), conds(guided, 2) if cfg else None
        made = sampling_function.calc_cond_uncond_batch(
            unet.model, cond, uncond, x, sigma, unet.model_options
        )
        outputs += [output.clone() for output in (made if cfg else made[:1])]
        x0 = made[1] + 4.0 * (made[0] - made[1]) if cfg else made[0]
        x = x + (x - x0) / sigma.view(-1, 1, 1, 1) * -(1 / steps)
    sd_model.forge_objects.unet = fresh
    if job is not None:
        job.free()
    return outputs


def pruned_state(network, factor=0.0):
    """Brute force: of each layer by itself, of SD3.5's fused one each third, the smallest 30 %."""
    state = {}
    ends = (".x_block.mlp.fc1.weight", ".x_block.mlp.fc2.weight", ".attn2.qkv.weight",
            ".attn2.proj.weight", ".img_mlp.0.weight", ".img_mlp.2.weight")  # fmt: skip
    for name, tensor in network.state_dict().items():
        if name.endswith(ends):
            parts = []
            for part in tensor.float().chunk(3 if ".qkv." in name else 1):
                limit = part.abs().flatten().kthvalue(int(part.numel() * RATIO)).values
                parts.append(torch.where(part.abs() <= limit, part * factor, part))
            state[name] = torch.cat(parts).to(tensor.dtype)
    return state


def settings(**more):
    return Settings(**{"mode": "always", "ratios": f"{RATIO}", **more})


def same(these, those) -> bool:
    return len(these) == len(those) and all(map(torch.equal, these, those))


def check(family: str, make, guided: bool, dtype: torch.dtype) -> dict:
    is_flux = family.startswith("flux")
    sd_model, network = loaded(make, is_flux, dtype, family)
    counted = Counted(network)
    said: list[str] = []
    x = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(3))
    stored = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = {name: id(network.get_parameter(name)) for name in pruned_state(network)}

    def draw(cfg=True, steps=2, at=x, **wanted):
        counted.calls = 0
        job = Job(settings(**wanted), [], say=said.append) if wanted or cfg is None else None
        return sample(sd_model, at, guided, job, bool(cfg), steps), counted.calls, job

    def on(cfg=True, steps=2, at=x, **wanted):
        return draw(cfg, steps, at, **{"k": 1.5, **wanted})

    def write(state) -> None:
        with torch.inference_mode():
            for name in weights:
                network.get_parameter(name).data.copy_(state[name])

    off, dense_calls, _ = draw()
    acted, calls, job = on()
    assert calls == 2 * dense_calls, (calls, dense_calls)
    record = job.records[0]
    assert (record.height, record.width) == (64, 48)
    assert record.decision.sentence.endswith("64x48: ratio 0.3 (set by hand)")
    assert not same(acted, off)
    assert same(draw()[0], off)
    assert same(on(ratios="0")[0], off)
    assert same(on(memory="copy")[0], acted)
    assert same(on(memory="recompute")[0], acted)

    # One step: x0 is the mix of a dense and an independently pruned network's, to the bit.
    dense, one = draw(cfg=False, steps=1)[0], on(cfg=False, steps=1)[0]
    write(pruned_state(network))
    pruned = draw(cfg=False, steps=1)[0]
    write(stored)
    assert same(one, [torch.lerp(dense[0], pruned[0], 1.5)])
    # x0 = x - sigma F: the same as the mix of the raw outputs.
    raw = torch.lerp(x - dense[0], x - pruned[0], 1.5)
    predicted = sd_model.forge_objects.unet.model.predictor.calculate_denoised(
        torch.ones(1), raw, x
    )
    assert torch.allclose(predicted, one[0], atol=1e-4 * float(one[0].abs().max()))

    folded, folded_calls, _ = on(cfg=False, steps=1, amplification="folded")
    if dtype == torch.float32:  # fp8 rounds what is multiplied; the cast layers multiply after it
        write(pruned_state(network, -0.5))
        assert same(folded, draw(cfg=False, steps=1)[0])
        write(stored)
    assert folded_calls == 1
    reused, reused_calls, _ = on(amplification="reuse-2")
    assert reused_calls == 2 * dense_calls - dense_calls // 2, reused_calls
    assert not same(reused, off)

    odd = torch.randn(2, 16, 8, 7 if is_flux else 10)  # FLUX pads to whole patches
    job = on(at=odd)[2]
    assert (job.records[0].height, job.records[0].width) == (64, odd.shape[-1] * 8)
    unequal, calls, _ = on(ratios="0.3/0.2/0.3")
    assert same(unequal, off)
    assert calls == dense_calls
    assert len(said) == 1
    assert "has one ratio for all layers" in said[0]
    assert same(draw()[0], off)
    assert {name: id(network.get_parameter(name)) for name in weights} == weights
    for name, tensor in network.state_dict().items():
        kept = tensor.to(stored[name].dtype)  # Forge's FLUX casts the scales of its norms for good
        assert torch.equal(kept.view(torch.uint8), stored[name].view(torch.uint8)), name
    left = [name for name, m in network.named_modules() if any("crdiff" in key for key in vars(m))]
    assert left == []
    plan = record.actor.plan()
    return {"pools": len(plan.thresholds), "forwards": [dense_calls, 2 * dense_calls]}


def check_unknown(make, guided: bool) -> None:
    """One of which no released model has the structure is drawn densely, with a line."""
    sd_model, _ = loaded(make, True, torch.float32, "flux-dev")
    dit_shapes.KNOWN.clear()
    said: list[str] = []
    x = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(3))
    off = sample(sd_model, x, guided)
    assert same(sample(sd_model, x, guided, Job(settings(), [], say=said.append)), off)
    assert len(said) == 1
    assert "transformer of another structure" in said[0]


MODELS = {
    "flux-dev": (lambda: flux(True), True),
    "flux-schnell": (lambda: flux(False), False),
    **({} if NEO else {"sd3": (lambda: sd3(False), False)}),
    **({} if NEO else {"sd35-medium": (lambda: sd3(True), False)}),
}
torch.set_num_threads(1)
for family, (make, guided) in MODELS.items():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        found = check(family, make, guided, dtype)
        print(json.dumps({"family": family, "storage": str(dtype), **found}), flush=True)
check_unknown(*MODELS["flux-dev"])
