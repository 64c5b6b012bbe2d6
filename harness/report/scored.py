"""scores.json of ``crdiff score`` on the page: every scorer's table, what was not run, and why."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report.source import Extra
from harness.report.text import by_size, image_name, interval, number

Metric = Mapping[str, Any]
Cell = Mapping[str, Any]


def is_stand_in(metric: Metric) -> bool:
    """Whether it is the embedded model's own score and none of the paper's metrics."""
    return "stand-in" in str(metric["what"]).lower() or metric["name"].startswith("embedded")


def scores_html(extras: Sequence[Extra]) -> str:
    """Protocol and reference, then the table, then where each metric comes from."""
    return "".join(_scores(extra) for extra in extras)


def _scores(extra: Extra) -> str:
    data = extra.data
    done = [metric for metric in data["metrics"] if metric["status"] == "done"]
    place = "" if extra.place == "." else f"<h3>{html.escape(extra.place)}</h3>"
    told = html.escape(f"{_protocol(data)} {_reference(data)}".strip())
    note = (
        "Below each value: the paired difference to dense at the same size and its 95 % interval, "
        "coloured where it excludes zero (not corrected for the number of comparisons); the share "
        "of images that score better than dense; the share on which the method is the best of all "
        "(ties split)."
    )
    table = _table(data, done) if done else ""
    small = f'<p class="small faint">{note}</p>' if done else ""
    return f"{place}<p>{told}</p>{small}{table}{_not_run(data)}{_origins(done)}"


def _protocol(data: Mapping[str, Any]) -> str:
    return f"Protocol {data['protocol']['name']}: {data['protocol']['what']}."


def _reference(data: Mapping[str, Any]) -> str:
    reference = data["reference"]
    if reference is None:
        return ""
    images = f", {reference['n']} images" if reference["n"] else ""
    return f"Reference: {reference['name']} ({reference['kind']}{images})."


def _table(data: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
    head = "".join(f"<th>{_head(metric)}</th>" for metric in metrics)
    body = ""
    for size, cells in by_size(data).items():
        body += (
            f'<tbody><tr class="size"><th colspan="{1 + len(metrics)}">{html.escape(size)}</th>'
            f"</tr>{''.join(_row(cell, metrics) for cell in cells)}</tbody>"
        )
    return (
        f'<div class="scroll"><table class="scores scored"><thead><tr><th>Method</th>{head}</tr>'
        f"</thead>{body}</table></div>"
    )


def _head(metric: Metric) -> str:
    arrow = "↑" if metric["higher_is_better"] else "↓"
    tag = '<br><span class="tag">stand-in, embedded model</span>' if is_stand_in(metric) else ""
    return f"{html.escape(metric['label'])}&nbsp;{arrow}{tag}"


def _row(cell: Cell, metrics: Sequence[Metric]) -> str:
    note = ""
    if cell["same_as"]:
        same = html.escape(cell["same_as"].partition("/")[2])
        note = f'<span class="delta">same images as {same}</span>'
    values = "".join(f"<td>{_value(cell, metric)}</td>" for metric in metrics)
    return f"<tr><th>{html.escape(image_name(cell))}{note}</th>{values}</tr>"


def _value(cell: Cell, metric: Metric) -> str:
    entry = cell["metrics"].get(metric["name"])
    if entry is None:
        return number(None)
    decimals, difference = metric["decimals"], entry["vs_dense"]
    lines = [f"n = {entry['n']}"]
    shown = ""
    if difference is not None and not cell["same_as"]:
        kind = _kind(difference, metric["higher_is_better"])
        words = html.escape(f"{interval(difference, decimals)}, n = {difference['n']}")
        shown = f'<span class="delta{kind}">{words}</span>'
        if entry["improved"]:
            lines.append(f"better than dense: {number(100 * entry['improved']['share'], 1)} %")
    if entry["best_share"] is not None:
        lines.append(f"best of all: {number(entry['best_share'], 1)} %")
    rest = "".join(f'<span class="delta">{line}</span>' for line in lines)
    return f"{number(entry['value'], decimals)}{shown}{rest}"


def _kind(difference: Mapping[str, float], higher_is_better: bool) -> str:
    side = (difference["low"] > 0) - (difference["high"] < 0)
    return {1: " good", -1: " bad", 0: ""}[side if higher_is_better else -side]


def _not_run(data: Mapping[str, Any]) -> str:
    lines = [
        f"<li>{html.escape(metric['label'])}: not run: {html.escape(metric['sentence'])}</li>"
        for metric in data["metrics"]
        if metric["status"] != "done"
    ]
    return f'<ul class="small">{"".join(lines)}</ul>' if lines else ""


def _origins(metrics: Sequence[Metric]) -> str:
    """What each metric is, its backbone, the SHA-256 of its weights."""
    items = ""
    for metric in metrics:
        origin = metric["provenance"] or {}
        words = [metric["what"]]
        words += [f"Compared with {own}."] if (own := metric.get("own_reference")) else []
        words += [f"Backbone: {origin['backbone']}."] if origin.get("backbone") else []
        words += [f"{name}: SHA-256 {sha}." for name, sha in origin.get("weights", {}).items()]
        items += f"<dt>{html.escape(metric['label'])}</dt><dd>{html.escape(' '.join(words))}</dd>"
    return f"<dl>{items}</dl>" if items else ""
