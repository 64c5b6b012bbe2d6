"""Test-only extension: looks into a running host, and makes it fail on purpose.

It knows nothing of CR-Diff's code. A forward of the UNet counts as pruned when its *watched* layer
(self-attention in the middle block) worked with another weight than its own, the one that it held
when the denoiser was called: the weight holds zeros by then; or it is another tensor with other
values, which is how a folded one shows, that has no zeros; or, in hosts that cast weights on the
fly and may change them only then, the output is not what the layer's own weight gives. (In others
a LoRA beside the weights would look the same.) A host's own merge of a LoRA writes into the tensor
that the layer has.

Routes: GET /crdiff-probe/{about,weights,state}; POST /crdiff-probe/{reset,counts,inject,capture,
replay,control,engine}.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import importlib.util
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fastapi import Body, FastAPI
from modules import script_callbacks, sd_models, sd_samplers_common, shared
from safetensors.torch import load_file, save_file

MID_LAYERS = (
    "middle_block.1.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "joint_blocks.12.x_block.mlp.fc1",  # SD3
    "double_blocks.9.img_mlp.0",  # FLUX
)
# Forge's backend/operations.py, and reForge's ldm_patched/modules/ops.py
ON_THE_FLY = any(map(importlib.util.find_spec, ("backend", "ldm_patched")))
# SD.Next: CR-Diff's passes are both inside of one call of the UNet as a module.
PIPELINES = importlib.util.find_spec("modules.processing_diffusers") is not None
ZEROS = 0.04  # share of zeros in a weight from which on it counts as pruned
OFF_BY = 0.02  # relative difference of an output from which on the weight was another one


class Probe:
    """Everything that the routes read and write."""

    def __init__(self) -> None:
        self.hooks: list[Any] = []
        self.unet: Any = None
        self.watched: Any = None
        self.own: Any = None  # the watched layer's weight between two calls of the UNet
        self.reset()

    def reset(self) -> None:
        self.dense = 0
        self.pruned = 0
        self.fault: tuple[str, int] | None = None
        self.folder: Path | None = None
        self.captured: dict[str, torch.Tensor] = {}
        self.masks: dict[str, torch.Tensor] = {}
        self.is_pruned = False
        self.call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def attach(self) -> None:
        """Watch the UNet of the model that is loaded now, and no other."""
        unet = loaded_unet()
        if unet is None:
            return
        if unet is self.unet:
            self.own = self.watched.weight
            return
        self.detach()
        self.unet = unet
        modules = dict(unet.named_modules())
        watched = next(name for name in MID_LAYERS if name in modules)
        self.watched = modules[watched]
        self.own = self.watched.weight
        self.hooks = [
            unet.register_forward_pre_hook(self.begin, with_kwargs=True),
            modules[watched].register_forward_hook(self.watch),
            unet.register_forward_hook(self.end),
        ]
        for name, module in modules.items():
            if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0", ".proj", ".net.2")):
                hook = module.register_forward_hook(lambda m, i, o, name=name: self.mask(name, m))
                self.hooks.append(hook)

    def detach(self) -> None:
        """Watch nothing any more; a reload of the page makes another probe."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.unet = [], None

    def begin(self, module: Any, args: Any, kwargs: Any) -> None:
        self.is_pruned = False
        if PIPELINES:
            self.own = self.watched.weight  # LoRAs are in by now
        if self.folder is not None and self.call is None:
            self.call = copied(args), copied(kwargs)

    def watch(self, module: Any, inputs: Any, output: Any) -> None:
        self.is_pruned = holds_zeros(module.weight) or is_another(module.weight, self.own)
        if ON_THE_FLY and not self.is_pruned:
            self.is_pruned = differs(module, inputs[0], output)
        if PIPELINES:
            self.count()
        if self.is_pruned and self.fault is not None:
            kind, left = self.fault
            self.fault = (kind, left - 1) if left > 1 else None
            if self.fault is None:
                raise_fault(kind)

    def mask(self, name: str, module: Any) -> None:
        """Where a layer's weight is zero, once, in the first pruned pass of a capture."""
        if self.folder is not None and "pruned" not in self.captured:
            self.masks[name] = (module.weight.detach().float() == 0).cpu().clone()

    def count(self) -> None:
        if self.is_pruned:
            self.pruned += 1
        else:
            self.dense += 1

    def end(self, module: Any, inputs: Any, output: Any) -> None:
        if PIPELINES:
            return
        self.count()
        kind = "pruned" if self.is_pruned else "dense"
        if self.folder is not None and kind not in self.captured:
            self.captured[kind] = output.detach().float().cpu().clone()
            if kind == "dense":
                self.masks.clear()


