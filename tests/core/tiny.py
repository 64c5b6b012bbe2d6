"""Small modules with the true names of either layout, and lists of the real models' names."""

from __future__ import annotations

from collections.abc import Iterator

import torch

LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")

# down, mid, up; two levels, one residual block a level
DIFFUSERS_BLOCKS = (
    "down_blocks.0.attentions.0",
    "down_blocks.1.attentions.0",
    "mid_block.attentions.0",
    "up_blocks.0.attentions.0",
    "up_blocks.0.attentions.1",
    "up_blocks.1.attentions.0",
    "up_blocks.1.attentions.1",
)
LDM_BLOCKS = (
    "input_blocks.1.1",
    "input_blocks.3.1",
    "middle_block.1",
    "output_blocks.0.1",
    "output_blocks.1.1",
    "output_blocks.2.1",
    "output_blocks.3.1",
)


class Matrix(torch.nn.Module):
    """A linear layer that is no torch.nn.Linear, as hosts have them."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In fp32, because torch 2.1 has no fp16 product on the CPU.
        return (x.float() @ self.weight.float().T).to(x.dtype)


class Node(torch.nn.Module):
    """A module that only holds others."""


class TinyUNet(torch.nn.Module):
    """All prunable layers of a small UNet, one after the other; x [B, width] -> [B, width]."""

    def __init__(self, blocks=DIFFUSERS_BLOCKS, width=8, seed=0, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = [(width, width)] * 4 + [(8 * width, width), (width, 4 * width)]
        self.order = []
        for block in blocks:
            for layer, shape in zip(LAYERS, shapes, strict=True):
                name = f"{block}.transformer_blocks.0.{layer}"
                weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
                matrix = Matrix(weight.to(dtype))
                self._attach(name, matrix)
                self.order.append(matrix)
            cross = torch.randn(width, 6, generator=generator).to(dtype)
            self._attach(f"{block}.transformer_blocks.0.attn2.to_k", Matrix(cross))
        self.calls = 0

    def _attach(self, name: str, matrix: torch.nn.Module) -> None:
        parts = name.split(".")
        node: torch.nn.Module = self
        for part in parts[:-1]:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node._modules[part]
        node.add_module(parts[-1], matrix)

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        self.calls += 1
        for index, matrix in enumerate(self.order):
            y = matrix(x)
            # ff.net.0.proj widens by 8; ff.net.2 takes half of that, as after GEGLU
            x = y.chunk(2, dim=-1)[0] if index % 6 == 4 else x + y if index % 6 < 4 else y
        return x


def ldm_shapes(channels, depths, context, res_blocks=2) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of an LDM UNet's prunable weights, numbered as its constructor does it.

    Follows the loop of ``UNetModel.__init__`` in openaimodel.py: a running index over everything
    that is appended to input_blocks and output_blocks. ``depths``: transformer blocks per level.
    """
    yield "input_blocks.0.0.weight", (channels[0], 4, 3, 3)
    index = 0
    for level, (width, depth) in enumerate(zip(channels, depths, strict=True)):
        for _ in range(res_blocks):
            index += 1
            yield from _transformer(f"input_blocks.{index}.1", width, depth, context)
        if level != len(channels) - 1:
            index += 1
            yield f"input_blocks.{index}.0.op.weight", (width, width, 3, 3)
    yield from _transformer("middle_block.1", channels[-1], max(depths[-1], 1), context)
    index = 0
    for level in reversed(range(len(channels))):
        for _ in range(res_blocks + 1):
            block = f"output_blocks.{index}.1"
            yield from _transformer(block, channels[level], depths[level], context)
            index += 1


def _transformer(block, width, depth, context):
    for index in range(depth):
        base = f"{block}.transformer_blocks.{index}"
        for layer in LAYERS[:4]:
            yield f"{base}.{layer}.weight", (width, width)
        yield f"{base}.attn1.to_out.0.bias", (width,)
        yield f"{base}.attn2.to_k.weight", (width, context)
        yield f"{base}.attn2.to_out.0.weight", (width, width)
        yield f"{base}.ff.net.0.proj.weight", (8 * width, width)
        yield f"{base}.ff.net.2.weight", (width, 4 * width)
        yield f"{base}.norm1.weight", (width,)


def sd15_ldm_shapes(context=768):
    """SD1.5 (context 768) and SD2 (1024): the middle has a transformer, level 3 has none."""
    return dict(ldm_shapes((320, 640, 1280, 1280), (1, 1, 1, 0), context))


def sdxl_ldm_shapes():
    shapes = dict(ldm_shapes((320, 640, 1280), (0, 2, 10), 2048))
    shapes["label_emb.0.0.weight"] = (1280, 2816)
    return shapes


def refiner_ldm_shapes():
    shapes = dict(ldm_shapes((384, 768, 1536, 1536), (0, 4, 4, 0), 1280))
    middle = dict(_transformer("middle_block.1", 1536, 4, 1280))
    shapes = {name: s for name, s in shapes.items() if "middle_block" not in name} | middle
    shapes["label_emb.0.0.weight"] = (1536, 2560)
    return shapes


def embedded_ldm_shapes():
    return dict(ldm_shapes((64, 128), (1, 1), 96, res_blocks=1))


def renamed(tensors, pairs):
    """A state dict whose names begin otherwise: ``pairs`` of old and new beginnings."""
    result = {}
    for name, tensor in tensors.items():
        for old, new in pairs:
            if name.startswith(f"{old}."):
                result[new + name[len(old) :]] = tensor
                break
    return result


def to_ldm(tensors, prefix=""):
    """A TinyUNet state dict under LDM names."""
    pairs = zip(DIFFUSERS_BLOCKS, (prefix + block for block in LDM_BLOCKS), strict=True)
    return renamed(tensors, list(pairs))
