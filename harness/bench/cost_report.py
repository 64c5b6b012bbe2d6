"""The numbers of ``crdiff bench`` as a Markdown table, and both as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.store import write_atomically

MISSING = "–"


def save(result: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``cost-MODEL-SIZE.json`` and ``.md``. Raises CRDiffError when the disk is full."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in result["model"])
    stem = f"cost-{name}-{result['size']}"
    paths = (folder / f"{stem}.json", folder / f"{stem}.md")
    write_atomically(paths[0], (json.dumps(result, indent=2) + "\n").encode())
    write_atomically(paths[1], (markdown(result) + "\n").encode())
    return paths


def markdown(result: dict[str, Any]) -> str:
    """Title, what it was measured on, the table, and what to know about it."""
    images = any(entry["image_ratio"] is not None for entry in result["modes"])
    vram = any(entry["vram_mb"] is not None for entry in result["modes"])
    head = ["mode", "UNet call, × dense", "[quartiles]", "seconds a call"]
    head += ["image, × dense", "[quartiles]", "seconds an image"] if images else []
    head += ["peak memory, MiB", *(["peak VRAM, MiB"] if vram else [])]
    head += ["of it copies, MiB", "making copies, s", "planning, s"]
    rows = [_row(entry, images, vram) for entry in result["modes"]]
    lines = [
        f"# What CR-Diff costs: {result['model']} at {result['size']}",
        "",
        *_facts(result),
        "",
        _line(head),
        _line(["---", *["---:"] * (len(head) - 1)]),
        *map(_line, rows),
        "",
        *(f"- **{entry['mode']}**: {entry['what']}." for entry in result["modes"]),
        *(f"- {skipped['reason']}." for skipped in result["skipped"]),
        *_planning(result["planning"]),
    ]
    return "\n".join(lines)


def _facts(result: dict[str, Any]) -> list[str]:
    machine = result["environment"]
    versions = machine["packages"]
    where = machine["gpu"] or f"{machine['processor']} ({machine['cores']} cores)"
    ratios = " / ".join(f"{ratio:g}" for ratio in result["ratios"].values())
    return [
        f"{where}, {machine['threads']} thread{'s' if machine['threads'] > 1 else ''}, "
        f"{machine['system']}; Python {machine['python']}, torch {versions['torch']}, diffusers "
        f"{versions['diffusers']}. {result['dtype']}, batch {result['batch']} a UNet call, ratios "
        f"{ratios}, k = {result['k']:g}. {result['rounds']} rounds in turns, each ratio to dense "
        f"in the same round: median and quartiles. Seconds are of {result['clock']}. Memory: "
        f"{result['memory']}; it holds Python, the libraries and the model, and was taken with "
        "the copies in place. A period of reuse-N is one call with a dense pass and N − 1 without. "
        f"Memory mode `auto` would choose {result['auto_memory']} here.",
    ]


def _row(entry: dict[str, Any], images: bool, vram: bool) -> list[str]:
    cells = [entry["mode"], *_ratio(entry["time_ratio_spread"]), _number(entry["call_seconds"], 4)]
    if images:
        cells += [*_ratio(entry["image_ratio_spread"]), _number(entry["image_seconds"], 3)]
    cells.append(_number(entry["peak_mb"], 0))
    if vram:
        cells.append(_number(entry["vram_mb"], 0))
    cells += [
        _number(entry["copies_mb"], 1),
        _number(entry["setup_seconds"], 4),
        _number(entry["planning_seconds"], 3),
    ]
    return cells


def _ratio(spread: dict[str, Any] | None) -> list[str]:
    """Median and quartiles; a single measurement has none."""
    if spread is None:
        return [MISSING, MISSING]
    quartiles = f"[{spread['q1']:.3f}, {spread['q3']:.3f}]"
    return [f"{spread['median']:.3f}", quartiles if spread["rounds"] > 1 else "one call"]


def _planning(planning: dict[str, dict[str, Any]]) -> list[str]:
    names = {"counting": "Planning", "kthvalue": "Planning with kthvalue (two-unets)"}
    lines = []
    for way, numbers in planning.items():
        if numbers["seconds"] is None:
            lines.append(f"- {names[way]}: {numbers['note']}.")
            continue
        note = f"; {numbers['note']}" if numbers.get("note") else ""
        lines.append(
            f"- {names[way]}: {numbers['seconds']:.3f} s for {numbers['weights'] / 1e6:.1f} M "
            f"weights, {_number(numbers['extra_mb'], 0)} MiB at its peak beside the model{note}."
        )
    return lines


def _number(value: float | None, decimals: int) -> str:
    return MISSING if value is None else f"{value:,.{decimals}f}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
