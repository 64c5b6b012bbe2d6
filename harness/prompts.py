"""Prompt files: plain text, CSV of ``prompt_name,caption``, TSV with a ``caption`` column."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from crdiff_ext.errors import CRDiffError


@dataclass(frozen=True)
class Prompt:
    """One caption and the name it goes by in tables (unique within its set)."""

    name: str
    text: str


@dataclass(frozen=True)
class PromptSet:
    """Prompts in drawing order. ``sha256`` is of the file's bytes; without a file, of the texts."""

    prompts: tuple[Prompt, ...]
    source: str
    sha256: str
    total: int

    @classmethod
    def of_texts(cls, texts: Iterable[str], source: str) -> PromptSet:
        """A set made by code rather than read from a file."""
        texts = list(texts)
        digest = hashlib.sha256("\n".join(texts).encode()).hexdigest()
        return cls(_named(texts), source, digest, len(texts))


def read_prompts(path: Path, limit: int | None = None) -> PromptSet:
    """Read the first ``limit`` prompts of a .txt, .csv or .tsv file. Raises CRDiffError."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise CRDiffError(
            f"the prompts file {path} does not exist: give --prompts a .txt, .csv or .tsv file"
        ) from None
    except IsADirectoryError:
        raise CRDiffError(
            f"{path} is a folder: give --prompts a .txt, .csv or .tsv file in it"
        ) from None
    except UnicodeDecodeError:
        raise CRDiffError(f"the prompts file {path} is not UTF-8 text: save it as UTF-8") from None
    kind = path.suffix.lower()
    if kind == ".csv":
        prompts = _table(text, path, delimiter=",")
    elif kind == ".tsv":
        prompts = _table(text, path, delimiter="\t")
    else:
        prompts = _named([line.strip() for line in text.splitlines() if line.strip()])
    if not prompts:
        raise CRDiffError(f"the prompts file {path} has no prompts: write one on each line")
    digest = hashlib.sha256(data).hexdigest()
    return PromptSet(prompts[:limit], path.name, digest, len(prompts))


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
        prompts.append(Prompt(name, caption))
    return tuple(prompts)
