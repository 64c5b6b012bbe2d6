"""`crdiff bench`: what it measures is what it says; nothing here tells how fast a machine is."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from crdiff_ext.blocks import prunable_parameters
from crdiff_ext.errors import CRDiffError
from crdiff_ext.patch import CRDiff
from crdiff_ext.pruning import prune
from crdiff_ext.settings import Ratios
from harness import cli
from harness.bench import cost, cost_rounds, cost_subject
from harness.bench.cost_modes import FIRST, MODES, SECOND, choose_modes
from harness.bench.cost_planning import measure_planning
from harness.bench.cost_report import markdown
from harness.bench.meter import Meter
from harness.bench.two_unets import group_kthvalue, pruned_copy, two_unets
from harness.config import Size

RATIOS = Ratios(0.4, 0.3, 0.5)


@pytest.fixture
def opened(subject, monkeypatch):
    """`crdiff bench` measures the small UNet, whatever model is named."""
    monkeypatch.setattr(cost, "open_subject", lambda *_: subject)
    monkeypatch.setattr(cost_rounds, "QUICK_SECONDS", 0.0)
    return subject


def counted(subject):
    """Count the calls of the UNet's blocks: one for each pass."""
    passes = []
    subject.unet.mid_block.register_forward_hook(lambda *_: passes.append(1))
    return passes


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("dense", 1, 1),
        ("exact-recompute", 2, 2),
        ("exact-copy", 2, 2),
        ("folded", 1, 1),
        ("folded-recompute", 1, 1),
        ("reuse-2", 2, 1),
        ("reuse-3", 2, 1),
        ("reuse-4", 2, 1),
        ("native-resize", 1, 1),
    ],
)
def test_a_mode_makes_its_passes_and_leaves_the_unet_as_it_was(subject, name, first, second):
    subject.make_plan(RATIOS)
    dense = subject.call(subject.size, FIRST)
    passes = counted(subject)
    for _ in range(2):  # the second time, a schedule begins anew
        with MODES[name].attach(subject):
            assert not passes, "copies are made without a pass"
            amplified = subject.call(subject.size, FIRST)
            assert len(passes) == first
            subject.call(subject.size, SECOND)
            assert len(passes) == first + second
            subject.call(subject.size, FIRST)
            assert len(passes) == 2 * first + second
        passes.clear()
    is_dense = name in ("dense", "native-resize")
    assert torch.equal(amplified, dense) == is_dense
    assert torch.equal(subject.call(subject.size, FIRST), dense)


def test_a_period_of_reuse_has_one_dense_pass():
    for n in (2, 3, 4):
        weights = dict(MODES[f"reuse-{n}"].calls)
        assert weights == {FIRST: 1 / n, SECOND: pytest.approx((n - 1) / n)}
        samples = cost_rounds.Samples({FIRST: [2.0, 4.0], SECOND: [1.0, 2.0]})
        assert samples.seconds(MODES[f"reuse-{n}"]) == pytest.approx([1 + 1 / n, 2 + 2 / n])


def test_two_unets_are_exact_amplification(subject):
    """Same thresholds, same pruned pass to the bit; the mix differs by the rounding of lerp."""
    plan = subject.make_plan(RATIOS)
    weights = prunable_parameters(subject.unet)
    for group, ratio in RATIOS.as_dict().items():
        members = [weight.tensor for weight in weights if weight.group == group]
        assert group_kthvalue(members, ratio) == plan.thresholds[group]
    before = {name: value.clone() for name, value in subject.unet.state_dict().items()}

    def ours(k):
        with CRDiff(subject.unet, plan, k, "copy").attached():
            return subject.call(subject.size, FIRST)

    def theirs(k):
        with two_unets(subject.unet, plan.thresholds, k):
            return subject.call(subject.size, FIRST)

    assert torch.equal(theirs(1.0), ours(1.0))
    torch.testing.assert_close(theirs(1.5), ours(1.5), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs(1.5), ours(1.0), rtol=1e-5, atol=1e-5)
    after = subject.unet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    second = pruned_copy(subject.unet, plan.thresholds)
    for dense, pruned in zip(weights, prunable_parameters(second), strict=True):
        threshold = plan.thresholds[dense.group]
        assert torch.equal(pruned.tensor, prune(dense.tensor, threshold))


def test_planning_is_measured_both_ways(subject, monkeypatch):
    meter = Meter("cpu")
    both = measure_planning(subject, RATIOS, meter, theirs=True)
    total = sum(subject.plan.totals.values())
    assert both["counting"]["weights"] == both["kthvalue"]["weights"] == total
    assert both["kthvalue"]["same_thresholds"]
    assert both["kthvalue"]["note"] is None
    monkeypatch.setattr("harness.bench.cost_planning.free_bytes", lambda _: 1000)
    none = measure_planning(subject, RATIOS, meter, theirs=True)["kthvalue"]
    assert (none["weights"], none["seconds"]) == (0, None)
    assert none["note"].startswith("not ranked, for want of memory: down (needs")


