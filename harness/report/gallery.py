"""The images of a report: a row a case, dense first, its methods beside it, scores below."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from crdiff_ext.errors import CRDiffError
from harness.report.pairs import Case, Chosen, Group, choose
from harness.report.source import Row, Source
from harness.report.text import image_name, number, signed

SHOWN_SIDE = 168
"""CSS pixels of an image's longer side: equal for all sizes, so that contents can be compared."""
STORED_SIDE = 384
"""Larger images are scaled down to this longer side, to keep the page small."""
LOSSLESS_SIDE = 128
"""Up to this side images are inlined as they are (PNG), else as WebP."""
QUALITY = 88
Metrics = Sequence[Mapping[str, Any]]


def gallery_html(source: Source, pairs: int) -> str:
    """All sizes. Raises CRDiffError when a stored image can't be read."""
    assert source.results is not None
    metrics = [metric for metric in source.results["metrics"] if metric["per_image"]]
    chosen = choose(source, pairs)
    return _toolbar(chosen, metrics) + "".join(_size(source, one, metrics) for one in chosen)


def _size(source: Source, chosen: Chosen, metrics: Metrics) -> str:
    group = chosen.group
    copies = f"{'; '.join(group.copies)}. " if group.copies else ""
    base = image_name(group.base)
    said = (
        f"{copies}{len(chosen.cases)} of {chosen.total} prompts and seeds "
        f"({_pairs(group, len(chosen.cases))} of {_pairs(group, chosen.total)} pairs with "
        f"{base}): {chosen.rule}. {_encoding(group)}"
    )
    cases = "".join(_case(source.folder, case, group, metrics) for case in chosen.cases)
    return (
        f'<section class="size" data-size="{_quoted(group.size)}"><h3>{html.escape(group.size)}'
        f'</h3><p class="small faint">{html.escape(said)}</p>'
        f'<div class="cases">{cases}</div></section>'
    )


def _pairs(group: Group, cases: int) -> int:
    return cases * (len(group.cells) - 1)


def _encoding(group: Group) -> str:
    side = max(group.base["height"], group.base["width"])
    if side <= LOSSLESS_SIDE:
        return "Images are shown without loss."
    scaled = f", scaled down to {STORED_SIDE} pixels" if side > STORED_SIDE else ""
    return f"Images are shown as WebP of quality {QUALITY}{scaled}; the originals are in images/."


def _case(folder: Path, case: Case, group: Group, metrics: Metrics) -> str:
    some = next(iter(case.images.values()))
    figures = "".join(
        _figure(folder, case, cell, group, metrics)
        for cell in group.cells
        if cell["id"] in case.images
    )
    why = f" · {case.why}" if case.why else ""
    return (
        f'<article class="case" data-order="{case.order}"><h4 dir="auto">'
        f"{html.escape(some.caption) or '<i>empty prompt</i>'}</h4>"
        f'<p class="small faint">{html.escape(f"{some.name} · seed {some.seed}{why}")}</p>'
        f'<div class="row">{figures}</div></article>'
    )


def _figure(
    folder: Path, case: Case, cell: Mapping[str, Any], group: Group, metrics: Metrics
) -> str:
    row, base = case.images[cell["id"]], group.base["id"]
    differences = [case.difference(cell["id"], base, metric["name"]) for metric in metrics]
    scale = SHOWN_SIDE / max(cell["height"], cell["width"])
    width, height = round(cell["width"] * scale), round(cell["height"] * scale)
    name = image_name(cell)
    alt = f"{name}, {group.size}: {row.caption}"
    data = json.dumps([None if d is None else float(f"{d:.6g}") for d in differences])
    scores = "".join(
        _score(metric, row, difference)
        for metric, difference in zip(metrics, differences, strict=True)
        if metric["name"] in row.scores
    )
    return (
        f'<figure data-method="{_quoted(cell["method"])}" data-label="{_quoted(name)}" '
        f'data-differences="{_quoted(data)}">'
        f'<img src="{_data_uri(folder / row.file)}" width="{width}" height="{height}" '
        f'loading="lazy" decoding="async" alt="{_quoted(alt)}">'
        f"<figcaption><b>{html.escape(name)}</b>{scores}</figcaption></figure>"
    )


def _score(metric: Mapping[str, Any], row: Row, difference: float | None) -> str:
    decimals = metric["decimals"]
    shown = number(row.scores[metric["name"]], decimals)
    less = "" if difference is None else f"<i>{signed(round(difference, decimals), decimals)}</i>"
    return f"<span>{html.escape(metric['label'])} <b>{shown}</b> {less}</span>"


def _quoted(text: str) -> str:
    return html.escape(text, quote=True)


def _data_uri(path: Path) -> str:
    buffer = io.BytesIO()
    try:
        with Image.open(path) as stored:
            image = stored.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise CRDiffError(
            f"the stored image {path} cannot be read: delete it and run the same command again"
        ) from error
    if max(image.size) <= LOSSLESS_SIDE:
        kind = "png"
        image.save(buffer, format="PNG", optimize=True)
    else:
        kind = "webp"
        image.thumbnail((STORED_SIDE, STORED_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, format="WEBP", quality=QUALITY, method=4)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _toolbar(chosen: Sequence[Chosen], metrics: Metrics) -> str:
    """Filters and sorting; hidden until the script that serves them runs."""
    sizes = [(one.group.size, one.group.size) for one in chosen]
    methods = {c["method"]: c["label"] for one in chosen for c in one.group.cells[1:]}
    orders = [("", "prompt")] + [
        (str(i), f"difference in {metric['label']}") for i, metric in enumerate(metrics)
    ]
    directions = [("-1", "highest first"), ("1", "lowest first"), ("0", "largest first, any sign")]
    fields = _select("filter-size", "Size", [("", "all"), *sizes])
    fields += _select("filter-method", "Method", [("", "all"), *methods.items()])
    fields += _select("sort-by", "Sort by", orders)
    fields += _select("sort-way", "Order", directions)
    return (
        f'<form class="tools" hidden>{fields}<output class="small faint" aria-live="polite">'
        '</output></form><p class="small faint needs-script" hidden>Choose an image of a method to '
        "lay it over the dense one with a movable divider.</p>"
    )


def _select(name: str, label: str, options: Sequence[tuple[str, str]]) -> str:
    listed = "".join(
        f'<option value="{_quoted(value)}">{html.escape(words)}</option>'
        for value, words in options
    )
    return f'<label>{html.escape(label)} <select id="{name}">{listed}</select></label>'
