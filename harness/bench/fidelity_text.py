"""The fidelity measurement as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def markdown(result: Row) -> str:
    """fidelity.md: what was measured, the table against exact, the table against dense."""
    height, width = result["size"]
    environment = result["environment"]
    lead = (
        f"Embedded model at {height}x{width}, {result['captions']} held-out captions, "
        f"{result['steps']} steps, k = {result['k']:g}, the same ratio in all three groups, one "
        f"image a caption from the same noise. {environment['processor']}, "
        f"{environment['threads']} thread(s), torch {environment['packages']['torch']}. "
        "Brackets: paired 95 % intervals."
    )
    exact, dense = "**Against exact amplification**", "**Against dense**"
    return "\n\n".join([lead, exact, *_against_exact(result), dense, _against_dense(result)])


def _against_exact(result: Row) -> Iterable[str]:
    head = (
        "mode",
        "UNet passes a step",
        "error of the prediction",
        "PSNR (median; 5 %)",
        "feature distance",
        "reward − exact's",
        "embedded Fréchet − exact's",
    )
    for ratio in dict.fromkeys(row["ratio"] for row in result["rows"] if row["ratio"]):
        rows = [row for row in result["rows"] if row["ratio"] == ratio and "vs_exact" in row]
        first = rows[0]["vs_exact"]
        errors = next(e for e in result["steps_relative_error"] if e["ratio"] == ratio)
        said = (
            f"Ratio {ratio:g}: dense is {_decibels(first['psnr_median_of_dense'])} from exact, "
            f"feature distance {first['feature_distance_of_dense']:.2f}, "
            f"{_mean(errors['correction']):.4f} of the prediction."
        )
        yield said + "\n\n" + table(head, [_row(row, errors["modes"]) for row in rows])


def _row(row: Row, errors: Mapping[str, Sequence[float]]) -> list[str]:
    exact = row["vs_exact"]
    steps = errors.get(row["mode"])
    return [
        row["mode"],
        f"{row['passes']:.2f}",
        "–" if steps is None else f"{_mean(steps):.4f} (to {max(steps):.4f})",
        f"{_decibels(exact['psnr_median'])}; {_decibels(exact['psnr_low'])}",
        f"{exact['feature_distance']:.3f}",
        interval(exact["reward"], 4),
        interval(exact["frechet"], 2),
    ]


def _against_dense(result: Row) -> str:
    head = (
        "mode",
        "ratio",
        "UNet passes a step",
        "time an image, dense = 1",
        "reward",
        "reward − dense's",
        "embedded Fréchet − dense's",
    )
    rows = []
    for row in result["rows"]:
        other = row["vs_dense"] or {"reward": None, "frechet": None}
        rows.append(
            [
                row["mode"],
                "–" if row["ratio"] is None else f"{row['ratio']:g}",
                "–" if row["passes"] is None else f"{row['passes']:.2f}",
                f"{row['time_ratio']:.2f}",
                f"{row['reward']:.3f}",
                interval(other["reward"], 3),
                interval(other["frechet"], 1),
            ]
        )
    return table(head, rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns but the first are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def interval(values: Mapping[str, float] | None, decimals: int) -> str:
    """``+0.012 [-0.003, +0.027]``; a dash where there is none."""
    if values is None:
        return "–"
    shown = (f"{values[name]:+.{decimals}f}" for name in ("estimate", "low", "high"))
    estimate, low, high = (text.replace("-", "−") for text in shown)
    return f"{estimate} [{low}, {high}]"


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
