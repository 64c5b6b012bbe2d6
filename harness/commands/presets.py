"""Stored ratios: list, show, export, import.

Your entries lie over those that ship. They are kept in the file that --file or $CRDIFF_PRESETS
names, else in crdiff/presets.json in your configuration folder. Sizes are height x width.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crdiff_ext.errors import CRDiffError
from crdiff_ext.presets import (
    Preset,
    builtin_presets,
    export_presets,
    import_presets,
    load_presets,
    merge,
    save_presets,
)
from harness.config import Size
from harness.user_presets import presets_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="one line for each entry")
    show = actions.add_parser("show", help="entries with their provenance")
    export = actions.add_parser("export", help="write entries to a file that import reads")
    export.add_argument("target", metavar="FILE", help="- for standard output")
    export.add_argument("--mine", action="store_true", help="only your own entries")
    for action in (listing, show, export):
        action.add_argument("--family", help="such as sdxl, as `crdiff inspect` prints it")
        action.add_argument("--size", metavar="HxW")
    for action in (listing, show):
        action.add_argument("--json", action="store_true", help="print JSON")
    importing = actions.add_parser("import", help="add a file's entries to yours")
    importing.add_argument("source", metavar="FILE", help="- for standard input")
    for action in (listing, show, export, importing):
        action.add_argument("--file", type=Path, help="your presets file")


def run(args: argparse.Namespace) -> int:
    mine = load_presets(presets_path(args.file), missing_ok=True)
    if args.action == "import":
        return _import(args, mine)
    own = {preset.key for preset in mine}
    everything = mine if args.action == "export" and args.mine else merge(mine, builtin_presets())
    chosen = _filtered(everything, args.family, args.size)
    if args.action == "export":
        return _export(args.target, chosen, presets_path(args.file))
    if args.json:
        rows = [preset.to_dict() | {"mine": preset.key in own} for preset in chosen]
        print(json.dumps(rows, indent=2))
    elif args.action == "list":
        _list(chosen, own)
    else:
        for preset in chosen:
            _show(preset, preset.key in own)
    return 0


def _filtered(presets: Iterable[Preset], family: str | None, size: str | None) -> list[Preset]:
    """The entries of a family and a size. Raises CRDiffError when there are none."""
    wanted = Size.parse(size) if size else None
    chosen = [
        preset
        for preset in presets
        if family in (None, preset.family) and wanted in (None, (preset.height, preset.width))
    ]
    if not chosen:
        asked = " ".join(str(part) for part in (family, wanted) if part) or "anything"
        raise CRDiffError(
            f"there are no stored ratios for {asked}: `crdiff presets list` shows what there is, "
            "`crdiff search` finds new ones"
        )
    return chosen


def _list(presets: list[Preset], own: set[Any]) -> None:
    rows = [("family", "size", "down / mid / up", "k", "whose", "source")]
    rows += [
        (
            f"{preset.family} {preset.checkpoint}".rstrip(),
            str(Size(preset.height, preset.width)),
            str(preset.ratios),
            f"{preset.k:g}",
            _whose(preset.key in own),
            preset.source,
        )
        for preset in presets
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip())


def _show(preset: Preset, is_mine: bool) -> None:
    print(f"{preset.family} {Size(preset.height, preset.width)} ({_whose(is_mine)})")
    details = {
        "ratios": f"{preset.ratios} (down / mid / up)",
        "k": f"{preset.k:g}",
        "source": preset.source,
        "model": preset.model,
        **({"checkpoint": preset.checkpoint} if preset.checkpoint else {}),
        **preset.provenance,
    }
    for name, value in details.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"  {name}: {text}")


def _whose(is_mine: bool) -> str:
    return "yours" if is_mine else "built in"


def _export(target: str, presets: list[Preset], mine: Path) -> int:
    """Write ``presets``, but not over the user's own file: that would change what it holds."""
    if target == "-":
        sys.stdout.write(export_presets(presets))
        return 0
    # resolve() follows links; samefile also knows another spelling and hard links
    path, own = Path(target), mine.exists()
    if path.resolve() == mine.resolve() or (own and path.exists() and path.samefile(mine)):
        raise CRDiffError(f"{path} is where your own entries are kept: export to another file")
    save_presets(path, presets)
    print(f"{len(presets)} entries written to {path}.")
    return 0


def _import(args: argparse.Namespace, mine: list[Preset]) -> int:
    """Add a file's entries; an entry of the same family and size replaces the one there was."""
    if args.source == "-":
        try:
            new = import_presets(sys.stdin.read())
        except CRDiffError as error:
            raise CRDiffError(f"standard input is not a presets file: {error}") from error
    else:
        new = load_presets(args.source)
    before = {preset.key: preset for preset in mine}
    path = presets_path(args.file)
    save_presets(path, merge(new, mine))
    replaced = [p for p in new if p.key in before and before[p.key] != p]
    added = sum(preset.key not in before for preset in new)
    print(f"{added} added, {len(replaced)} replaced, {len(new)} in all, in {path}.")
    for preset in replaced:
        was = before[preset.key].ratios
        size = Size(preset.height, preset.width)
        print(f"  {preset.family} {size}: was {was}, is {preset.ratios}")
    return 0