def test_json_alone_is_printed_and_both_files_are_written(opened, capsys, tmp_path):
    assert cli.main(["bench", "--rounds", "2", "--json", "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [entry["mode"] for entry in result["modes"]] == list(MODES)
    for entry in result["modes"]:
        assert entry["time_ratio"] > 0
        assert entry["time_ratio_spread"]["min"] <= entry["time_ratio"]
        assert entry["peak_mb"] is None or entry["peak_mb"] > 50
        assert entry["image_seconds"] is None, "there is no pipeline to draw with"
    by_name = {entry["mode"]: entry for entry in result["modes"]}
    assert by_name["dense"]["time_ratio"] == 1.0
    assert by_name["exact-recompute"]["copies_mb"] == 0
    assert 0 < by_name["folded"]["copies_mb"] < by_name["two-unets"]["copies_mb"]
    assert result["rounds"] == 2
    assert result["environment"]["packages"]["torch"]
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["cost-tiny-64x64.json", "cost-tiny-64x64.md"]
    assert json.loads((tmp_path / files[0]).read_text()) == result
    assert (tmp_path / files[1]).read_text() == markdown(result) + "\n"


def test_the_table_has_a_row_for_each_mode_asked_for(opened, capsys, tmp_path):
    words = ["bench", "--rounds", "1", "--modes", "folded", "--threads", "1"]
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in out.splitlines() if line.startswith("| ")]
    assert rows == ["| mode", "| ---", "| dense", "| folded"]
    assert "CPU time" in out
    assert "kthvalue" not in out, "the other scheme was not asked for"


def test_a_mode_that_does_not_fit_is_left_out_in_a_sentence(opened, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cost_rounds, "free_bytes", lambda _: cost_rounds.SPARE_BYTES)
    assert cli.main(["bench", "--rounds", "1", "--json", "--out", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out)
    left_out = {skipped["mode"]: skipped["reason"] for skipped in result["skipped"]}
    assert {"exact-copy", "folded", "reuse-4", "two-unets"} <= set(left_out)
    assert "exact-copy needs about" in left_out["exact-copy"]
    assert "dense" in [entry["mode"] for entry in result["modes"]]


def test_a_mode_that_runs_out_of_memory_is_left_out(opened, monkeypatch):
    def greedy(_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setitem(MODES, "folded", replace(MODES["folded"], attach=greedy))
    result = cost.measure(cost.CostConfig(modes=("folded", "exact-copy"), rounds=2))
    assert [entry["mode"] for entry in result["modes"]] == ["dense", "exact-copy"]
    assert "folded ran out of memory" in result["skipped"][0]["reason"]


def test_the_native_size_itself_has_no_native_resize(opened):
    opened.size = Size(96, 96)
    result = cost.measure(cost.CostConfig(modes=("native-resize",), rounds=1))
    assert result["skipped"] == [
        {"mode": "native-resize", "reason": "native-resize was left out: 96x96 is the native size"}
    ]


def test_rounds_so_far_are_kept(opened):
    kept = []
    cost.measure(cost.CostConfig(modes=("folded",), rounds=3), kept.append)
    assert [result["rounds"] for result in kept] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--modes", "folded,cheap"], "mode 'cheap' is not known: use one of dense, exact-recom"),
        (["--rounds", "0"], "--rounds is 0: it must be at least 1"),
        (["--ratios", "1.2"], "ratio 'down' is 1.2"),
        (["--size", "64"], "size '64' is not understood"),
        (["--model", "nowhere"], "there is no model at nowhere"),
        (["--size", "100x64"], "size 100x64 does not work with embedded model"),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(words, said, capsys):
    assert cli.main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_modes_keep_their_order_and_dense_is_always_there():
    assert [mode.name for mode in choose_modes(("reuse-2", "folded"))] == [
        "dense", "folded", "reuse-2"]  # fmt: skip
    with pytest.raises(CRDiffError, match="not known"):
        choose_modes(("",))


def test_plan_stays_a_subject(monkeypatch):
    from harness.commands import bench_plan

    seen = []
    monkeypatch.setattr(bench_plan, "run", lambda args: seen.append(args.repeats) or 0)
    assert cli.main(["bench", "plan", "--repeats", "2"]) == 0
    assert seen == [2]


def test_shapes_are_the_released_models(monkeypatch):
    """On the meta device, so that no memory is taken."""
    monkeypatch.setattr(cost_subject, "random_unet", lambda config, dtype, device: meta(config))

    def meta(config):
        import diffusers

        with torch.device("meta"):
            return diffusers.UNet2DConditionModel.from_config(config)

    found = {
        name: cost_subject.open_subject(name, None, None, "cpu", "auto")
        for name in cost_subject.SHAPES
    }
    weights = {name: sum(w.tensor.numel() for w in prunable_parameters(subject.unet))
               for name, subject in found.items()}  # fmt: skip
    assert {name: round(count / 1e6, 1) for name, count in weights.items()} == {
        "sd15-shape": 198.2, "sdxl-shape": 1638.4}  # fmt: skip
    assert [(s.native, s.size, s.batch) for s in found.values()] == [
        ((512, 512), (512, 512), 2), ((1024, 1024), (512, 512), 1)]  # fmt: skip


def test_random_weights_are_scaled_by_fan_in(subject):
    weight = subject.unet.mid_block.attentions[0].transformer_blocks[0].ff.net[2].weight
    assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.1)
    assert subject.call(subject.size, FIRST).isfinite().all()


def test_the_embedded_model_draws_images_too(tmp_path):
    config = cost.CostConfig(modes=("folded",), rounds=1, threads=1)
    result = cost.measure(config)
    assert result["size"] == "64x64"
    folded = result["modes"][1]
    assert folded["image_seconds"] > folded["call_seconds"]
    assert folded["image_ratio"] > 0
    assert "image, × dense" in markdown(result)
