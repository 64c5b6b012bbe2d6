"""Methods, cells, batches and keys: what would be drawn, without drawing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from crdiff_ext.errors import CRDiffError
from crdiff_ext.families import FAMILIES
from crdiff_ext.presets import Preset
from crdiff_ext.settings import Ratios
from harness import plan as plan_module
from harness.config import RunConfig, Size
from harness.experiment import make_cells
from harness.methods import DENSE, METHODS, get_methods
from harness.plan import Plan, Sampling
from harness.prompts import PromptSet

EMBEDDED = FAMILIES["embedded"]
STORED = [Preset("embedded", 64, 64, Ratios(0.1, 0.2, 0.3), "a test", "tiny")]
SAMPLING = Sampling("0" * 64, 2, 3.0, "", "DDIMScheduler", "1" * 64, "fp32", "cpu", 7, 4)
ALL = ("dense", "pruned", "crdiff", "native-resize")


def config(**changes: object) -> RunConfig:
    values: dict[str, object] = {
        "model": "m",
        "sizes": (Size(64, 64), Size(128, 128)),
        "out": Path("out"),
        "methods": ALL,
    }
    return RunConfig(**{**values, **changes})  # type: ignore[arg-type]


def plan_for(prompts: int = 6, sampling: Sampling = SAMPLING, **changes: object) -> Plan:
    cells = make_cells(config(**changes), EMBEDDED, STORED)
    texts = [f"prompt number {i}" for i in range(prompts)]
    return Plan(cells, PromptSet.of_texts(texts, "test").prompts, sampling)


def test_registry_names_are_the_keys() -> None:
    assert all(METHODS[name].name == name for name in METHODS)
    assert [m.name for m in get_methods(("crdiff", "dense", "crdiff"))] == ["crdiff", "dense"]
    with pytest.raises(CRDiffError, match="'magic' is not known: use one or more of dense"):
        get_methods(("magic",))


def test_auto_leaves_the_native_size_alone() -> None:
    plan = plan_for()
    drawings = {cell.id: cell.drawing for cell in plan.cells}
    assert drawings["64x64/crdiff"].ratios == Ratios(0.1, 0.2, 0.3)
    assert drawings["64x64/crdiff"].k == 1.5
    assert drawings["64x64/pruned"].k == 1.0
    assert drawings["64x64/native-resize"].source_size == Size(128, 128)
    assert {drawings[f"128x128/{name}"] for name in ALL} == {DENSE}
    same = {cell.id: plan.same_as(cell) for cell in plan.cells}
    assert same["128x128/crdiff"] == same["128x128/native-resize"] == "128x128/dense"
    assert same["64x64/dense"] is same["64x64/crdiff"] is None


def test_a_k_that_is_not_given_is_the_stored_entrys() -> None:
    own = replace(STORED[0], k=2.0)
    for given, expected in ((None, 2.0), (1.5, 1.5), (1.2, 1.2)):
        cells = make_cells(config(k=given), EMBEDDED, [own])
        drawings = {cell.id: cell.drawing for cell in cells}
        assert drawings["64x64/crdiff"].k == expected
        assert drawings["64x64/pruned"].k == 1.0
        sentence = next(cell.decision.sentence for cell in cells)
        assert sentence.endswith("k = 2 is stored with them") is (given is None)
        assert ("found with k = 2 but used with" in sentence) is (given is not None)


def test_a_stored_k_is_for_stored_ratios_only() -> None:
    own = replace(STORED[0], k=2.0)
    drawings = {c.id: c.drawing for c in make_cells(config(ratios="0.3"), EMBEDDED, [own])}
    assert drawings["64x64/crdiff"].k == 1.5
    stored = {c.id: c.drawing for c in make_cells(config(ratios="stored"), EMBEDDED, [own])}
    assert stored["64x64/crdiff"].k == 2.0


def test_a_stored_k_of_zero_draws_nothing_of_its_own() -> None:
    cells = make_cells(config(), EMBEDDED, [replace(STORED[0], k=0.0)])
    assert next(c.drawing for c in cells if c.id == "64x64/crdiff") == DENSE


def test_nothing_is_planned_twice() -> None:
    batches = list(plan_for())
    keys = [item.key for batch in batches for item in batch.items]
    assert len(keys) == len(set(keys))
    # 64x64: dense, pruned, crdiff, resized; 128x128: dense; six prompts each
    assert len(keys) == 5 * 6
    assert [len(batch.items) for batch in batches[:2]] == [4, 2]


def test_sources_come_first_and_are_the_dense_native_images() -> None:
    plan = plan_for(sizes=(Size(64, 64),), methods=("native-resize",))
    batches = list(plan)
    assert [(batch.size, batch.drawing.kind) for batch in batches] == [
        (Size(128, 128), "dense"),
        (Size(128, 128), "dense"),
        (Size(64, 64), "resize"),
        (Size(64, 64), "resize"),
    ]
    assert batches[2].sources == tuple(item.key for item in batches[0].items)
    assert len(plan.cells) == 1


def test_forced_cells_are_marked() -> None:
    forced = {cell.id for cell in plan_for(ratios="0.3/0.2/0.1").cells if cell.forced}
    assert forced == {"128x128/pruned", "128x128/crdiff"}
    assert not any(cell.forced for cell in plan_for().cells)


def test_k_zero_and_zero_ratios_are_dense() -> None:
    for changes in ({"k": 0.0}, {"ratios": "0"}):
        drawings = {cell.method.name: cell.drawing for cell in plan_for(**changes).cells}
        assert drawings["crdiff"] == DENSE


def test_k_one_shares_the_pruned_images() -> None:
    plan = plan_for(k=1.0, sizes=(Size(64, 64),))
    same = {cell.method.name: plan.same_as(cell) for cell in plan.cells}
    assert same["crdiff"] == "64x64/pruned"


def test_all_methods_share_seeds_and_prompts_differ() -> None:
    plan = plan_for()
    seeds = {tuple(item.seed for item in plan.items(cell)) for cell in plan.cells}
    assert seeds == {(7, 8, 9, 10, 11, 12)}


def test_key_depends_on_everything_that_changes_pixels() -> None:
    def first(sampling: Sampling = SAMPLING, **changes: object) -> str:
        plan = plan_for(sampling=sampling, methods=("crdiff",), **changes)
        return plan.items(plan.cells[0])[0].key

    changed = [
        first(replace(SAMPLING, model_hash="2" * 64)),
        first(replace(SAMPLING, steps=3)),
        first(replace(SAMPLING, guidance=4.0)),
        first(replace(SAMPLING, negative="blurry")),
        first(replace(SAMPLING, scheduler="PNDMScheduler")),
        first(replace(SAMPLING, scheduler_sha256="2" * 64)),
        first(replace(SAMPLING, dtype="fp16")),
        first(replace(SAMPLING, device="cuda")),
        first(replace(SAMPLING, seed=8)),
        first(replace(SAMPLING, batch=2)),
        first(k=2.0),
        first(ratios="0.1/0.2/0.4"),
        first(sizes=(Size(64, 72),)),
    ]
    assert len({first(), *changed}) == 1 + len(changed)
    assert first(replace(SAMPLING, device="cuda:1")) == first(replace(SAMPLING, device="cuda"))


def test_keys_are_a_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that people have stored are found by these keys: they must never change."""
    monkeypatch.setattr(plan_module, "DRAWING_VERSION", 1)
    plan = plan_for(sizes=(Size(64, 64),))
    assert {cell.method.name: plan.items(cell)[1].key[:16] for cell in plan.cells} == PINNED


