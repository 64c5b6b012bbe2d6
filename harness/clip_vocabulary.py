"""CLIP's tokenizer as files that transformers reads, made from the vocabulary open_clip brings.

Single-file checkpoints hold no vocabulary, and the hub's copy needs a network. All of Stable
Diffusion's text encoders use the same 49,408 tokens: 256 bytes, 256 bytes that end a word, 48,894
merges, start and end.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from crdiff_ext.errors import CRDiffError
from harness.store import write_atomically

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_MERGES = 49408 - 2 * 256 - 2
_ARCHIVE = "bpe_simple_vocab_16e6.txt.gz"


def openai_vocabulary() -> tuple[dict[str, int], list[str]]:
    """Token -> id, and the merges ("a b") in order. Raises CRDiffError without open_clip."""
    try:
        text = gzip.decompress(_archive().read_bytes()).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CRDiffError(
            f"CLIP's vocabulary in open_clip cannot be read ({error}): reinstall open_clip_torch"
        ) from error
    merges = text.split("\n")[1 : _MERGES + 1]
    alphabet = byte_letters()
    tokens = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    tokens += ["".join(merge.split()) for merge in merges]
    tokens += [START, END]
    return {token: number for number, token in enumerate(tokens)}, merges


def _archive() -> Path:
    # Looked up without importing: importing open_clip takes seconds.
    spec = importlib.util.find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise CRDiffError(
            "a single-file checkpoint needs CLIP's vocabulary from the package open_clip_torch: "
            "install it, or give --config a diffusers folder of the same model"
        )
    return Path(spec.submodule_search_locations[0]) / _ARCHIVE


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte, in GPT-2's order: printable bytes first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = len(set(range(256)) - set(printable))
    return [chr(code) for code in printable] + [chr(256 + number) for number in range(others)]


def write_clip_tokenizer(
    folder: Path,
    vocabulary: tuple[Mapping[str, int], Sequence[str]],
    length: int = 77,
    specials: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the files of a CLIPTokenizer as transformers 4 and 5 read them; returns their paths.

    ``specials`` overrides bos, eos, unk and pad tokens. OpenCLIP's encoders pad with "!", id 0; a
    "!" in a prompt then becomes that token, which OpenCLIP's own tokenizer does not do. The
    published folders of SD2 and SDXL have the same quirk, and it is kept: a single file and a
    folder of one model draw alike.
    """
    tokens, merges = vocabulary
    named = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    named |= specials or {}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **named}
    texts = {
        "vocab.json": json.dumps(tokens, ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": json.dumps(settings, indent=2),
        "special_tokens_map.json": json.dumps(named, indent=2),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in texts]
