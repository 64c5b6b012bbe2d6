"""The verdict of a comparison in plain words, computed from the intervals and from nothing else.

Only a difference whose interval excludes zero *after correction for the number of comparisons*
(Bonferroni) is called a gain or a loss. What excludes zero before that is counted beside the count
that luck alone would give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.stats import LEVEL, Interval

Verdict = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """One metric of one cell against dense at the same size."""

    size: str
    label: str
    interval: Interval
    higher_is_better: bool

    def direction(self, level: float) -> int:
        """1: better than dense, -1: worse, 0: the interval at ``level`` includes zero."""
        side = self.interval.side_at(level)
        return side if self.higher_is_better else -side


def comparisons(results: Mapping[str, Any], method: str, native: bool) -> list[Comparison]:
    """A method's comparisons with dense, at the native size or at all others.

    Cells that show dense's own images are left out: there is nothing to compare.
    """
    metrics = {metric["name"]: metric for metric in results["metrics"]}
    found = []
    for cell in results["cells"]:
        at_native = [cell["height"], cell["width"]] == results["model"]["native"]
        if cell["method"] != method or at_native != native or cell["same_as"]:
            continue
        size = f"{cell['height']}x{cell['width']}"
        for name, entry in cell["metrics"].items():
            if entry["vs_dense"] is not None:
                metric = metrics[name]
                interval = Interval(**entry["vs_dense"])
                found.append(
                    Comparison(size, metric["label"], interval, metric["higher_is_better"])
                )
    return found


def sort_out(found: Sequence[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """(gains, losses) that are left after the correction for ``len(found)`` comparisons."""
    level = 1 - (1 - LEVEL) / max(1, len(found))
    sides = [(comparison, comparison.direction(level)) for comparison in found]
    return [c for c, side in sides if side > 0], [c for c, side in sides if side < 0]


def judge(results: Mapping[str, Any], method: str = "crdiff") -> Verdict:
    """{"headline": one sentence, "sentences": what it rests on}."""
    unseen = comparisons(results, method, native=False)
    gains, losses = sort_out(unseen)
    sentences = [_outcome("CR-Diff", "the unseen sizes", unseen)] if unseen else []
    sentences += _inactive(results, method)
    for name, subject in (("pruned", "Pruned only (k = 1)"), ("native-resize", "Native, resized")):
        others = comparisons(results, name, native=False)
        if others:
            sentences.append(_outcome(subject, "the unseen sizes", others))
    at_native = comparisons(results, method, native=True)
    if at_native:
        sentences.append(_outcome("CR-Diff", "the native size", at_native))
    cost = _cost(results, method)
    return {"headline": _headline(unseen, gains, losses), "sentences": sentences + cost}


def _headline(
    found: Sequence[Comparison], gains: Sequence[Comparison], losses: Sequence[Comparison]
) -> str:
    if not found:
        return "CR-Diff was not active at any unseen size: there is nothing to judge."
    if gains and losses:
        return f"Mixed: CR-Diff gained at {_list(gains)}, and lost at {_list(losses)}."
    if gains:
        return (
            f"CR-Diff gained significantly at {_list(gains)} "
            f"({len(gains)} of {len(found)} comparisons at unseen sizes)."
        )
    if losses:
        return f"No significant gain from CR-Diff on this model, and a loss at {_list(losses)}."
    return "No significant gain from CR-Diff on this model, at any unseen size, in any score."


def _outcome(subject: str, where: str, found: Sequence[Comparison]) -> str:
    """What a method's comparisons say, corrected and uncorrected."""
    gains, losses = sort_out(found)
    better = sum(comparison.direction(LEVEL) > 0 for comparison in found)
    worse = sum(comparison.direction(LEVEL) < 0 for comparison in found)
    parts = [f"better than dense at {_list(gains)}"] if gains else []
    parts += [f"worse than dense at {_list(losses)}"] if losses else []
    said = " and ".join(parts) if parts else "no significant difference to dense in any score"
    verb = "is" if parts else "shows"
    chance = len(found) * (1 - LEVEL)
    return (
        f"{subject} at {where} {verb} {said} ({len(found)} comparisons, corrected for their "
        f"number). Uncorrected, {better} of the {len(found)} 95 % intervals lie on the better side "
        f"of zero and {worse} on the worse; luck alone would put about {chance:.1f} outside."
    )


def _inactive(results: Mapping[str, Any], method: str) -> list[str]:
    return [
        f"At {cell['height']}x{cell['width']} CR-Diff drew nothing of its own: "
        f"{cell['decision']['sentence']}"
        for cell in results["cells"]
        if cell["method"] == method and cell["same_as"] and not cell["decision"]["act"]
    ]


def _cost(results: Mapping[str, Any], method: str) -> list[str]:
    """How much longer an image takes, over all sizes at which the method drew its own."""
    by_id = {cell["id"]: cell for cell in results["cells"]}
    pairs = []
    for cell in results["cells"]:
        dense = by_id.get(f"{cell['height']}x{cell['width']}/dense")
        if cell["method"] == method and not cell["same_as"] and dense:
            pairs.append((cell["seconds_per_image"], dense["seconds_per_image"]))
    if not pairs or not all(a and b for a, b in pairs):
        return []
    ratio = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    return [f"An image with CR-Diff took {ratio:.2f} times as long as a dense one."]


def _list(items: Sequence[Comparison]) -> str:
    """Such as ``64x64 (caption check: facts) and 96x128 (embedded reward)``."""
    sizes: dict[str, list[str]] = {}
    for item in items:
        sizes.setdefault(item.size, []).append(item.label)
    words = [f"{size} ({', '.join(labels)})" for size, labels in sizes.items()]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