PINNED = {
    "dense": "989f4383c7ab5aba",
    "pruned": "f3fcf0393e1f608e",
    "crdiff": "877f24969860c29d",
    "native-resize": "75a7bebbf1236540",
}


def test_batch_size_and_place_are_in_the_key() -> None:
    specs = [item.spec["batch"] for item in plan_for().items(plan_for().cells[0])]
    assert specs == [{"size": 4, "place": place} for place in range(4)] + [
        {"size": 2, "place": place} for place in range(2)
    ]


def test_size_off_the_step() -> None:
    with pytest.raises(CRDiffError, match="multiples of 8"):
        make_cells(config(sizes=(Size(100, 64),)), EMBEDDED, STORED)


def test_native_resize_needs_a_native_size() -> None:
    family = replace(EMBEDDED, native=None)
    with pytest.raises(CRDiffError, match="leave this method out"):
        make_cells(config(methods=("native-resize",), ratios="0.1"), family, STORED)


def test_one_seeds_keys_do_not_depend_on_the_others() -> None:
    one, three = plan_for(), plan_for(sampling=replace(SAMPLING, more_seeds=(8, 1)))
    for cell, same in zip(one.cells, three.cells, strict=True):
        keys = [item.key for item in one.items(cell)]
        more = [item.key for item in three.items(same)]
        assert more[: len(keys)] == keys
        assert len(set(more)) == len(more) == 3 * len(keys)
    items = three.items(three.cells[0])
    assert [item.index for item in items] == list(range(18))
    assert [item.prompt.text for item in items] == [f"prompt number {i}" for i in range(6)] * 3
    assert len({item.seed % 2**32 for item in items}) == 18  # torch keeps 32 bits: no noise twice
    assert len({item.seed for item in items}) == 18
