"""From a table's variants to the cells of one model's plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios
from harness.config import RunConfig
from harness.criteria.settings import Calibration, read_calibration
from harness.experiment import DEFAULT_STEP, decide_for
from harness.methods import Method, Situation, get_methods
from harness.plan import Cell
from harness.tables.quantities import SAME_SHARE, STORED, Variant, Where

if TYPE_CHECKING:
    from harness.pipelines import LoadedPipeline

Cells = dict[Where, Cell]
Absent = dict[Where, str]


def make_cells(
    wanted: Iterable[Where], config: RunConfig, loaded: LoadedPipeline, presets: Sequence[Preset]
) -> tuple[Cells, Absent]:
    """The cells that can be drawn, and why the others can't.

    A method that does not suit a model, and ratios that are not stored, are not errors here: the
    tables say so and go on.
    """
    cells: Cells = {}
    absent: Absent = {}
    calibration = read_calibration(config.calibration) if config.calibration else None
    for where in dict.fromkeys(wanted):
        try:
            cells[where] = _cell(where, config, loaded, presets, calibration)
        except CRDiffError as error:
            absent[where] = f"not available: {error}"
    return cells, absent


def _cell(
    where: Where,
    config: RunConfig,
    loaded: LoadedPipeline,
    presets: Sequence[Preset],
    calibration: Calibration | None = None,
) -> Cell:
    variant, family = where.variant, loaded.family
    method = get_methods((variant.method,))[0]
    where.size.check_step(family.step or DEFAULT_STEP, family.label)
    if variant.method == "dense":
        # Dense needs no ratios; "auto" gives a decision without demanding any.
        decision, _ = decide_for(replace(config, ratios="auto"), family, where.size, presets)
        situation = Situation(where.size, family, decision)
        return Cell(where.size, method, decision, method.choose(situation))
    ratios = variant.ratios
    if ratios == SAME_SHARE:
        ratios = _same_share(where, config, loaded, presets)
    settings = replace(config, ratios=ratios, k=variant.k)
    decision, forced = decide_for(settings, family, where.size, presets)
    if ratios == STORED and variant.k != 0 and not decision.act:
        # Nothing stored, or ratios or a k of 0: drawn it would be dense under a false name.
        raise CRDiffError(decision.sentence)
    drawing = method.choose(Situation(where.size, family, decision, calibration))
    named = _named(method, variant, ratios)
    return Cell(where.size, named, decision, drawing, forced and drawing.kind == "amplified")


def _named(method: Method, variant: Variant, ratios: str) -> Method:
    """The method by the name that tells it from its other variants: ``uniform-0.288-k1.5``."""
    k = variant.k if variant.k is not None else {"pruned": 1.0}.get(variant.method)
    end = "" if k is None else f"-k{k:g}"
    if ratios != STORED:
        return get_methods((f"uniform-{ratios}{end}",))[0]
    return method if variant.k is None else get_methods((f"poa{end}",))[0]


def _same_share(
    where: Where, config: RunConfig, loaded: LoadedPipeline, presets: Sequence[Preset]
) -> str:
    """The one ratio that prunes as many weights as the stored ones do, to three decimals."""
    settings = replace(config, ratios="stored")
    decision, _ = decide_for(settings, loaded.family, where.size, presets)
    if decision.ratios is None:
        raise CRDiffError(decision.sentence)
    return f"{share(loaded, decision.ratios):.3f}"


def share(loaded: LoadedPipeline, ratios: Ratios) -> float:
    """The share of all prunable weights that block-wise ratios prune."""
    total = pruned = 0.0
    for parameter in prunable_parameters(loaded.denoiser):
        count = parameter.tensor.numel()
        total += count
        pruned += count * ratios.of(parameter.group)
    return pruned / total
