"""The ways to amplify that are compared, each as a context in which the subject's UNet does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import CRDiff
from crdiff_ext.settings import K_DEFAULT
from crdiff_ext.weights import PrunedWeights
from harness.bench.cost_subject import Subject
from harness.bench.two_unets import two_unets

FIRST, SECOND = 900, 800
"""Timesteps of two calls in a row: at the first, reuse makes its dense pass, at the second not."""


@dataclass(frozen=True)
class Mode:
    """One way to come by a prediction.

    Attributes:
        attach: a context in which calling the UNet is this mode; copies are made on entering.
        extra_bytes: what it holds beside the model, None where that is not told beforehand.
        calls: the timestep of each call that is timed, and its weight in the mean over a period.
        timed_as: modes with the same name here are timed together: their calls are the same.
        native: whether it draws at the native size.
    """

    name: str
    what: str
    attach: Callable[[Subject], AbstractContextManager[None]]
    extra_bytes: Callable[[Subject], int]
    calls: tuple[tuple[int, float], ...] = ((FIRST, 1.0),)
    timed_as: str = ""
    native: bool = False

    @property
    def group(self) -> str:
        """``timed_as``, or the mode's own name."""
        return self.timed_as or self.name


@contextmanager
def _dense(_: Subject) -> Iterator[None]:
    yield


def _nothing(_: Subject) -> int:
    return 0


def _crdiff(amplification: str, memory: str) -> Callable[[Subject], AbstractContextManager[None]]:
    @contextmanager
    def attach(subject: Subject) -> Iterator[None]:
        assert subject.plan is not None
        handle = CRDiff(subject.unet, subject.plan, K_DEFAULT, memory, amplification=amplification)
        with handle.attached():
            handle.prepare()
            yield

    return attach


def copy_bytes(subject: Subject) -> int:
    """Of masked or folded copies of the prunable weights."""
    assert subject.plan is not None
    return PrunedWeights(subject.unet, subject.plan, "copy").copy_bytes


@contextmanager
def _two_unets(subject: Subject) -> Iterator[None]:
    assert subject.plan is not None
    with two_unets(subject.unet, subject.plan.thresholds, K_DEFAULT):
        yield


def _reuse(n: int) -> Mode:
    return Mode(
        f"reuse-{n}",
        f"a dense pass at one step in {n}, its difference reused in between (copies)",
        _crdiff(f"reuse-{n}", "copy"),
        copy_bytes,
        ((FIRST, 1 / n), (SECOND, 1 - 1 / n)),
        "reuse",
    )


MODES = {
    mode.name: mode
    for mode in (
        Mode("dense", "the model as it is", _dense, _nothing),
        Mode(
            "exact-recompute",
            "both passes; each layer's weight masked when it runs",
            _crdiff("exact", "recompute"),
            _nothing,
        ),
        Mode(
            "exact-copy",
            "both passes; masked copies of the prunable layers",
            _crdiff("exact", "copy"),
            copy_bytes,
        ),
        Mode(
            "folded",
            "one pass with folded copies of the prunable layers",
            _crdiff("folded", "copy"),
            copy_bytes,
        ),
        Mode(
            "folded-recompute",
            "one pass; each layer's weight folded when it runs",
            _crdiff("folded", "recompute"),
            _nothing,
        ),
        _reuse(2),
        _reuse(3),
        _reuse(4),
        Mode(
            "two-unets",
            "as the authors' code: a pruned deep copy of the whole UNet",
            _two_unets,
            lambda subject: subject.unet_bytes,
        ),
        Mode(
            "native-resize",
            "the model as it is at its native size (an image: then scaled)",
            _dense,
            _nothing,
            native=True,
        ),
    )
}


def choose_modes(names: tuple[str, ...]) -> list[Mode]:
    """The named modes in the order of MODES, dense always among them; none named: all.

    Raises CRDiffError.
    """
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise CRDiffError(f"mode {unknown[0]!r} is not known: use one of {', '.join(MODES)}")
    wanted = {"dense", *(names or MODES)}
    return [mode for name, mode in MODES.items() if name in wanted]
