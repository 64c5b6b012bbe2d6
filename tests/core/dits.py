"""Names and shapes of the released transformers, in both namings, and small ones of the kind."""

from __future__ import annotations

import torch

SD3 = {"width": 1536, "double": 24, "pooled": 2048, "context": 4096}
SD35_MEDIUM = SD3 | {"normed": True, "dual": 13}
SD35_LARGE = {"width": 2432, "double": 38, "pooled": 2048, "context": 4096, "normed": True}
FLUX = {"width": 3072, "double": 19, "single": 38, "pooled": 768, "context": 4096}


def sd3_original(width, double, pooled, context, normed=False, dual=0):
    """Stability's names (mmdit.py)."""
    yield "x_embedder.proj.weight", (width, 16, 2, 2)
    yield "context_embedder.weight", (width, context)
    yield "y_embedder.mlp.0.weight", (width, pooled)
    for block in range(double):
        for stream in ("x_block", "context_block"):
            base = f"joint_blocks.{block}.{stream}"
            yield f"{base}.attn.qkv.weight", (3 * width, width)
            if normed:
                yield f"{base}.attn.ln_q.weight", (64,)
            if stream == "context_block" and block == double - 1:
                continue
            yield f"{base}.attn.proj.weight", (width, width)
            yield f"{base}.mlp.fc1.weight", (4 * width, width)
            yield f"{base}.mlp.fc1.bias", (4 * width,)
            yield f"{base}.mlp.fc2.weight", (width, 4 * width)
        if block < dual:
            yield f"joint_blocks.{block}.x_block.attn2.qkv.weight", (3 * width, width)
            yield f"joint_blocks.{block}.x_block.attn2.proj.weight", (width, width)


def flux_original(width, double, single, pooled, context, guided=True):
    """Black Forest Labs' names (flux/model.py)."""
    yield "img_in.weight", (width, 64)
    yield "txt_in.weight", (width, context)
    yield "vector_in.in_layer.weight", (width, pooled)
    if guided:
        yield "guidance_in.in_layer.weight", (width, 256)
    for block in range(double):
        for stream in ("img", "txt"):
            base = f"double_blocks.{block}.{stream}"
            yield f"{base}_attn.qkv.weight", (3 * width, width)
            yield f"{base}_attn.norm.query_norm.scale", (128,)
            yield f"{base}_attn.proj.weight", (width, width)
            yield f"{base}_mlp.0.weight", (4 * width, width)
            yield f"{base}_mlp.0.bias", (4 * width,)
            yield f"{base}_mlp.2.weight", (width, 4 * width)
    for block in range(single):
        yield f"single_blocks.{block}.linear1.weight", (7 * width, width)
        yield f"single_blocks.{block}.linear2.weight", (width, 5 * width)


def random(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(shape, generator=generator).to(dtype) for n, shape in dict(shapes).items()
    }


def thresholds_by_the_authors_rule(tensors, ratio, is_selected):
    """name -> the ``int(N * ratio)``-th smallest magnitude of that tensor alone; None: dense."""
    found = {}
    for name, tensor in tensors.items():
        if is_selected(name):
            n = int(tensor.numel() * ratio)
            flat = tensor.detach().abs().flatten().float()
            found[name] = float(flat.kthvalue(n).values) if n else None
    return found
