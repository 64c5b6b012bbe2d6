"""The registry of methods that are compared: what each one draws at a given size.

A method turns a :class:`Situation` (size, model family, the core's decision) into a
:class:`Drawing`, the full description of how the pixels come about. Two methods whose drawings
are equal share their images: nothing is drawn twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from crdiff_ext.decide import Decision
from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import Family
from crdiff_ext.settings import Ratios
from harness.config import Size
from harness.criteria.settings import (
    CALIBRATION_PROMPTS,
    CRITERIA,
    LABELS,
    Calibration,
    Criterion,
    criterion_for,
)

RESIZE_FILTER = "lanczos"
"""How native-resize scales. Lanczos is the sharpest antialiased filter of PIL and the usual choice
for photographs in both directions: a blurrier one would make this rival of CR-Diff look worse than
it needs to be. The aspect ratio is not kept (as in the paper's own 256x256 resizing), because
cropping would cut off objects that the caption names."""


@dataclass(frozen=True)
class Drawing:
    """How an image is made, apart from prompt, seed, size and sampling settings."""

    kind: str
    """"dense", "amplified" (pruned and dense pass combined) or "resize" (of a stored image)."""
    ratios: Ratios | None = None
    k: float | None = None
    source_size: Size | None = None
    amplification: str = "exact"
    """How the combination is come by, see ``crdiff_ext.amplify``."""
    criterion: Criterion | None = None
    """Which weights go; None: the smallest ones, CR-Diff's own criterion."""
    told_size: Size | None = None
    """What SDXL is told that the image's original and target size are; None: the true size."""

    def key_fields(self) -> dict[str, Any]:
        """What of this goes into an image's key.

        Later fields must be left out while they have the value that today's code implies, so that
        images drawn today keep their keys.
        """
        if self.kind == "resize":
            return {"kind": "resize", "filter": RESIZE_FILTER}
        fields: dict[str, Any] = {"kind": self.kind}
        if self.kind == "amplified":
            assert self.ratios is not None
            fields |= {"ratios": self.ratios.as_dict(), "k": self.k}
        if self.amplification != "exact":  # what images without the field were drawn with
            fields["amplification"] = self.amplification
        if self.criterion is not None:
            fields["criterion"] = self.criterion.as_dict()
        if self.told_size is not None:
            fields["told_size"] = list(self.told_size)
        return fields


DENSE = Drawing("dense")


@dataclass(frozen=True)
class Situation:
    """What a method may look at to choose its drawing."""

    size: Size
    family: Family
    decision: Decision
    calibration: Calibration | None = None
    """Prompts for the calibrated criteria; None: those that come with the harness."""


Choice = Callable[[Situation], Drawing]


@dataclass(frozen=True)
class Method:
    """One row of a comparison."""

    name: str
    label: str
    what: str
    choose: Choice


def _dense(_: Situation) -> Drawing:
    return DENSE


def amplified(
    situation: Situation, k: float | None = None, criterion: Criterion | None = None
) -> Drawing:
    """The decision's ratios at ``k`` (None: its own); dense where nothing would be changed."""
    ratios = situation.decision.ratios
    k = situation.decision.k if k is None else k
    if not situation.decision.act or ratios is None or ratios.is_zero or k == 0:
        return DENSE
    return Drawing("amplified", ratios, float(k), criterion=criterion)


def _native(situation: Situation, method: str) -> Size:
    if not situation.family.native:
        raise CRDiffError(
            f"{method} needs the model's native size, which is not known for "
            f"{situation.family.label}: leave this method out"
        )
    return Size(*situation.family.native)


def _cheaper(amplification: str) -> Choice:
    """CR-Diff with a cheaper amplification; at k = 1 there is nothing to save."""

    def choose(situation: Situation) -> Drawing:
        drawing = amplified(situation)
        nothing = drawing.k in (None, 1.0)
        return drawing if nothing else replace(drawing, amplification=amplification)

    return choose


def _native_resize(situation: Situation) -> Drawing:
    native = _native(situation, "native-resize")
    return DENSE if native == situation.size else Drawing("resize", source_size=native)


CHEAPER = {
    "folded": "As CR-Diff, approximately and in one pass: small weights times 1 - k.",
    **{
        f"reuse-{n}": f"As CR-Diff, with the dense pass at every {n}{suffix} step only."
        for n, suffix in ((2, "nd"), (3, "rd"), (4, "th"))
    },
}


def _told(situation: Situation, drawing: Drawing) -> Drawing:
    """``drawing`` while SDXL is told that the image is of its native size."""
    if not situation.family.name.startswith("sdxl"):
        raise CRDiffError(
            f"native-conditioning is for SDXL, whose UNet is told the image's size; "
            f"{situation.family.label} is not: leave this method out"
        )
    native = _native(situation, "native-conditioning")
    return drawing if native == situation.size else replace(drawing, told_size=native)


PUBLISHED_UNIFORM = {
    ("sdxl", Size(1024, 1024)): 0.124,
    ("sdxl", Size(512, 512)): 0.288,
    ("sd2-v", Size(480, 360)): 0.369,
}
"""The uniform ratios of the paper's Figure 7a."""


def uniform(situation: Situation, ratio: float | None = None, k: float | None = None) -> Drawing:
    """One ratio for all groups: ``ratio`` at any size, else the known one where CR-Diff acts.

    Known is the ratio that was given for all groups alike, or the paper's for this very size.
    """
    decision = situation.decision
    if ratio is None:
        if not decision.act or decision.ratios is None:
            return DENSE
        alike = len(set(decision.ratios.as_dict().values())) == 1
        published = PUBLISHED_UNIFORM.get((situation.family.name, situation.size))
        ratio = decision.ratios.down if alike and decision.code == "set" else published
    if ratio is None:
        raise CRDiffError(
            f"no uniform ratio is known for {situation.family.label} at {situation.size}: give "
            "one in the method's name, such as uniform-0.3"
        )
    k = decision.k if k is None else k
    return Drawing("amplified", Ratios(ratio, ratio, ratio), float(k)) if ratio and k else DENSE


def _by(name: str, k: float | None, prompts: int | None = None, seed: int = 0) -> Choice:
    """Weights chosen by another criterion at the decision's ratios; ``k`` None: its own."""

    def choose(situation: Situation) -> Drawing:
        count = CALIBRATION_PROMPTS if prompts is None else prompts
        criterion = criterion_for(name, situation.family, count, seed, situation.calibration)
        return amplified(situation, k, criterion)

    return choose


_HOW = {
    "random": "Random weights set to zero, in each layer exactly as many as CR-Diff prunes there",
    "taylor": "Weights with the smallest |gradient x weight| of the diffusion loss set to zero, "
    "by block-wise ratios",
    "wanda": "Weights with the smallest |weight| x norm of its input set to zero, compared within "
    "each output row, by block-wise ratios",
    "obs-diff": "Second-order pruning that makes up for removed weights by changing those that "
    "stay (timestep-weighted Hessians of the layers' inputs), by block-wise ratios",
}


def criterion_method(
    name: str, base: str, poa: bool, k: float | None, prompts: int | None = None, seed: int = 0
) -> Method:
    """The method of a criterion: ``base`` of ``CRITERIA``, amplified if ``poa``, at ``k``."""
    label = f"{LABELS[base]}{' + POA' if poa else ''}"
    notes = [f"k = {k:g}"] if poa and k is not None else []
    notes += [] if prompts is None else [f"n = {prompts}"]
    notes += [f"seed {seed}"] if seed else []
    label += f" ({', '.join(notes)})" if notes else ""
    amplified = ", amplified as in CR-Diff" if poa else ", without amplification (k = 1)"
    calibration = "" if prompts is None else f"; {prompts} calibration prompts"
    seeded = f"; seed {seed}" if seed else ""
    what = f"{_HOW[base]}{amplified}{calibration}{seeded}."
    return Method(name, label, what, _by(base, k if poa else 1.0, prompts, seed))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "Dense", "The model as it is.", _dense),
        Method(
            "pruned",
            "Pruned only",
            "Small weights set to zero by block-wise ratios, without amplification (k = 1).",
            lambda situation: amplified(situation, 1.0),
        ),
        Method(
            "crdiff",
            "CR-Diff",
            "Pruned output amplification: k times the pruned prediction plus (1 - k) times the "
            "dense one, at every step.",
            amplified,
        ),
        *(
            Method(
                f"crdiff-{amplification}",
                f"CR-Diff, {amplification}",
                what,
                _cheaper(amplification),
            )
            for amplification, what in CHEAPER.items()
        ),
        Method(
            "native-resize",
            "Native, resized",
            "Drawn densely at the model's native size, then scaled to the target size (Lanczos, "
            "aspect ratio not kept).",
            _native_resize,
        ),
        Method(
            "native-conditioning",
            "Native conditioning",
            "SDXL as it is, told that the image's original and target size are its native one.",
            lambda situation: _told(situation, DENSE),
        ),
        Method(
            "native-conditioning-crdiff",
            "CR-Diff + native conditioning",
            "CR-Diff, while SDXL is told that the image's original and target size are its native "
            "one.",
            lambda situation: _told(situation, amplified(situation)),
        ),
        Method(
            "uniform",
            "Uniform ratio",
            "CR-Diff with one ratio for all three groups: the given one, or the paper's (Figure "
            "7a).",
            uniform,
        ),
        *(
            criterion_method(f"{name}{'-poa' if poa else ''}", name, poa, None)
            for name in CRITERIA
            for poa in (False, True)
        ),
    )
}


def get_methods(names: tuple[str, ...]) -> list[Method]:
    """Methods by name, each once, in the given order. Raises CRDiffError.

    Names with numbers in them, such as ``poa-k1.25``, are those of ``method_names.FORMS``.
    """
    from harness.method_names import parse  # it makes Methods itself

    methods = {}
    for name in names:
        method = METHODS.get(name) or parse(name)
        methods[method.name] = method
    return list(methods.values())
