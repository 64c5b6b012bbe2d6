"""Run by a test in a fresh interpreter: import the core as a WebUI does, then use it.

A host puts the extension's folder on sys.path while it loads the script and takes it away after.
From then on, this refuses every import of something that is not loaded yet and is ours.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch


class Refuse:
    """A finder in front of all others that lets nothing of the extension be imported any more."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] == "crdiff_ext":
            raise ImportError(f"{name} was imported after the host restored sys.path")
        return None


def main(extension: Path) -> None:
    sys.path.insert(0, str(extension))
    package = importlib.import_module("crdiff_ext")
    names = [path.stem for path in (extension / "crdiff_ext").glob("*.py")]
    core = {name: importlib.import_module(f"crdiff_ext.{name}") for name in names}
    sys.path.remove(str(extension))
    sys.meta_path.insert(0, Refuse)

    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    weights = core["blocks"].prunable_parameters({layer: torch.arange(1.0, 65.0).reshape(8, 8)})
    ratios = core["settings"].Ratios.parse("0.25/0/0")
    plan = core["pruning"].make_plan(weights, ratios)
    pruned = core["pruning"].report(weights, plan)
    assert pruned.groups["down"].pruned == 16, pruned
    assert core["presets"].builtin_presets(), "no presets beside the code"
    print(package.__file__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
