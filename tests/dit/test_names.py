"""The released transformers' true structure, without their weights, and diffusers' own renaming."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.dit_names import parse_dit, parts_of
from crdiff_ext.families import identify, identify_module
from tests.core.dits import (
    FLUX,
    SD3,
    SD35_LARGE,
    SD35_MEDIUM,
    flux_original,
    sd3_original,
)

SD3_CONFIG = {
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}
MEDIUM_CONFIG = SD3_CONFIG | {
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
    "pos_embed_max_size": 384,
}
LARGE_CONFIG = {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
RELEASED = [
    # class, configuration, family, pruned layers, their weights and all weights in millions
    ("SD3Transformer2DModel", SD3_CONFIG, "sd3", 48, 453.0, 2028.3),
    ("SD3Transformer2DModel", MEDIUM_CONFIG, "sd35-medium", 100, 575.7, 2243.2),
    ("SD3Transformer2DModel", LARGE_CONFIG, "sd35-large", 76, 1798.0, 8056.6),
    ("FluxTransformer2DModel", {"guidance_embeds": True}, "flux-dev", 38, 1434.5, 11901.4),
    ("FluxTransformer2DModel", {}, "flux-schnell", 38, 1434.5, 11891.2),
]


@pytest.mark.parametrize(("cls", "config", "family", "layers", "pruned", "total"), RELEASED)
def test_true_structures(
    cls: str, config: dict[str, Any], family: str, layers: int, pruned: float, total: float
) -> None:
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, cls)(**config)
    weights = prunable_parameters(model)
    assert len(weights) == len({weight.pool for weight in weights}) == layers
    assert sum(w.tensor.numel() for w in weights) / 1e6 == pytest.approx(pruned, abs=0.05)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(total, abs=0.05)
    assert identify_module(model).name == family
    state = {f"transformer.{name}": tuple(t.shape) for name, t in model.state_dict().items()}
    assert identify(state).name == family


class Rest(dict[str, torch.Tensor]):
    """A checkpoint whose other weights are all there, and of no interest."""

    def pop(self, key: str, *default: Any) -> torch.Tensor:
        return super().pop(key) if key in self else torch.empty(7 * 3072, 1, device="meta")


@pytest.mark.parametrize(
    ("shapes", "converter"),
    [
        (dict(sd3_original(**SD3)), "convert_sd3_transformer_checkpoint_to_diffusers"),
        (dict(sd3_original(**SD35_MEDIUM)), "convert_sd3_transformer_checkpoint_to_diffusers"),
        (dict(sd3_original(**SD35_LARGE)), "convert_sd3_transformer_checkpoint_to_diffusers"),
        (dict(flux_original(**FLUX)), "convert_flux_transformer_checkpoint_to_diffusers"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_diffusers_own_converter_renames_the_same(
    shapes: dict[str, tuple[int, ...]], converter: str, prefix: str
) -> None:
    from diffusers.loaders import single_file_utils

    original = {n: torch.empty(shape, device="meta") for n, shape in shapes.items()}
    for name in original:
        if name.endswith("attn2.qkv.weight"):  # rows that can be told apart, without their memory
            rows, columns = shapes[name]
            original[name] = torch.arange(rows).unsqueeze(1).expand(rows, columns)
    checkpoint = Rest({prefix + name: tensor for name, tensor in original.items()})
    converted = getattr(single_file_utils, converter)(checkpoint)
    selected = {name: parsed[1] for name in original if (parsed := parse_dit(name))}
    dual = sum(name.endswith("attn2.qkv.weight") for name in shapes)
    assert len(selected) == 2 * dual + 2 * sum(".context_block.attn.proj" in n for n in shapes) + (
        2 if "sd3" in converter else 2 * FLUX["double"]
    )
    for name, canonical in selected.items():
        parts = parts_of(canonical)
        if len(parts) == 1:
            assert converted[f"{canonical}.weight"] is original[name]
            continue
        for part, rows in zip(parts, original[name].chunk(len(parts)), strict=True):
            assert torch.equal(converted[f"{part}.weight"], rows)
