"""``crdiff tables``: the paper's numbers, the layout, the statistics, and a whole run."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.pruning import make_plan
from crdiff_ext.settings import Ratios
from harness import generate
from harness.cli import main
from harness.config import Size
from harness.pipelines import load_pipeline
from harness.stats import by_prompt, complete, paired_interval
from harness.tables import curves
from harness.tables.catalogue import BUILDERS, build, read_paper
from harness.tables.cells import share
from harness.tables.curves import read_curve
from harness.tables.job import SCHEMA_VERSION
from harness.tables.layout import Entry, Row, Table, fill
from harness.tables.panel import PAPER_HEADS, STAND_IN, STAND_IN_HEADS, Panel
from harness.tables.quantities import (
    CRDIFF,
    DENSE,
    BestShare,
    Difference,
    Improved,
    Mean,
    Normalised,
    NotRun,
    Ours,
    Variant,
    Where,
    measured,
)
from harness.tables.render import csv_text, markdown

SCHEMA = Path(build.__globals__["PAPER"]).with_name("tables.schema.json")
SIZE = Size(64, 64)
REAL = re.compile(r"\b(FID|CLIP|ImageReward|IR|PickScore|Aesthetic)\b", re.IGNORECASE)
MAIN = Panel(PAPER_HEADS, PAPER_HEADS[2], True, (SIZE, Size(96, 128)), Size(128, 128))
STAND = Panel(STAND_IN_HEADS, STAND_IN_HEADS[2], False, MAIN.unseen, MAIN.native, STAND_IN)


def test_the_papers_tables_agree_with_each_other() -> None:
    """What the paper prints twice is here twice, and alike."""
    paper = read_paper()
    rows = {(r["model"], r["size"]): r for key in ("1", "2") for r in paper[key]["rows"]}
    assert len(rows) == 12
    sdxl = rows["SDXL", "512x512"]
    five = {row["metric"]: row["values"] for row in paper["5"]["rows"]}
    eight = {row["method"]: row for row in paper["fig8"]["rows"]}
    for metric in ("fid", "clip", "image_reward", "pick_score", "aesthetic"):
        assert five[metric][0] == sdxl[metric][1] == eight["crdiff"][metric]
        assert eight["dense"][metric] == sdxl[metric][0] == paper["fig2a"]["paper_at_zero"][metric]
    assert sum(five["best_share"]) == pytest.approx(100)
    for row in paper["7a"]["rows"]:
        place = rows[row["model"], row["size"]]
        assert row["blockwise_image_reward"] == place["image_reward"][1]
        assert row["uniform_image_reward"] < row["blockwise_image_reward"]


class FakeBook:
    """Scores by (variant's name, metric), [seeds, n]; higher is better but for "fid"."""

    def __init__(self, scores: dict[tuple[str, str], list[list[float]]]) -> None:
        self.scores = {key: np.array(value, float) for key, value in scores.items()}

    def images(self, where: Where, metric: str) -> np.ndarray:
        try:
            return self.scores[where.variant.name, metric]
        except KeyError:
            raise NotRun("not run: nothing there") from None

    def prompts(self, where: Where, metric: str) -> np.ndarray:
        return self.images(where, metric).mean(0)

    def of_set(self, where: Where, metric: str) -> Ours:
        raise NotRun("not run: no sets here")

    of_set_less_dense = of_set

    def is_per_image(self, metric: str) -> bool:
        return True

    def rises(self, metric: str) -> bool:
        return metric != "fid"

    def seconds(self, where: Where) -> float:
        return 0.5

    def ratios(self, where: Where) -> str:
        return "0.3"


A, B, C = (Where("m", SIZE, variant) for variant in (DENSE, CRDIFF, Variant("crdiff", k=2.0)))


def test_seeds_of_a_prompt_are_no_further_prompts() -> None:
    """Seeds that say the same give the interval of the prompts alone."""
    draws = np.random.default_rng(1)
    dense, ours = draws.normal(size=12), draws.normal(size=12)
    book = FakeBook({("dense", "s"): [list(dense)] * 4, ("crdiff", "s"): [list(ours)] * 4})
    found = Difference(B, A, "s").of(book)
    alone = paired_interval(ours, dense)
    assert (found.n, found.low, found.high) == (12, alone.low, alone.high)
    wrong = paired_interval(np.tile(ours, 4), np.tile(dense, 4))
    assert wrong.high - wrong.low < 0.6 * (alone.high - alone.low)


def test_seeds_are_averaged_within_a_prompt() -> None:
    assert by_prompt(np.array([1.0, 2.0, 3.0, 5.0, 6.0, 7.0]), 2).tolist() == [3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="not of 2 seeds"):
        by_prompt(np.ones(3), 2)


def test_best_shares_sum_to_100_and_split_ties() -> None:
    book = FakeBook(
        {
            ("dense", "s"): [[1, 0, 2, 5]],
            ("crdiff", "s"): [[1, 3, 2, 4]],
            ("crdiff, k = 2", "s"): [[0, 1, 2, 4]],
        }
    )
    shares = [BestShare(one, (A, B, C), "s").of(book).value for one in (A, B, C)]
    assert shares == pytest.approx(
        [100 * (1 / 2 + 1 / 3 + 1) / 4, 100 * (1 / 2 + 1 + 1 / 3) / 4, 25 / 3]
    )
    assert sum(value or 0 for value in shares) == pytest.approx(100)


def test_improved_counts_no_ties_and_minds_the_direction() -> None:
    book = FakeBook(
        {
            ("dense", "s"): [[1, 1, 1, 1]],
            ("crdiff", "s"): [[2, 1, 0, 3]],
            ("dense", "fid"): [[1, 1, 1, 1]],
            ("crdiff", "fid"): [[2, 1, 0, 3]],
        }
    )
    assert Improved(B, A, "s").of(book).value == 50
    assert Improved(B, A, "fid").of(book).value == 25


def test_normalised_is_one_for_the_best_whatever_the_direction() -> None:
    scores = {
        ("dense", "fid"): [[8, 8]],
        ("crdiff", "fid"): [[2, 2]],
        ("crdiff, k = 2", "fid"): [[5, 5]],
    }
    book = FakeBook(scores)
    gone = Where("m", SIZE, Variant("wanda"))
    values = [Normalised(one, (A, B, C, gone), "fid").of(book).value for one in (A, B, C)]
    assert values == [0.0, 1.0, 0.5]
    assert measured(Normalised(gone, (A, gone), "fid"), book).reason == "not run: nothing there"


@pytest.mark.parametrize("values", [[1.0, float("nan"), 2.0], [1.0, 2.0], [1.0, float("inf"), 0.0]])
def test_a_gap_is_an_error_and_not_left_out(values: list[float]) -> None:
    with pytest.raises(CRDiffError, match="x of y has 2 of 3 scores: nothing is left out"):
        complete(np.array(values), 3, "x of y")


def test_lines_of_a_row() -> None:
    book = FakeBook({("dense", "s"): [[1, 2, 3]], ("crdiff", "s"): [[2, 2, 5]]})
    more = (("CR-Diff less Dense", Difference(B, A, "s")),)
    row = Row(
        ("SDXL",),
        (Entry(1.5, Mean(A, "s")), Entry(None, Mean(B, "s"), more=more), Entry(2.0, Mean(A, "x"))),
    )
    table = Table("1", "Title", ("Model",), ("a", "b", "c"), (row,), ("A note.",))
    filled = fill(table, book)
    lines = [
        [part.strip() for part in line.split("|")[1:-1]]
        for line in markdown(filled).splitlines()
        if line[:1] == "|"
    ]
    assert lines[2] == ["SDXL", "paper", "1.500", "", "2.000"]
    assert lines[3][:2] == ["", "ours"]
    assert lines[3][2].startswith("2.000 ±")
    assert lines[3][4] == "not run"
    assert lines[4] == ["", "difference", "+0.500", "", ""]
    assert lines[5] == ["", "n", "3", "3", ""]
    assert lines[6][1] == "CR-Diff less Dense"
    assert lines[6][3].startswith("+1.000 ±")
    assert "- A note.\n- not run: nothing there" in markdown(filled)
    rows = list(csv.DictReader(csv_text([filled]).splitlines()))
    assert [(r["what"], r["paper"], r["ours"], r["difference"]) for r in rows] == [
        ("value", "1.5", "2", "0.5"),
        ("value", "", "3", ""),
        ("CR-Diff less Dense", "", "1", ""),
        ("value", "2", "", ""),
    ]


@pytest.mark.parametrize("key", list(BUILDERS))
def test_no_stand_in_under_a_real_metrics_name(key: str) -> None:
    for table in build(key, STAND):
        texts = [table.title, *table.heads, *table.columns, *table.notes]
        texts += [label for row in table.rows for label in row.labels]
        texts += [label for row in table.rows for e in row.entries if e for label, _ in e.more]
        assert [text for text in texts if REAL.search(text)] == []
        assert table.block == STAND_IN
        assert all(e.paper is None for row in table.rows for e in row.entries if e)
    for table in build(key, MAIN):
        metrics = {getattr(quantity, "metric", "") for quantity in table.quantities()}
        assert not [name for name in metrics if "embedded" in name or "caption" in name]


@pytest.mark.parametrize("key", ["1", "5", "fig2a", "fig8"])
def test_the_papers_notes_stand_below_its_own_rows_only(key: str) -> None:
    """They speak of the paper's numbers, which a table of the embedded model alone has not."""
    for table in build(key, MAIN):
        values = [e.paper for row in table.rows for e in row.entries if e]
        assert bool(table.notes) == any(value is not None for value in values)


def test_figure_2a_prunes_alone_and_7as_uniform_is_amplified() -> None:
    figure = build("fig2a", MAIN)[0]
    cells = [
        entry.quantity.cells[0]
        for row in figure.rows
        for entry in row.entries[:1]
        if entry and entry.quantity
    ]
    assert [cell.variant.name for cell in cells[:3]] == ["dense", "pruned at 0.1", "pruned at 0.2"]
    uniform = build("7a", MAIN)[0].rows[0].entries[1]
    assert uniform
    assert uniform.quantity
    assert uniform.quantity.cells[0].variant == Variant("crdiff", "0.124", 1.5)


def test_the_same_share_prunes_as_many_weights(tiny_model: Path) -> None:
    loaded = load_pipeline(tiny_model)
    ratios = Ratios(0.2, 0.5, 0.4)
    totals = make_plan(prunable_parameters(loaded.pipe.unet), ratios).totals
    pruned = sum(ratios.as_dict()[group] * totals[group] for group in totals)
    assert share(loaded, ratios) == pytest.approx(pruned / sum(totals.values()))
    assert 0.2 < share(loaded, ratios) < 0.5


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tables")
    assert main(words(tiny_model, out)) == 0
    return out


def words(model: Path, out: Path, *more: str) -> list[str]:
    tables = ["1", "2", "3", "4", "5", "7a", "fig2a"]
    options = ["--captions", "8", "--steps", "1", "--batch", "8", "--size", "64x64"]
    options += ["--seed", "3,4", "--weights", str(out / "none")]
    return ["tables", *tables, "--model", f"embedded={model}", "--out", str(out), *options, *more]


def read(out: Path) -> dict:
    document = json.loads((out / "tables.json").read_text())
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["schema_version"] == SCHEMA_VERSION
    return document


def test_a_whole_run(finished: Path) -> None:
    document = read(finished)
    assert document["seeds"] == [3, 4]
    tables = document["tables"]
    assert {table["table"] for table in tables if not table["block"]} == {
        "1",
        "4",
        "5",
        "7a",
        "fig2a",
    }
    stand = next(t for t in tables if t["table"] == "1" and t["block"])
    by_column = dict(zip(stand["columns"], stand["rows"][0]["entries"], strict=True))
    reward = by_column["embedded reward ↑ CR-Diff"]
    assert reward["ours"]["n"] == 8  # prompts, although 16 images were scored
    assert [line["label"] for line in reward["more"]] == [
        "CR-Diff less Dense",
        "prompts improved, %",
    ]
    real = next(t for t in tables if t["table"] == "1" and not t["block"])
    reasons = {entry["ours"]["reason"] for entry in real["rows"][0]["entries"]}
    assert all(reason.startswith("not run: ") for reason in reasons)
    assert any("inception" in reason for reason in reasons)
    results = json.loads((finished / "embedded" / "results.json").read_text())
    assert results["status"] == "complete"
    assert {cell["images"] for cell in results["cells"]} == {16}
    assert len((finished / "tables.csv").read_text().splitlines()) > 100


def test_running_it_again_draws_nothing_and_says_the_same(
    finished: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(finished)

    def refuse(*_: object) -> None:
        raise AssertionError("nothing is to be drawn")

    monkeypatch.setattr(generate.Painter, "draw", refuse)
    assert main(words(tiny_model, finished)) == 0
    assert read(finished)["tables"] == before["tables"]


def test_dry_run(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [
        "tables",
        "4",
        "--model",
        f"embedded={tiny_model}",
        "--out",
        str(out),
        "--steps",
        "1",
    ]
    assert main([*command, "--size", "64x64", "--captions", "8", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "embedded: 2 cells. Dry run: 16 images to draw (24 UNet passes" in said
    assert "Estimated from a probe of 2 kinds" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["9"], "table '9' is not known: name one or more of 1, 2"),
        ([], "no table was named"),
        (["1", "--model", "SDXL"], "--prompts is missing"),
        (["1", "--model", "GPT", "--prompts", "x.txt"], "--model GPT is not understood"),
        (["1", "--model", "embedded", "--prompts", "x.txt"], "captions of its own"),
        (["1", "--model", "embedded", "--model", "SDXL"], "run it without the others"),
        (["1", "--model", "embedded", "--size", "72x72"], "none of these tables has rows"),
    ],
)
def test_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tables", *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_cannot_be_had_is_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models, neither there: the rows say so, with the paper's values beside."""
    prompts = tmp_path / "p.txt"
    prompts.write_text("a cat\na dog\n")
    models = ["--model", f"SDXL={tmp_path}/none", "--model", f"SD1.5={tmp_path}/no"]
    command = [
        "tables",
        "2",
        "3",
        *models,
        "--prompts",
        str(prompts),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert re.search(r"\| SDXL .*\| paper .*\| 33.186 +\| 33.562", said)
    assert "not run: there is no model at" in said
    assert "SD2.1" not in said


def test_search_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "found"
    folder.mkdir()
    scores = [0.1, 0.3, None, 0.2, 0.5]
    trials = [
        {"score": score, "images": 4 * i, "stopped": i == 5} for i, score in enumerate(scores, 1)
    ]
    config = {
        "height": 64,
        "width": 64,
        "captions": 4,
        "reward": "embedded reward (not ImageReward)",
    }
    record = {
        "config": config,
        "dense": [0.0, 0.1],
        "trials": trials,
        "searched": "block-wise ratios",
    }
    (folder / "search.json").write_text(json.dumps(record))
    curve = read_curve(folder)
    assert curve.is_stand_in
    assert curve.reward == "embedded reward"
    assert curve.dense == pytest.approx(0.05)
    assert [curve.best_at(share) for share in (0.0, 0.25, 0.5, 1.0)] == [None, 0.1, 0.3, 0.3]
    command = [
        "tables",
        "fig7b",
        "--model",
        "embedded",
        "--search",
        str(folder),
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Figure 7b. The score during the search [stand-in, embedded model]" in said
    assert "not run: give --search" in said  # the paper's own
    assert len((tmp_path / "fig7b.csv").read_text().splitlines()) == 6
    (folder / "search.json").write_text("{}")
    assert main(command) == 2


@pytest.mark.slow
def test_figure_7b_searches_for_itself_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --search two real searches of the embedded model are made, and kept."""
    monkeypatch.setattr(curves, "STATES", 2)
    monkeypatch.setattr(curves, "CAPTIONS", 2)
    command = ["tables", "fig7b", "--model", "embedded", "--out", str(tmp_path)]
    assert main(command) == 0
    document = read(tmp_path)
    (stand,) = [t for t in document["tables"] if t["block"]]
    assert [row["labels"][0] for row in stand["rows"]] == ["search-block-wise", "search-uniform"]
    for row in stand["rows"]:
        states, dense, *best = (entry["ours"]["value"] for entry in row["entries"])
        assert states == 3  # dense is one of them
        assert best[-1] >= dense
    (real,) = [t for t in document["tables"] if not t["block"]]
    assert real["rows"][0]["entries"][0]["ours"]["reason"].startswith("not run: give --search")
    lines = list(csv.DictReader((tmp_path / "fig7b.csv").read_text().splitlines()))
    assert [line["images"] for line in lines] == ["2", "4", "6"] * 2
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("search-*/images/**/*.png")}
    assert len(kept) >= 8
    capsys.readouterr()
    assert main(command) == 0
    said = capsys.readouterr().err
    assert "64x64: 3 states" in said
    assert "this process drew" not in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert read(tmp_path)["tables"] == document["tables"]
