"""A CLIP tokenizer whose byte-pair merges are learned from the grammar's captions."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from harness.embedded.architecture import TEXT_POSITIONS
from harness.embedded.scenes import all_specs, caption

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"


def _learn_merges(words: Counter[str]) -> list[tuple[str, str]]:
    """Plain byte-pair encoding until every word is one token; ties go to the larger pair."""
    pieces = {word: [*word[:-1], word[-1] + _WORD_END] for word in words}
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
    """Writes vocab.json and merges.txt to ``folder`` and loads them as a CLIPTokenizer."""
    words = Counter(word for spec in all_specs() for word in caption(spec).split())
    merges = _learn_merges(words)
    alphabet = list(bytes_to_unicode().values())
    vocabulary = [*alphabet, *(c + _WORD_END for c in alphabet), *map("".join, merges)]
    vocabulary += [_START, _END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}))
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "model_max_length": TEXT_POSITIONS,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return CLIPTokenizer.from_pretrained(str(folder))
