"""The authors' sample of COCO, against an implementation of its own; MLPerf's table."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from crdiff_ext.errors import CRDiffError
from harness import coco, prompts
from harness.coco import authors_sample, file_name
from harness.prompts import read_prompts

IMAGES = 40


def annotations() -> list[dict]:
    """Captions of images in no order, a few each, with extra keys and newlines as in COCO."""
    made = random.Random(3)
    ids = made.sample(range(1, 600_000), IMAGES)
    rows = [
        {"image_id": i, "id": made.randrange(10**6), "caption": f" Image {i}, caption {j}.\n"}
        for i in ids
        for j in range(made.randint(1, 6))
    ]
    made.shuffle(rows)
    return rows


def straightforward(rows: list[dict], count: int, missing: set[int]) -> list[tuple[int, str]]:
    """The recipe written down naively, on the module's own global generator."""
    state = random.getstate()
    try:
        order = []
        for row in rows:
            if row["image_id"] not in order:
                order.append(row["image_id"])
        random.seed(42)
        chosen = []
        for image_id in random.sample(order, count):
            if image_id in missing:
                continue
            texts = [row["caption"] for row in rows if row["image_id"] == image_id]
            chosen.append((image_id, random.choice(texts).strip()))
        return chosen
    finally:
        random.setstate(state)


@pytest.mark.parametrize("count", [1, 7, IMAGES])
def test_sample_is_the_authors(count: int) -> None:
    rows = annotations()
    text = json.dumps({"info": {}, "annotations": rows})
    assert authors_sample(text, count) == straightforward(rows, count, set())


def test_a_missing_image_is_passed_over_without_drawing() -> None:
    rows = annotations()
    text = json.dumps({"annotations": rows})
    gone = authors_sample(text, 20)[4].image_id
    found = authors_sample(text, 20, present=lambda image_id: image_id != gone)
    assert found == straightforward(rows, 20, {gone})
    assert len(found) == 19
    everything = authors_sample(text, 20)
    later = [pair for pair in everything if pair.image_id != gone]
    assert found != later  # what comes after it draws other captions
    assert found[:4] == later[:4]


def test_sampling_leaves_the_global_generator_alone() -> None:
    before = random.getstate()
    authors_sample(json.dumps({"annotations": annotations()}), 5)
    assert random.getstate() == before


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A captions file of which the sample takes 10."""
    sample = coco.authors_sample
    monkeypatch.setattr(prompts, "authors_sample", lambda text, **more: sample(text, 10, **more))
    path = tmp_path / "captions_val2014.json"
    path.write_text(json.dumps({"annotations": annotations()}))
    return path


def test_another_file_than_the_official_one_is_said(small: Path) -> None:
    found = read_prompts(small, limit=4)
    assert [p.name for p in found.prompts] == ["prompt_0", "prompt_1", "prompt_2", "prompt_3"]
    assert found.total == 10
    assert [(p.image_id, p.text) for p in found.prompts] == straightforward(
        annotations(), 10, set()
    )[:4]
    assert "SHA-256 is not that of the official" in found.note


def test_the_official_files_hash_is_said(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "VAL2014_SHA256", read_prompts(small).sha256)
    assert read_prompts(small).note.endswith("is the recorded one).")


def test_a_folder_of_references_decides_what_is_passed_over(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "val2014"
    folder.mkdir()
    everything = read_prompts(small)
    assert read_prompts(small, references=folder) == everything  # a folder of something else
    for prompt in everything.prompts[1:]:
        assert prompt.image_id is not None
        (folder / file_name(prompt.image_id)).touch()
    found = read_prompts(small, references=folder)
    gone = {everything.prompts[0].image_id or 0}
    assert [(p.image_id, p.text) for p in found.prompts] == straightforward(annotations(), 10, gone)
    assert "1 images are not in the folder" in found.note


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"annotations": []}', '{"annotations": [{"image_id": "1"}]}', "3"]
)
def test_json_that_is_not_coco(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CRDiffError, match="not a COCO captions file"):
        read_prompts(path)


def test_too_few_images_for_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"annotations": annotations()}))
    with pytest.raises(
        CRDiffError, match=f"of {IMAGES} images, but the authors' sample takes 5000"
    ):
        read_prompts(path)


def test_mlperf_table(tmp_path: Path) -> None:
    path = tmp_path / "captions_source.tsv"
    path.write_text(
        "id\timage_id\tcaption\theight\twidth\tfile_name\tcoco_url\n"
        '7\t58\tA "quoted" sign, with a comma.\t640\t480\ta.jpg\thttp://x/a.jpg\n'
        "9\t61\t Two cats. \t640\t425\tb.jpg\thttp://x/b.jpg\n"
    )
    found = read_prompts(path)
    assert [(p.name, p.text, p.image_id) for p in found.prompts] == [
        ("prompt_0", 'A "quoted" sign, with a comma.', 58),
        ("prompt_1", "Two cats.", 61),
    ]
