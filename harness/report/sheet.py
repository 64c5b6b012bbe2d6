"""demo.png: a labelled contact sheet, the same captions side by side in every method."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from harness.config import Size
from harness.experiment import Experiment
from harness.plan import Cell
from harness.store import write_atomically

CAPTIONS = 2
TILE = 128
GAP = 10
HEAD = 34
SIDE = 190
INK, PAPER, FAINT = (28, 30, 34), (255, 255, 255), (106, 112, 122)


def write_sheet(experiment: Experiment, path: Path, captions: int = CAPTIONS) -> None:
    """Write the sheet: rows are sizes times the first captions, columns are methods."""
    methods = list(dict.fromkeys(cell.method.name for cell in experiment.cells))
    labels = {cell.method.name: cell.method.label for cell in experiment.cells}
    sizes = list(dict.fromkeys(cell.size for cell in experiment.cells))
    rows = [(size, n) for size in sizes for n in range(min(captions, len(experiment.plan.prompts)))]
    heights = [_tile(size)[1] + GAP for size, _ in rows]
    width = SIDE + len(methods) * (TILE + GAP) + GAP
    sheet = Image.new("RGB", (width, HEAD + sum(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    bold, plain = ImageFont.load_default(15), ImageFont.load_default(13)
    for column, name in enumerate(methods):
        draw.text((SIDE + column * (TILE + GAP), 10), labels[name], INK, bold)
    cells = {(cell.size, cell.method.name): cell for cell in experiment.cells}
    top = HEAD
    for (size, prompt), height in zip(rows, heights, strict=True):
        forced = any(cell.forced for cell in cells.values() if cell.size == size)
        draw.text((GAP, top), f"{size}{_native(experiment, size, forced)}", INK, bold)
        text = _wrap(experiment.plan.prompts[prompt].text, 24)
        draw.multiline_text((GAP, top + 22), text, FAINT, plain, spacing=4)
        for column, name in enumerate(methods):
            left = SIDE + column * (TILE + GAP)
            cell = cells[size, name]
            if same := experiment.plan.same_as(cell):
                note = f"the same image\nas {labels[same.partition('/')[2]]}"
                draw.multiline_text((left, top + 22), note, FAINT, plain, spacing=4)
            else:
                sheet.paste(_image(experiment, cell, prompt), (left, top))
        top += height
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())


def _tile(size: Size) -> tuple[int, int]:
    """(width, height) at which an image is shown: longer side 128."""
    scale = TILE / max(size)
    return round(size.width * scale), round(size.height * scale)


def _native(experiment: Experiment, size: Size, forced: bool) -> str:
    """Marks the native size, where CR-Diff acts only when it is told to."""
    if tuple(size) != tuple(experiment.family.native or ()):
        return ""
    return " (native, forced)" if forced else " (native)"


def _image(experiment: Experiment, cell: Cell, prompt: int) -> Image.Image:
    image = experiment.store.load(experiment.plan.items(cell)[prompt].key)
    return image.resize(_tile(cell.size), Image.Resampling.LANCZOS)


def _wrap(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)
