"""A tiny UNet with its plan, what it gives when pruned for good, and what must not change."""

from __future__ import annotations

import torch

from crdiff_ext.blocks import prunable_layers, prunable_parameters
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from tests.core.tiny import TinyUNet

RATIOS = Ratios(0.3, 0, 0.7)
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


def make(dtype=torch.float32, ratios=RATIOS, **options):
    unet = TinyUNet(dtype=dtype, **options)
    return unet, make_plan(prunable_parameters(unet), ratios)


class Snapshot:
    """Everything about a module that has to be the same afterwards."""

    def __init__(self, module):
        self.module = module
        self.parameters = list(module.named_parameters())
        self.values = [p.detach().clone() for _, p in self.parameters]
        self.facts = self._facts()

    def _facts(self):
        per_module = [
            (name, id(m), list(m._forward_hooks), list(m._forward_pre_hooks),
             list(m._forward_hooks_always_called), sorted(m.__dict__), list(m._parameters))
            for name, m in self.module.named_modules()
        ]  # fmt: skip
        per_parameter = [
            (name, id(p), p.data_ptr(), p._version, p.requires_grad, p.dtype)
            for name, p in self.module.named_parameters()
        ]
        return per_module, per_parameter

    def check(self):
        assert self._facts() == self.facts
        for (_, parameter), value in zip(self.parameters, self.values, strict=True):
            integer = {2: torch.int16, 4: torch.int32}[value.element_size()]
            assert torch.equal(parameter.detach().view(integer), value.view(integer))


def reference(unet, plan):
    """The output of an independent copy whose weights are pruned for good."""
    other = TinyUNet(dtype=next(unet.parameters()).dtype)
    other.load_state_dict(unet.state_dict())
    with torch.no_grad():
        for layer in prunable_layers(other):
            threshold = plan.thresholds[layer.group]
            if threshold is not None:
                weight = layer.module.weight
                weight[weight.abs() <= threshold] = 0
    return other
