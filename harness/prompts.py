"""Prompt files, told apart by their ending.

``.txt`` one prompt a line; ``.csv`` with columns ``prompt_name,caption``; ``.tsv`` with a column
``caption`` (MLPerf's 5 000 captions of COCO have ``image_id`` beside it); ``.json`` COCO's own
captions file, of which the authors' sample is drawn (:mod:`harness.coco`).
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from crdiff_ext.errors import CRDiffError
from harness.coco import VAL2014_SHA256, authors_sample, file_name

KINDS = ".txt, .csv, .tsv or COCO .json"


@dataclass(frozen=True)
class Prompt:
    """One caption and the name it goes by in tables (unique within its set).

    ``image_id``: the COCO image that it describes, where the file says so.
    """

    name: str
    text: str
    image_id: int | None = None


@dataclass(frozen=True)
class PromptSet:
    """Prompts in drawing order. ``sha256`` is of the file's bytes; without a file, of the texts.

    ``note`` is one sentence about the file that belongs into every result, or empty.
    """

    prompts: tuple[Prompt, ...]
    source: str
    sha256: str
    total: int
    note: str = ""

    @classmethod
    def of_texts(cls, texts: Iterable[str], source: str) -> PromptSet:
        """A set made by code rather than read from a file."""
        texts = list(texts)
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        return cls(_named(texts), source, digest, len(texts))


def read_prompts(path: Path, limit: int | None = None, references: Path | None = None) -> PromptSet:
    """Read the first ``limit`` prompts of a file. Raises CRDiffError.

    ``references``: a folder with COCO's images; an image that it lacks is passed over as in the
    authors' code.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise CRDiffError(
            f"the prompts file {path} does not exist: give --prompts a {KINDS} file"
        ) from None
    except IsADirectoryError:
        raise CRDiffError(f"{path} is a folder: give --prompts a {KINDS} file in it") from None
    except UnicodeDecodeError:
        raise CRDiffError(f"the prompts file {path} is not UTF-8 text: save it as UTF-8") from None
    digest = hashlib.sha256(data).hexdigest()
    kind = path.suffix.lower()
    note = ""
    if kind == ".csv":
        prompts = _table(text, path, delimiter=",")
    elif kind == ".tsv":
        prompts = _table(text, path, delimiter="\t")
    elif kind == ".json":
        prompts, note = _coco(text, digest, references)
    else:
        prompts = _named([line.strip() for line in text.splitlines() if line.strip()])
    if not prompts:
        raise CRDiffError(f"the prompts file {path} has no prompts: write one on each line")
    return PromptSet(prompts[:limit], path.name, digest, len(prompts), note)


def _coco(text: str, digest: str, references: Path | None) -> tuple[tuple[Prompt, ...], str]:
    """The authors' 5 000 captions, ``prompt_{i}`` in the order of their sample, and a note."""
    chosen = authors_sample(text)
    note = (
        "The prompts are the authors' sample of the official captions_val2014.json (its SHA-256 "
        "is the recorded one)."
        if digest == VAL2014_SHA256
        else "The prompts are drawn as the authors draw theirs, but from a file whose SHA-256 is "
        f"not that of the official captions_val2014.json ({VAL2014_SHA256[:12]}...): the captions "
        "may not be the authors'."
    )
    there = {file.name for file in references.iterdir()} if _is_folder(references) else set()
    missing = sum(file_name(row.image_id) not in there for row in chosen)
    if 0 < missing < len(chosen):  # all missing: a folder of something else
        chosen = authors_sample(text, present=lambda image_id: file_name(image_id) in there)
        note += f" {missing} images are not in the folder of references and were passed over."
    named = (Prompt(f"prompt_{i}", row.text, row.image_id) for i, row in enumerate(chosen))
    return tuple(named), note


def _is_folder(path: Path | None) -> TypeGuard[Path]:
    return path is not None and path.is_dir()


def _named(texts: list[str]) -> tuple[Prompt, ...]:
    """``prompt_0``, ``prompt_1``, ...: the names that the authors' evaluation uses."""
    return tuple(Prompt(f"prompt_{i}", text) for i, text in enumerate(texts))


def _table(text: str, path: Path, delimiter: str) -> tuple[Prompt, ...]:
    """Rows of a table with a header that has ``caption`` (or ``prompt``), maybe ``prompt_name``."""
    # In TSV a quotation mark is a character like any other (MLPerf's captions have them).
    stream = io.StringIO(text)
    try:
        rows = list(
            csv.DictReader(stream, delimiter=delimiter, quoting=csv.QUOTE_NONE)
            if delimiter == "\t"
            else csv.DictReader(stream, delimiter=delimiter)
        )
    except csv.Error as error:
        raise CRDiffError(f"the prompts file {path} is not a readable table: {error}") from None
    columns = rows[0].keys() if rows else ()
    column = next((name for name in ("caption", "prompt") if name in columns), None)
    if rows and column is None:
        raise CRDiffError(
            f"the prompts file {path} has no column named caption: "
            "its first line must name the columns, such as prompt_name,caption"
        )
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, row in enumerate(rows):
        caption = (row.get(column or "") or "").strip()
        if not caption:
            raise CRDiffError(f"row {number + 2} of the prompts file {path} has no caption")
        name = (row.get("prompt_name") or "").strip() or f"prompt_{number}"
        if name in seen:
            raise CRDiffError(f"the prompts file {path} names two prompts {name!r}: rename one")
        seen.add(name)
        image = (row.get("image_id") or "").strip()
        prompts.append(Prompt(name, caption, int(image) if image.isdecimal() else None))
    return tuple(prompts)
