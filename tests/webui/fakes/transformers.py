"""SD3 and FLUX as Forge holds them, in miniature: the names of backend/nn/{mmditx,flux}.py.

Layers are the fake hosts' own; each forward notes the effective weights that it used.
"""

from __future__ import annotations

from typing import Any

import torch

from crdiff_ext.dit_shapes import Fingerprint
from tests.core.tiny import Node
from tests.webui.fakes import forge

WIDTH, TEXT, POOLED = 12, 10, 6
FINGERPRINTS = {
    "sd3": Fingerprint((WIDTH, 16, 2, 2), TEXT, POOLED, 2),
    "sd35-medium": Fingerprint((WIDTH, 16, 2, 2), TEXT, POOLED, 2, normed=2, dual=1),
    "flux-dev": Fingerprint((WIDTH, 64), TEXT, POOLED, 2, 1, normed=2, guided=True),
    "flux-schnell": Fingerprint((WIDTH, 64), TEXT, POOLED, 2, 1, normed=2),
}
"""What ``crdiff_ext.dit_shapes.KNOWN`` has to hold for these to be known."""


class Transformer(torch.nn.Module):
    """What both have. ``order``: the linear layers of each block, by name, as they are run.

    ``layer_type``: the host's linear layer; ``pruned``: names of those that CR-Diff prunes.
    """

    channels, prediction_type = 16, "const"

    def __init__(self, layer_type: Any = forge.Linear, dtype=torch.float32, manual_cast=False):
        super().__init__()
        self._make = lambda weight: layer_type(weight.to(dtype), manual_cast)
        self._generator = torch.Generator().manual_seed(0)
        self.layers: dict[str, Any] = {}
        self.interrupt: Any = None  # as in forge.UNet
        self.passes: list[list[torch.Tensor]] = []

    @property
    def order(self):
        return [list(self.layers.values())]

    @property
    def pruned(self):
        return [name for name in self.layers if self.is_pruned(name)]

    def _random(self, *shape):
        return torch.randn(shape, generator=self._generator) / shape[-1] ** 0.5

    def _linear(self, name, rows, columns):
        self.layers[name] = self._make(self._random(rows, columns))
        self._attach(name, self.layers[name])

    def _tensor(self, name, *shape):
        node = Node()
        module, _, own = name.rpartition(".")
        node.register_parameter(own, torch.nn.Parameter(self._random(*shape), requires_grad=False))
        self._attach(module, node)

    def _attach(self, name, module):
        node: Any = self
        for part in name.split(".")[:-1]:
            if part not in node._modules:
                node.add_module(part, Node())
            node = node._modules[part]
        node.add_module(name.rpartition(".")[2], module)

    def _run(self, name, x):
        return self.layers[name](x)

    def _attend(self, base, x):
        q, k, v = self._run(f"{base}.qkv", x).chunk(3, dim=-1)
        return self._run(f"{base}.proj", torch.tanh(q) * torch.tanh(k) + v)

    def _begin(self, transformer_options):
        assert "block" not in transformer_options, "another pass' transformer_options"
        transformer_options["block"] = 0
        if self.interrupt is not None:
            self.interrupt(self, 0)

    def _end(self, tokens, x):
        self.passes.append([layer.used for layer in self.layers.values()])
        n, c, h, w = x.shape
        patches = tokens.reshape(n, h // 2, w // 2, c, 2, 2)
        return torch.einsum("nhwcpq->nchpwq", patches).reshape(x.shape)


def patches_of(x):
    """[n, c, h, w] to [n, h / 2 * w / 2, 4 c]."""
    n, c, h, w = x.shape
    cut = x.reshape(n, c, h // 2, 2, w // 2, 2)
    return torch.einsum("nchpwq->nhwcpq", cut).reshape(n, h * w // 4, 4 * c)


class SD3(Transformer):
    """backend/nn/mmditx.py, MMDiTX. ``dual``: blocks with a second attention (SD3.5 medium)."""

    def __init__(self, dual=0, **more):
        super().__init__(**more)
        self.dual = dual
        self._tensor("x_embedder.proj.weight", WIDTH, 16, 2, 2)
        self._linear("context_embedder", WIDTH, TEXT)
        self._linear("y_embedder.mlp.0", WIDTH, POOLED)
        for block in range(2):
            for stream in ("x_block", "context_block"):
                base = f"joint_blocks.{block}.{stream}"
                self._linear(f"{base}.attn.qkv", 3 * WIDTH, WIDTH)
                if dual:
                    self._tensor(f"{base}.attn.ln_q.weight", 4)
                if stream == "context_block" and block == 1:
                    continue  # the last one is only attended to
                self._linear(f"{base}.attn.proj", WIDTH, WIDTH)
                if stream == "x_block" and block < dual:
                    self._linear(f"{base}.attn2.qkv", 3 * WIDTH, WIDTH)
                    self._linear(f"{base}.attn2.proj", WIDTH, WIDTH)
                self._linear(f"{base}.mlp.fc1", 4 * WIDTH, WIDTH)
                self._linear(f"{base}.mlp.fc2", WIDTH, 4 * WIDTH)
        self._linear("final_layer.linear", 64, WIDTH)

    @staticmethod
    def is_pruned(name):
        return ".x_block.mlp." in name or ".attn2." in name

    def forward(self, x, t, context=None, control=None, transformer_options=None, y=None):
        self._begin(transformer_options)
        embed = self.x_embedder.proj.weight.flatten(1)
        img = patches_of(x) @ embed.T + t[:, None, None] / 100
        img = img + self._run("y_embedder.mlp.0", torch.ones(1, 1, POOLED))
        txt = self._run("context_embedder", context.expand(len(x), 3, TEXT))
        for block in range(2):
            base = f"joint_blocks.{block}"
            if block == 0:
                txt = txt + self._attend(f"{base}.context_block.attn", txt) / 4
                hidden = torch.tanh(self._run(f"{base}.context_block.mlp.fc1", txt))
                txt = txt + self._run(f"{base}.context_block.mlp.fc2", hidden) / 4
            else:
                txt = self._run(f"{base}.context_block.attn.qkv", txt)[..., :WIDTH]
            img = img + self._attend(f"{base}.x_block.attn", img + txt.mean(1, keepdim=True)) / 4
            if block < self.dual:
                img = img + self._attend(f"{base}.x_block.attn2", img) / 4
            hidden = torch.tanh(self._run(f"{base}.x_block.mlp.fc1", img))
            img = img + self._run(f"{base}.x_block.mlp.fc2", hidden) / 4
        return self._end(self._run("final_layer.linear", img), x)


class Flux(Transformer):
    """backend/nn/flux.py, IntegratedFluxTransformer2DModel."""

    def __init__(self, guided=True, double=2, channels=16, pooled=True, **more):
        super().__init__(**more)
        self.guided, self.double, self.pooled = guided, double, pooled
        self._linear("img_in", WIDTH, 4 * channels)
        self._linear("txt_in", WIDTH, TEXT)
        if pooled:
            self._linear("vector_in.in_layer", WIDTH, POOLED)
        if guided:
            self._linear("guidance_in.in_layer", WIDTH, 1)
        for block in range(double):
            for stream in ("img", "txt"):
                base = f"double_blocks.{block}.{stream}"
                self._linear(f"{base}_attn.qkv", 3 * WIDTH, WIDTH)
                self._tensor(f"{base}_attn.norm.query_norm.scale", 4)
                self._linear(f"{base}_attn.proj", WIDTH, WIDTH)
                self._linear(f"{base}_mlp.0", 4 * WIDTH, WIDTH)
                self._linear(f"{base}_mlp.2", WIDTH, 4 * WIDTH)
        self._linear("single_blocks.0.linear1", 7 * WIDTH, WIDTH)
        self._linear("single_blocks.0.linear2", WIDTH, 7 * WIDTH)
        self._linear("final_layer.linear", 64, WIDTH)

    @staticmethod
    def is_pruned(name):
        return ".img_mlp." in name

    def forward(self, x, t, context=None, control=None, transformer_options=None, y=None):
        self._begin(transformer_options)
        tokens = patches_of(x)  # FLUX Fill and Canny get more channels, noughts here
        columns = self.layers["img_in"].weight.shape[1] - tokens.shape[-1]
        img = self._run("img_in", torch.nn.functional.pad(tokens, (0, columns)))
        img = img + t[:, None, None] / 100
        txt = self._run("txt_in", context.expand(len(x), 3, TEXT))
        if self.pooled:
            img = img + self._run("vector_in.in_layer", torch.ones(1, 1, POOLED))
        if self.guided:
            img = img + self._run("guidance_in.in_layer", torch.full((1, 1, 1), 3.5))
        for block in range(self.double):
            base = f"double_blocks.{block}"
            both = img + txt.mean(1, keepdim=True)
            txt = txt + self._attend(f"{base}.txt_attn", txt) / 4
            img = img + self._attend(f"{base}.img_attn", both) / 4
            img = img + self._mlp(f"{base}.img_mlp", img) / 4
            txt = txt + self._mlp(f"{base}.txt_mlp", txt) / 4
        hidden = torch.tanh(self._run("single_blocks.0.linear1", img + txt.mean(1, keepdim=True)))
        img = img + self._run("single_blocks.0.linear2", hidden) / 4
        return self._end(self._run("final_layer.linear", img), x)

    def _mlp(self, base, x):
        return self._run(f"{base}.2", torch.tanh(self._run(f"{base}.0", x)))


KINDS: dict[str, Any] = {
    "sd3": SD3,
    "sd35-medium": lambda **more: SD3(dual=1, **more),
    "flux-dev": Flux,
    "flux-schnell": lambda **more: Flux(guided=False, **more),
}
"""Makes a transformer of each family."""
