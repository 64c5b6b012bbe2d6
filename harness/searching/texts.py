"""Captions that judge and captions that confirm: apart from each other, and from the demo's."""

from __future__ import annotations

import random
from pathlib import Path

from crdiff_ext.errors import CRDiffError
from harness.embedded.scenes import caption, prompt_set
from harness.prompts import PromptSet, read_prompts


def embedded_texts(n: int) -> PromptSet:
    """The first ``n`` captions of the embedded model's search split. Raises CRDiffError."""
    try:
        specs = prompt_set("search", n)
    except ValueError as error:
        raise CRDiffError(f"{error}: lower --captions and --held-out") from error
    return PromptSet.of_texts(map(caption, specs), "the embedded model's search split")


def split_prompts(path: Path | None, search: int, held_out: int, seed: int) -> PromptSet:
    """``search + held_out`` prompts, the judging ones first: of a file, shuffled by ``seed``.

    Without a file they are the embedded model's. Raises CRDiffError.
    """
    if path is None:
        return embedded_texts(search + held_out)
    given = read_prompts(path)
    texts = list(dict.fromkeys(prompt.text for prompt in given.prompts))
    if len(texts) < search + held_out:
        raise CRDiffError(
            f"{path} has {len(texts)} different prompts, but {search} are to judge and {held_out} "
            "others to confirm: give more prompts, or lower --captions and --held-out"
        )
    random.Random(f"prompts/{seed}").shuffle(texts)
    return PromptSet.of_texts(texts[: search + held_out], given.source)