PROBE = Probe()


def loaded_model() -> Any:
    """What the host has in memory; None when there is nothing."""
    if PIPELINES:
        from modules.modeldata import model_data

        return model_data.sd_model
    return sd_models.model_data.sd_model


def host_version() -> dict[str, Any]:
    """The host's own account of itself."""
    if PIPELINES:
        import installer

        return {"version": installer.version["updated"], "commit": installer.version["commit"]}
    from modules import launch_utils

    return {
        "version": launch_utils.git_tag(),
        "commit": getattr(launch_utils, "commit_hash", lambda: "unknown")(),  # gone in Neo
    }


def loaded_unet() -> Any:
    """The UNet of the loaded model; None when there is none."""
    model = loaded_model()
    if PIPELINES:
        return getattr(model, "unet", None)
    objects = getattr(model, "forge_objects", None)
    if objects is not None:  # Forge: backend/diffusion_engine/base.py
        return objects.unet.model.diffusion_model
    return getattr(getattr(model, "model", None), "diffusion_model", None)


def holds_zeros(weight: torch.Tensor) -> bool:
    """Whether a weight matrix was pruned."""
    return bool((weight.detach().float() == 0).float().mean() > ZEROS)


def is_another(weight: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether a layer's weight was exchanged for one with other values."""
    if weight is own:
        return False
    return not torch.equal(weight.detach().float().cpu(), own.detach().float().cpu())


def differs(module: Any, x: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether a linear layer's output is not the one of its own weight."""
    if not module.weight.is_floating_point():
        return False
    weight = module.weight.detach().float().to(x.device)
    bias = None if module.bias is None else module.bias.detach().float().to(x.device)
    expected = torch.nn.functional.linear(x.float(), weight, bias)
    return bool((output.float() - expected).norm() > OFF_BY * expected.norm())


def raise_fault(kind: str) -> None:
    if kind == "interrupt":
        raise sd_samplers_common.InterruptedException
    if kind == "button":  # what the page's Interrupt does: the host notices at its next step
        shared.state.interrupt()
        return
    raise RuntimeError("crdiff-probe: an exception, as asked for")


def controlled(forward: Any, strength: float) -> Any:
    """A UNet's forward plus a fixed pattern, and how often it was called."""
    calls: list[int] = []

    def patched(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        output = forward(x, *args, **kwargs)
        ramp = torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype, device=output.device)
        return output + strength * ramp

    patched.calls = calls  # type: ignore[attr-defined]
    return patched


class Engine:
    """Stands for the UNet with weights that nobody sees (modules/sd_unet.py, SdUnet)."""

    option = SimpleNamespace(label="probe engine")

    def __init__(self, unet: Any) -> None:
        self.unet = copy.deepcopy(unet)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        from modules import sd_unet

        sd_unet.current_unet = None  # the class's forward would come back here
        try:
            return self.unet(*args, **kwargs)
        finally:
            sd_unet.current_unet = self

    def deactivate(self) -> None:
        """Called by the host when it takes another one."""


def copied(value: Any) -> Any:
    """Tensors copied, containers too, all else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(item) for item in value)
    return value


def checksum(tensor: torch.Tensor) -> str:
    data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()[:16]


def routes(_: Any, app: FastAPI) -> None:
    @app.get("/crdiff-probe/about")
    def about() -> dict[str, Any]:
        names = ("torch", "gradio", "transformers", "numpy")
        return {
            **host_version(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in names},
        }

    @app.get("/crdiff-probe/weights")
    def weights() -> dict[str, str]:
        unet = loaded_unet()
        sums = {name: checksum(tensor) for name, tensor in unet.state_dict().items()}
        for name, module in unet.named_modules():
            hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
            marks = sorted(key for key in vars(module) if "crdiff" in key)
            sums[f"{name}: hooks and marks"] = f"{hooks} {marks}"
        sums["apply_model is the class's own"] = str("apply_model" not in vars(loaded_model()))
        sums["forward is the class's own"] = str("forward" not in vars(unet))
        return sums

    @app.get("/crdiff-probe/state")
    def state() -> dict[str, Any]:
        model = loaded_model()
        file = Path(model.sd_checkpoint_info.filename)
        return {
            "checkpoint": model.sd_checkpoint_info.title if PIPELINES else file.name,
            "dtype": str(next(loaded_unet().parameters()).dtype),
            "lowvram": bool(getattr(model, "lowvram", False)),
        }

    @app.post("/crdiff-probe/reset")
    def reset() -> dict[str, Any]:
        PROBE.reset()
        return {}

    @app.post("/crdiff-probe/counts")
    def counts() -> dict[str, int]:
        found = {"dense": PROBE.dense, "pruned": PROBE.pruned}
        PROBE.dense = PROBE.pruned = 0
        return found

    @app.post("/crdiff-probe/inject")
    def inject(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008 - fastapi's way
        PROBE.fault = (body["kind"], int(body["at"]))
        return {}

    @app.post("/crdiff-probe/control")
    def control(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Patch the UNet's forward on the instance, as ControlNet's extension for A1111 does.

        ``strength`` of what is added to its output; 0 takes the patch away. Gives the calls so far.
        """
        unet = loaded_unet()
        before = getattr(unet.__dict__.get("forward"), "calls", [])
        unet.__dict__.pop("forward", None)
        if body["strength"]:
            unet.__dict__["forward"] = controlled(unet.forward, body["strength"])
        return {"calls": len(before)}

    @app.post("/crdiff-probe/engine")
    def engine(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Pretend that a TensorRT engine replaces the UNet (modules/sd_unet.py); A1111 only."""
        from modules import sd_unet

        sd_unet.current_unet = Engine(loaded_unet()) if body["on"] else None
        return {}

    @app.post("/crdiff-probe/capture")
    def capture(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Keep the next call of the UNet: its arguments, both outputs, the masks."""
        PROBE.reset()
        PROBE.folder = Path(body["folder"])
        return {}

    @app.post("/crdiff-probe/replay")
    def replay(body: dict[str, Any] = Body(...)) -> dict[str, Any]:  # noqa: B008
        """Write what was captured, then run the captured call with the weights of a file.

        ``weights`` names a safetensors file of UNet tensors; the model's own are put back.
        """
        assert PROBE.call is not None
        assert PROBE.folder is not None
        folder, call = PROBE.folder, PROBE.call
        save_file({k: v.to(torch.uint8) for k, v in PROBE.masks.items()}, folder / "masks.st")
        save_file(PROBE.captured, folder / "outputs.st")
        captured = PROBE.captured["pruned"]
        PROBE.reset()
        unet = loaded_unet()
        kept = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
        args, kwargs = call
        with torch.inference_mode():  # Forge loads weights as inference tensors
            unet.load_state_dict(load_file(body["weights"]), strict=False)
            try:
                output = unet(*args, **kwargs).float().cpu()
            finally:
                unet.load_state_dict(kept)
        PROBE.reset()
        return {"difference": float((output - captured).abs().max() / captured.abs().max())}


script_callbacks.on_app_started(routes)
script_callbacks.on_script_unloaded(PROBE.detach)
if PIPELINES:
    script_callbacks.on_before_process(lambda _: PROBE.attach())
else:  # before each call of the UNet, after a refiner switch too
    script_callbacks.on_cfg_denoiser(lambda _: PROBE.attach())
