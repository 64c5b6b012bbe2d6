"""What `crdiff inspect` finds out: a checkpoint's family, the decision, and its sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from crdiff_ext.blocks import PrunableWeight, pool_of, prunable_names
from crdiff_ext.decide import Decision
from crdiff_ext.dit_names import parts_of
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family
from crdiff_ext.pruning import by_pool, make_plan, report
from crdiff_ext.settings import ALL, Ratios
from harness.checkpoints import Checkpoint, open_checkpoint
from harness.choice import choose
from harness.config import Size
from harness.hints import prediction_name
from harness.user_presets import stored_presets


@dataclass(frozen=True)
class Inspection:
    """Everything that is told about a checkpoint.

    ``groups`` as in the core's SparsityReport: a UNet's block groups, a transformer's layers.
    ``ratios`` None: nothing to prune with, so ``groups`` holds counts only and ``mask_sha256`` is
    None. ``size`` None: none was given and the native one is not known.
    """

    checkpoint: Checkpoint
    family: Family
    size: Size | None
    decision: Decision
    ratios: Ratios | None
    groups: Mapping[str, dict[str, Any]]
    pruned_per_layer: Mapping[str, int]
    mask_sha256: str | None
    dtype: str

    @property
    def layout(self) -> str:
        """For people: which naming the file has."""
        if self.checkpoint.is_ldm:
            return "original single-file layout"
        return "diffusers folder" if self.checkpoint.kind == "folder" else "diffusers names"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the sparsity fields are named as in the golden manifest."""
        decision, preset = self.decision, self.decision.preset
        return {
            "checkpoint": str(self.checkpoint.path),
            "layout": "ldm" if self.checkpoint.is_ldm else "diffusers",
            "dtype": self.dtype,
            "family": self.family.name,
            "label": self.family.label,
            "native": list(self.family.native) if self.family.native else None,
            "size": list(self.size) if self.size else None,
            "decision": {
                "act": decision.act,
                "code": decision.code,
                "sentence": decision.sentence,
                "exact": decision.exact,
                "k": decision.k,
                "ratios": decision.ratios.as_dict() if decision.ratios else None,
                "preset": preset.to_dict() if preset else None,
            },
            "ratios": self.ratios.as_dict() if self.ratios else None,
            "groups": dict(self.groups),
            "pruned_per_layer": dict(self.pruned_per_layer),
            "mask_sha256": self.mask_sha256,
        }


@dataclass(frozen=True)
class LazyWeight:
    """A PrunableWeight whose tensor is read from the checkpoint each time it is asked for.

    At any moment only the tensors that the core is at work on are mapped: one pool at most.
    ``part`` of ``parts``: which equal share of the stored matrix' rows it is.
    """

    name: str
    canonical: str
    group: str
    checkpoint: Checkpoint
    part: int = 0
    parts: int = 1

    @property
    def pool(self) -> str:
        """Its key in a plan's thresholds."""
        return pool_of(self.group, self.canonical)

    @property
    def tensor(self) -> torch.Tensor:
        """The weight [out, in], mapped from the file."""
        return self.checkpoint.tensor(self.name).chunk(self.parts)[self.part]


def lazy_weights(checkpoint: Checkpoint) -> list[PrunableWeight]:
    """The checkpoint's prunable weights, sorted by canonical name, none of them read yet."""
    found = [
        LazyWeight(name, canonical, parsed.group, checkpoint, part, len(parts))
        for name, parsed in prunable_names(checkpoint.infos).items()
        for parts in [parts_of(parsed.canonical)]
        for part, canonical in enumerate(parts)
    ]
    return [cast(PrunableWeight, weight) for weight in sorted(found, key=lambda w: w.canonical)]


def inspect_checkpoint(
    model: str | Path,
    size: Size | None = None,
    ratios: Ratios | None = None,
    *,
    k: float | None = None,
    prediction: str | None = None,
    presets: Path | None = None,
) -> Inspection:
    """Open ``model``, decide for ``size`` (default: native), count what would be pruned.

    ``ratios`` override the decision's. ``k`` None is the stored entry's own, else 1.5.
    ``presets``: the user's file. Raises CRDiffError.
    """
    checkpoint = open_checkpoint(model)
    family = checkpoint.family(prediction_name(prediction) if prediction else None)
    weights = lazy_weights(checkpoint)
    if not weights:
        raise CRDiffError(
            f"{checkpoint.path} holds no UNet with layers that CR-Diff prunes: give an SD1.5, SD2, "
            "SDXL, SD3 or FLUX checkpoint"
        )
    if weights[0].group == ALL and not family.is_dit:
        raise CRDiffError(
            f"{checkpoint.path} is a diffusion transformer of a kind that CR-Diff does not know: "
            "of these, SD3, SD3.5 and FLUX can be read"
        )
    if size is None and family.native:
        size = Size(*family.native)
    if size is not None:
        size.check_step(family.step, family.label)
    # Without a native size the decision does not depend on the size either.
    asked = size or Size(512, 512)
    decision = choose(family, asked, stored_presets(presets), ratios=ratios, k=k)
    ratios = ratios or decision.ratios
    groups, per_layer, digest = _sparsity(checkpoint, weights, ratios)
    dtypes = {str(checkpoint.infos[w.name].dtype).removeprefix("torch.") for w in weights}
    return Inspection(
        checkpoint,
        family,
        size,
        decision,
        ratios,
        groups,
        per_layer,
        digest,
        dtype=", ".join(sorted(dtypes)),
    )


def _sparsity(
    checkpoint: Checkpoint, weights: list[PrunableWeight], ratios: Ratios | None
) -> tuple[dict[str, dict[str, Any]], dict[str, int], str | None]:
    """Groups, pruned weights a layer, mask hash; counts from the shapes alone without ratios."""
    if ratios is not None:
        found = report(weights, make_plan(weights, ratios)).to_dict()
        return found["groups"], found["pruned_per_layer"], found["mask_sha256"]
    groups: dict[str, dict[str, Any]] = {}
    for pool in by_pool(weights):
        shapes = [torch.Size(checkpoint.infos[weight.name].shape) for weight in pool.members]
        total = sum(shape.numel() for shape in shapes)
        groups[pool.name] = {"threshold": None, "pruned": 0, "total": total, "layers": len(shapes)}
    return groups, {}, None
