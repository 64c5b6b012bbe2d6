"""A CLIP tokenizer whose byte-pair merges are learned from the grammar's captions."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer

from harness.clip_vocabulary import END, START, WORD_END, byte_letters, write_clip_tokenizer
from harness.embedded.architecture import TEXT_POSITIONS
from harness.embedded.scenes import all_specs, caption


def _learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Plain byte-pair encoding until every word is one token; ties go to the larger pair."""
    pieces = {word: [*word[:-1], word[-1] + WORD_END] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = max(sorted(pairs), key=pairs.__getitem__)
        merges.append(best)
        for word, parts in pieces.items():
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == best:
                    merged[-1] += part
                else:
                    merged.append(part)
            pieces[word] = merged


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Writes the vocabulary and merges to ``folder`` and loads them as a CLIPTokenizer."""
    words = Counter(word for spec in all_specs() for word in caption(spec).split())
    merges = _learn_merges(words)
    alphabet = byte_letters()
    tokens = [*alphabet, *(c + WORD_END for c in alphabet), *map("".join, merges), START, END]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    write_clip_tokenizer(folder, (vocabulary, list(map(" ".join, merges))), TEXT_POSITIONS)
    return CLIPTokenizer.from_pretrained(str(folder))
