"""What is measured: a UNet with inputs of a size; for a whole pipeline also its images.

Random UNets have the released models' shapes (``harness/configs``) and normal weights of standard
deviation 1 / sqrt(fan-in): their time and memory are the real ones', what they predict is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import identify_module
from crdiff_ext.pruning import PrunePlan, make_plan
from crdiff_ext.settings import Ratios
from harness.config import Size
from harness.locate import read_json
from harness.pipelines import DTYPES, LoadedPipeline, load_pipeline

SHAPES = {"sd15-shape": ("sd15", 2, "fp32"), "sdxl-shape": ("sdxl", 1, "bf16")}
"""Random UNets: their configuration, the batch of a call, the dtype on a CPU."""
UNSEEN = Size(512, 512)
BLOCK = 2**22
PATCH = 8  # pixels a latent


@dataclass
class Subject:
    """A UNet on its device, and what it is called with.

    Attributes:
        native: the size it was trained for; None when not known.
        batch: of a UNet call; 2 is one image with classifier-free guidance.
        loaded: the pipeline that the UNet belongs to; None for a random UNet.
    """

    name: str
    unet: torch.nn.Module
    size: Size
    native: Size | None
    batch: int
    device: str
    loaded: LoadedPipeline | None = None
    plan: PrunePlan | None = None
    _inputs: dict[Size, dict[str, Any]] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet's weights."""
        return next(self.unet.parameters()).dtype

    @property
    def unet_bytes(self) -> int:
        """All of the UNet's weights, in bytes."""
        return sum(weight.numel() * weight.element_size() for weight in self.unet.parameters())

    def make_plan(self, ratios: Ratios) -> PrunePlan:
        """The plan that all modes use, from now on also ``plan``."""
        self.plan = make_plan(prunable_parameters(self.unet), ratios)
        return self.plan

    @torch.inference_mode()
    def call(self, size: Size, timestep: int) -> torch.Tensor:
        """One UNet call. Returns the prediction [batch, 4, height / 8, width / 8]."""
        if size not in self._inputs:
            self._inputs[size] = unet_inputs(self.unet, size, self.batch, self.device)
        time = torch.tensor(timestep, device=self.device)
        return self.unet(timestep=time, return_dict=False, **self._inputs[size])[0]


def open_subject(
    model: str, size: str | None, batch: int | None, device: str, dtype: str
) -> Subject:
    """Load or make ``model`` ("embedded", one of SHAPES, or what ``locate`` takes).

    ``size`` None is the embedded model's first small one, 512x512 otherwise. Raises CRDiffError.
    """
    wanted = Size.parse(size) if size else None
    if model in SHAPES:
        subject = _random(model, wanted or UNSEEN, batch, device, dtype)
    else:
        from harness.embedded.weights import embedded_model_dir

        path = str(embedded_model_dir()) if model == "embedded" else model
        kind = _dtype_name(dtype, device, "fp32")
        loaded = load_pipeline(path, kind, device)
        native = loaded.family.native
        default = Size(64, 64) if model == "embedded" else UNSEEN
        subject = Subject(
            "embedded" if model == "embedded" else loaded.model_id,
            loaded.unet("crdiff bench"),
            wanted or default,
            Size(*native) if native else None,
            batch or 2,
            device,
            loaded,
        )
    family = identify_module(subject.unet)
    subject.size.check_step(family.step, family.label)
    return subject


def _dtype_name(dtype: str, device: str, on_cpu: str) -> str:
    if dtype != "auto":
        return dtype
    return on_cpu if device == "cpu" else "fp16"


def _random(model: str, size: Size, batch: int | None, device: str, dtype: str) -> Subject:
    from harness.pipelines import check_device

    check_device(device)
    config, own_batch, own_dtype = SHAPES[model]
    unet = random_unet(
        read_json(Path(__file__).parents[1] / "configs" / f"{config}.json")["unet"],
        DTYPES[_dtype_name(dtype, device, own_dtype)],
        device,
    )
    native = identify_module(unet).native
    assert native is not None, "the released models' native sizes are known"
    return Subject(model, unet, size, Size(*native), batch or own_batch, device)


