"""The measurement itself, in small; `crdiff bench plan` makes it in full."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from harness.bench import plan
from harness.bench.plan_memory import make_weights, sdxl_shapes
from harness.commands import bench_plan


def _has_kthvalue() -> bool:
    try:
        torch.zeros(1, dtype=torch.float16).kthvalue(1)
    except RuntimeError:
        return False
    return True


needs_kthvalue = pytest.mark.skipif(
    not _has_kthvalue(), reason="this torch has no fp16 kthvalue on the CPU to compare with"
)


def test_the_measured_unet_is_sdxls():
    shapes = sdxl_shapes()
    assert len(shapes) == 420
    assert sum(height * width for height, width in shapes.values()) == 1_638_400_000
    assert len(make_weights(3)) == 3


@needs_kthvalue
def test_speed_is_measured_on_equal_masks():
    cases = plan.measure_speed(100_000, 1)
    assert [(case["weights"], case["ratio"]) for case in cases] == [
        (kind, ratio) for kind in ("normal", "tied") for ratio in (0.01, 0.4, 0.99)
    ]
    assert all(case["masks_equal"] for case in cases)
    assert all(case["speedup"] == case["kthvalue_seconds"] / case["seconds"] for case in cases)


@needs_kthvalue
def test_a_wrong_threshold_is_noticed(monkeypatch):
    monkeypatch.setattr(plan, "group_threshold", lambda layers, ratio: 0.5)
    assert not any(case["masks_equal"] for case in plan.measure_speed(10_000, 1))


@needs_kthvalue
def test_threads_are_put_back():
    before = torch.get_num_threads()
    plan.measure_speed(1000, 1)
    assert torch.get_num_threads() == before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells peaks")
def test_planning_takes_little_memory():
    """24 layers of SDXL, 30 million weights; the working memory does not grow with their number."""
    memory = plan.measure_memory(24)
    assert memory["weights"] > 25e6
    assert memory["extra_mb"] < 40
    assert memory["resident_before_mb"] > memory["weights"] * 2 / 2**20


@needs_kthvalue
def test_the_command_prints_json(monkeypatch, capsys):
    monkeypatch.setattr(
        bench_plan,
        "measure_memory",
        lambda: {"extra_mb": 14.0, "resident_before_mb": 3600.0, "weights": 10, "seconds": 1.0},
    )
    parser = argparse.ArgumentParser()
    bench_plan.add_arguments(parser)
    assert bench_plan.run(parser.parse_args(["--json", "--weights", "1e4", "--repeats", "1"])) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["extra_mb"] == 14.0
    assert result["speedup"] == min(case["speedup"] for case in result["cases"])
    assert result["weights"] == 10_000
    assert bench_plan.run(parser.parse_args(["--weights", "10000", "--repeats", "1"])) == 0
    assert "14.0 MiB" in capsys.readouterr().out
    for wrong in (["--weights", "5"], ["--repeats", "0"], ["--weights", "many"]):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
