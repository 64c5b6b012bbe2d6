"""Prompt files of every kind, and the sentences about bad ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from crdiff_ext.errors import CRDiffError
from harness.prompts import PromptSet, read_prompts


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_text_file(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "\ufeffa cat\n\n  a dog  \n")
    prompts = read_prompts(path)
    assert [(p.name, p.text) for p in prompts.prompts] == [
        ("prompt_0", "a cat"),
        ("prompt_1", "a dog"),
    ]
    assert prompts.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_csv_of_the_authors(tmp_path: Path) -> None:
    path = write(tmp_path, "p.csv", 'prompt_name,caption\nprompt_7,"a cat, a dog"\nx,b\n')
    assert [(p.name, p.text) for p in read_prompts(path).prompts] == [
        ("prompt_7", "a cat, a dog"),
        ("x", "b"),
    ]


def test_tsv_of_mlperf_keeps_quotation_marks(tmp_path: Path) -> None:
    path = write(tmp_path, "p.tsv", 'id\timage_id\tcaption\n70\t1\t"Hi" on a sign.\n')
    assert [p.text for p in read_prompts(path).prompts] == ['"Hi" on a sign.']


def test_limit_keeps_the_total(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, "p.txt", "a\nb\nc\n"), limit=2)
    assert (len(prompts.prompts), prompts.total) == (2, 3)


def test_texts_without_a_file() -> None:
    prompts = PromptSet.of_texts(["a", "b"], "made here")
    assert prompts.total == 2
    assert prompts.sha256 != PromptSet.of_texts(["a", "c"], "made here").sha256


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "\n \n", "has no prompts"),
        ("p.csv", "prompt_name,caption\n", "has no prompts"),
        ("p.csv", "a,b\n1,2\n", "no column named caption"),
        ("p.csv", "prompt_name,caption\nx,\n", "row 2"),
        ("p.csv", "prompt_name,caption\nx,a\nx,b\n", "two prompts"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(CRDiffError, match=said):
        read_prompts(write(tmp_path, name, text))


def test_missing_folder_and_binary(tmp_path: Path) -> None:
    with pytest.raises(CRDiffError, match="does not exist"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(CRDiffError, match="is a folder"):
        read_prompts(tmp_path)
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(CRDiffError, match="UTF-8"):
        read_prompts(tmp_path / "x.txt")