def random_unet(config: dict[str, Any], dtype: torch.dtype, device: str) -> torch.nn.Module:
    """A diffusers UNet with random weights, made without ever holding them in fp32.

    Matrices and kernels are cut from one block of normal numbers (repeated where it ends) and
    scaled, which takes seconds where drawing 2.6 billion numbers takes minutes; norms are 1 and
    biases 0.
    """
    import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(config)
    unet = torch.nn.Module.to(unet, dtype)  # diffusers' own warns of what doesn't matter here
    unet = unet.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator("cpu").manual_seed(0)
    block = torch.randn(BLOCK, generator=generator).to(device)
    for name, weight in unet.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        fan_in = weight[0].numel()
        piece = (block[: weight.numel()] / fan_in**0.5).to(dtype)
        for part in torch.split(weight.detach().view(-1), BLOCK):
            part.copy_(piece[: part.numel()])
    return unet


def unet_inputs(unet: Any, size: Size, batch: int, device: str) -> dict[str, Any]:
    """Random latents and text for a UNet call, seeded; SDXL's pooled text and sizes too."""
    config, dtype = unet.config, next(unet.parameters()).dtype
    generator = torch.Generator("cpu").manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    inputs: dict[str, Any] = {
        "sample": normal(batch, config.in_channels, size.height // PATCH, size.width // PATCH),
        "encoder_hidden_states": normal(batch, 77, _width(config.cross_attention_dim)),
    }
    if config.addition_embed_type == "text_time":
        times = 6
        width = config.projection_class_embeddings_input_dim
        pooled = width - times * config.addition_time_embed_dim
        sizes = torch.tensor([[*size, 0, 0, *size]] * batch, device=device, dtype=dtype)
        inputs["added_cond_kwargs"] = {"text_embeds": normal(batch, pooled), "time_ids": sizes}
    elif config.addition_embed_type is not None:
        raise CRDiffError(
            f"the UNet wants {config.addition_embed_type} besides text, which is not known here: "
            "measure an SD1.5, SD2 or SDXL model"
        )
    return inputs


def _width(cross_attention_dim: int | Sequence[int]) -> int:
    if isinstance(cross_attention_dim, int):
        return cross_attention_dim
    return cross_attention_dim[0]


class Images:
    """Draws the same image again and again with a subject's pipeline."""

    def __init__(self, subject: Subject) -> None:
        from harness.config import AUTHORS_GUIDANCE, AUTHORS_STEPS
        from harness.generate import Painter
        from harness.plan import Sampling

        assert subject.loaded is not None
        own, scheduler = subject.loaded.defaults, subject.loaded.pipe.scheduler
        self.sampling = Sampling(
            model_hash="",
            steps=int(own.get("steps", AUTHORS_STEPS)),
            guidance=float(own.get("guidance", AUTHORS_GUIDANCE)),
            negative="",
            scheduler=type(scheduler).__name__,
            scheduler_sha256="",
            dtype=str(subject.dtype).removeprefix("torch."),
            device=subject.device,
            seed=0,
            batch=1,
        )
        self._size = subject.size
        self._painter = Painter(subject.loaded.pipe, self.sampling)

    def draw(self, size: Size) -> None:
        """One image of ``size``, scaled to the subject's if that is another one."""
        from harness.generate import resized
        from harness.methods import DENSE
        from harness.plan import Batch, Item
        from harness.prompts import Prompt

        prompt = Prompt("bench", "a red circle above a blue square")
        images, _ = self._painter.draw(Batch(size, DENSE, (Item(0, prompt, 0, {}),)))
        if size != self._size:
            resized(images[0], self._size.height, self._size.width)
