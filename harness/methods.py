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

    def key_fields(self) -> dict[str, Any]:
        """What of this goes into an image's key.

        Later fields must be left out while they have the value that today's code implies, so that
        images drawn today keep their keys.
        """
        if self.kind == "dense":
            return {"kind": "dense"}
        if self.kind == "amplified":
            assert self.ratios is not None
            fields = {"kind": "amplified", "ratios": self.ratios.as_dict(), "k": self.k}
            # Exact is what images without the field were drawn with.
            other = self.amplification != "exact"
            return fields | ({"amplification": self.amplification} if other else {})
        return {"kind": "resize", "filter": RESIZE_FILTER}


DENSE = Drawing("dense")


@dataclass(frozen=True)
class Situation:
    """What a method may look at to choose its drawing."""

    size: Size
    family: Family
    decision: Decision


@dataclass(frozen=True)
class Method:
    """One row of a comparison."""

    name: str
    label: str
    what: str
    choose: Callable[[Situation], Drawing]


def _dense(_: Situation) -> Drawing:
    return DENSE


def _amplified(situation: Situation, k: float) -> Drawing:
    """The decision's ratios at ``k``; dense where nothing would be changed."""
    ratios = situation.decision.ratios
    if not situation.decision.act or ratios is None or ratios.is_zero or k == 0:
        return DENSE
    return Drawing("amplified", ratios, float(k))


def _pruned(situation: Situation) -> Drawing:
    return _amplified(situation, 1.0)


def _crdiff(situation: Situation) -> Drawing:
    return _amplified(situation, situation.decision.k)


def _cheaper(amplification: str) -> Callable[[Situation], Drawing]:
    """CR-Diff with a cheaper amplification; at k = 1 there is nothing to save."""

    def choose(situation: Situation) -> Drawing:
        drawing = _crdiff(situation)
        return (
            drawing if drawing.k in (None, 1.0) else replace(drawing, amplification=amplification)
        )

    return choose


def _native_resize(situation: Situation) -> Drawing:
    if not situation.family.native:
        raise CRDiffError(
            f"native-resize needs the model's native size, which is not known for "
            f"{situation.family.label}: leave this method out"
        )
    native = Size(*situation.family.native)
    return DENSE if native == situation.size else Drawing("resize", source_size=native)


CHEAPER = {
    "folded": "As CR-Diff, approximately and in one pass: small weights times 1 - k.",
    **{
        f"reuse-{n}": f"As CR-Diff, with the dense pass at every {n}{suffix} step only."
        for n, suffix in ((2, "nd"), (3, "rd"), (4, "th"))
    },
}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "Dense", "The model as it is.", _dense),
        Method(
            "pruned",
            "Pruned only",
            "Small weights set to zero by block-wise ratios, without amplification (k = 1).",
            _pruned,
        ),
        Method(
            "crdiff",
            "CR-Diff",
            "Pruned output amplification: k times the pruned prediction plus (1 - k) times the "
            "dense one, at every step.",
            _crdiff,
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
    )
}


def get_methods(names: tuple[str, ...]) -> list[Method]:
    """Methods by name, each once, in the given order. Raises CRDiffError."""
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise CRDiffError(
            f"method {unknown[0]!r} is not known: use one or more of {', '.join(METHODS)}"
        )
    return [METHODS[name] for name in dict.fromkeys(names)]
