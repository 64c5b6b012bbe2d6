"""Every error sentence follows one rule: lower case at the start, no full stop at the end."""

from __future__ import annotations

import ast
import re
from pathlib import Path

NAMES = ("CLIP", "CR-Diff", "FLUX", "LoRA", "SD", "Taylor", "UNet", "VAE")
"""What may stand first although it starts with a capital."""


def sentences(file: Path) -> list[ast.expr]:
    """The texts that the file gives to CRDiffError, and to the command line's own _fail."""
    calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    makers = ("CRDiffError", "_fail")
    return [c.args[0] for c in calls if getattr(c.func, "id", "") in makers and c.args]


def fixed(text: ast.expr, at: int) -> str:
    """The first (0) or last (-1) part of a literal, or nothing where that is a placeholder."""
    part = text.values[at] if isinstance(text, ast.JoinedStr) else text
    return part.value if isinstance(part, ast.Constant) else ""


def test_error_sentences_start_in_lower_case_and_have_no_full_stop(root: Path) -> None:
    files = [*(root / "crdiff_ext").rglob("*.py"), *(root / "harness").rglob("*.py")]
    found = [(file, text) for file in files for text in sentences(file)]
    assert len(found) > 100
    for file, text in found:
        where = f"{file.relative_to(root)}:{text.lineno}"
        start = fixed(text, 0)
        assert start.startswith(NAMES) or not re.match("[A-Z]", start), where
        assert not fixed(text, -1).rstrip().endswith("."), where
