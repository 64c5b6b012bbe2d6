"""Family, native size, decision and sparsity of a checkpoint, without loading it.

Reads safetensors files of either layout, diffusers folders, and hub models. Layers are named as
in diffusers, so the same weights give the same numbers and hash in either layout. Sizes are
height x width.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from crdiff_ext.decide import Decision
from crdiff_ext.settings import Ratios
from harness.config import Size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="file, diffusers folder or hub id")
    add("--size", metavar="HxW", help="size to decide for (default: the native one)")
    add(
        "--ratios",
        metavar="D/M/U",
        help="ratios for down/mid/up, such as 0.3/0.2/0.25, or one for all of them, as SD3 and "
        "FLUX need it (default: those of the decision)",
    )
    add("--k", type=float, help="amplification, 0 to 3 (default: the stored ratios' own, else 1.5)")
    add("--prediction", metavar="TYPE", help="epsilon or v_prediction, if the file does not say")
    add("--presets", type=Path, metavar="FILE", help="your stored ratios (default: see presets)")
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from harness.inspection import inspect_checkpoint

    size = Size.parse(args.size) if args.size else None
    ratios = Ratios.parse(args.ratios) if args.ratios else None
    found = inspect_checkpoint(
        args.checkpoint, size, ratios, k=args.k, prediction=args.prediction, presets=args.presets
    )
    print(json.dumps(found.to_dict(), indent=2) if args.json else "\n".join(_lines(found)))
    return 0


def _lines(found: Any) -> list[str]:
    family = found.family
    native = Size(*family.native) if family.native else "not known"
    head = {
        "checkpoint": f"{found.checkpoint.path} ({found.layout}, {found.dtype})",
        "family": f"{family.label} ({family.name})",
        "native size": native,
        "size": found.size or "not known",
        "decision": _decision(found.decision),
    }
    if found.ratios is not None:
        said = f"{found.ratios} (down / mid / up)"
        if family.is_dit:
            said = f"{found.ratios.shared:g} (one for all layers)"
        head["ratios"] = f"{said}, k = {found.decision.k:g}"
        if not found.decision.act and family.name != "unknown":
            head["note"] = "that is Auto's decision; `crdiff run` with these ratios acts anyway"
    lines = [f"{name:<12} {value}" for name, value in head.items()]
    # A transformer's layers in the order of its blocks; a UNet's groups are in order.
    names = sorted(found.groups, key=_in_order) if family.is_dit else list(found.groups)
    width = max(len(name) for name in names)
    first = "layer" if family.is_dit else "group"
    lines += ["", _row(width, first, "layers", "weights", "threshold", "pruned", "share")]
    lines += [_group_line(width, name, found.groups[name]) for name in names]
    sums = {
        key: sum(group[key] for group in found.groups.values())
        for key in ("layers", "total", "pruned")
    }
    return [*lines, _group_line(width, "all", sums | {"threshold": ""})]


def _in_order(name: str) -> list[str]:
    return [part.zfill(6) if part.isdigit() else part for part in name.split(".")]


def _decision(decision: Decision) -> str:
    return f"{'act' if decision.act else 'do not act'}: {decision.sentence}"


def _group_line(width: int, name: str, group: dict[str, Any]) -> str:
    threshold = group["threshold"]
    if not isinstance(threshold, str):
        threshold = "left alone" if threshold is None else f"{threshold:.6g}"
    share = group["pruned"] / group["total"] if group["total"] else 0.0
    total, pruned = f"{group['total']:,}", f"{group['pruned']:,}"
    return _row(width, name, str(group["layers"]), total, threshold, pruned, f"{share:.1%}")


def _row(
    wide: int, name: str, layers: str, total: str, threshold: str, pruned: str, share: str
) -> str:
    return f"{name:<{max(6, wide + 1)}}{layers:>8}{total:>16}{threshold:>14}{pruned:>16}{share:>8}"
