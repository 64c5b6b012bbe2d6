"""Methods whose names carry numbers: ``poa-k1.25``, ``uniform-0.3``, ``wanda-poa-k2-n8``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from crdiff_ext.errors import CRDiffError
from crdiff_ext.settings import K_MAX, Ratios, check_k
from harness.criteria.settings import CRITERIA
from harness.methods import METHODS, Method, amplified, criterion_method, uniform

_NUMBER = r"\d+(?:\.\d*)?|\.\d+"
_K = rf"-k(?P<k>{_NUMBER})"


@dataclass(frozen=True)
class Form:
    """A kind of name. ``shape``: how it is written, for people; ``starts``: to know it by."""

    shape: str
    starts: tuple[str, ...]
    pattern: re.Pattern[str]
    example: str
    build: Callable[[dict[str, str | None]], Method]


def _poa(found: dict[str, str | None]) -> Method:
    k = check_k(found["k"])  # type: ignore[arg-type]  # takes text too
    what = f"CR-Diff's ratios, amplified with k = {k:g}."
    return Method(f"poa-k{k:g}", f"POA, k = {k:g}", what, lambda one: amplified(one, k))


def _uniform(found: dict[str, str | None]) -> Method:
    ratio = None if found["ratio"] is None else Ratios.parse(found["ratio"]).down
    k = None if found["k"] is None else check_k(found["k"])  # type: ignore[arg-type]
    name, label = "uniform", "Uniform ratio"
    what = "CR-Diff with one ratio for all three groups"
    if ratio is not None:
        name, label = f"{name}-{ratio:g}", f"{label} {ratio:g}"
        what += f", {ratio:g}, at every size"
    if k is not None:
        name, label, what = f"{name}-k{k:g}", f"{label}, k = {k:g}", f"{what}, with k = {k:g}"
    return Method(name, label, f"{what}.", lambda one: uniform(one, ratio, k))


def _criterion(found: dict[str, str | None]) -> Method:
    base, poa = str(found["base"]), found["poa"] is not None
    k = None if found["k"] is None else check_k(found["k"])  # type: ignore[arg-type]
    prompts = None if found["prompts"] is None else int(found["prompts"])
    seed = int(found["seed"] or 0)
    if prompts is not None and base == "random":
        raise CRDiffError("a random mask needs no calibration prompts: leave -nPROMPTS out")
    name = base + ("-poa" if poa else "") + (f"-k{k:g}" if k is not None else "")
    name += (f"-n{prompts}" if prompts is not None else "") + (f"-seed{seed}" if seed else "")
    return criterion_method(name, base, poa, k, prompts, seed)


FORMS = (
    Form("poa-kK", ("poa",), re.compile(f"poa{_K}"), "poa-k1.25", _poa),
    Form(
        "uniform[-RATIO][-kK]",
        ("uniform",),
        re.compile(rf"uniform(?:-(?P<ratio>{_NUMBER}))?(?:{_K})?"),
        "uniform-0.3-k1",
        _uniform,
    ),
    Form(
        f"{'|'.join(CRITERIA)}[-poa[-kK]][-nPROMPTS][-seedN]",
        CRITERIA,
        re.compile(
            rf"(?P<base>{'|'.join(CRITERIA)})(?P<poa>-poa(?:{_K})?)?"
            r"(?:-n(?P<prompts>\d+))?(?:-seed(?P<seed>\d{1,18}))?"
        ),
        "wanda-poa-k1.5-n8",
        _criterion,
    ),
)


def parse(name: str) -> Method:
    """The method of a name with numbers in it. Raises CRDiffError that says how to write it.

    The method's own name is the shortest way to write it: ``poa-k1.50`` is ``poa-k1.5``.
    """
    for form in FORMS:
        if found := form.pattern.fullmatch(name):
            try:
                method = form.build(found.groupdict())
            except CRDiffError as error:
                raise CRDiffError(f"method {name!r}: {error}") from error
            return METHODS.get(method.name) or method
    for form in FORMS:
        if name.startswith(form.starts):
            raise CRDiffError(
                f"method {name!r} is not understood: write {form.shape}, such as {form.example}; "
                f"K is from 0 to {K_MAX:g}, RATIO at least 0 and below 1"
            )
    raise CRDiffError(f"method {name!r} is not known: use one or more of {known_names()}")


def known_names() -> str:
    """All methods, and the forms of names with numbers, for help and errors."""
    return ", ".join([*METHODS, *(form.shape for form in FORMS)])
