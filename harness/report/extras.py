"""What other commands left in the folder: scores, searches, cheap modes' fidelity, paper tables."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crdiff_ext.settings import GROUPS
from harness.report.charts import Line, Place, Point, lines_svg, pareto_svg
from harness.report.scored import scores_html
from harness.report.source import Extra, Source
from harness.report.text import MISSING, interval, number, signed


def extras_html(source: Source) -> str:
    """All sections; a file of a layout that is not known here is named, not guessed at."""
    made = ""
    for name, title, write in (
        ("scores.json", "Scores of crdiff score", scores_html),
        ("search.json", "Search of the ratios", _searches),
        ("fidelity.json", "Fidelity of the cheaper amplifications", _fidelities),
        ("tables.json", "The paper's tables", _tables),
    ):
        extras = source.extras.get(name, ())
        if extras:
            made += f"<h2>{title}</h2>{_readable(name, extras, write)}"
    return made


def _readable(name: str, extras: Sequence[Extra], write: Callable[[Sequence[Extra]], str]) -> str:
    good, bad = [], []
    for extra in extras:
        try:
            write([extra])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            bad.append(extra.place)
        else:
            good.append(extra)
    left = "".join(
        f'<p class="small">{html.escape(f"{name} in {place}")} has a layout that this version does '
        "not know: it is left out.</p>"
        for place in bad
    )
    return (write(good) if good else "") + left


def search_line(extra: Extra) -> tuple[str, Line]:
    """(size, the best score so far over the images drawn) of a search.json of any version."""
    data, config = extra.data, extra.data["config"]
    images, best, places = 0, None, []
    for trial in data["trials"]:
        images = trial["images"] if "images" in trial else images + config["captions"]
        score = trial["best_so_far"] if "best_so_far" in trial else trial["score"]
        if score is not None:
            best = score if best is None else max(best, score)
            places.append(Place(float(images), float(best)))
    if not places:
        raise ValueError("not one state was scored")
    what = data.get("searched", "block-wise ratios")
    details = [str(config[key]) for key in ("sampler",) if key in config]
    details += [f"seed {config['seed']}"] if "seed" in config else []
    details += [] if extra.place == "." else [extra.place]
    return f"{config['height']}x{config['width']}", Line(
        f"{what} ({', '.join(details)})", places, steps=True
    )


def _searches(extras: Sequence[Extra]) -> str:
    sizes: dict[str, list[Line]] = {}
    for extra in extras:
        size, line = search_line(extra)
        sizes.setdefault(size, []).append(line)
    charts = "".join(
        "<figure>"
        + lines_svg(
            lines,
            x_label="Images drawn",
            y_label="Best score so far (higher is better ↑)",
            title=size,
            size=(560.0, 240.0),
        )
        + "</figure>"
        for size, lines in sizes.items()
    )
    held = "".join(f"<li>{html.escape(said)}</li>" for e in extras if (said := _held_out(e)))
    note = (
        '<p class="small faint">As in the paper\'s Figure 7b. The score that is searched for rises '
        "by choice alone; what counts is the difference on captions that took no part:</p>"
    )
    return f'<div class="charts">{charts}</div>{note}<ul class="small">{held}</ul>'


def _held_out(extra: Extra) -> str:
    held, config = extra.data.get("held_out"), extra.data["config"]
    place = f"{config['height']}x{config['width']}"
    place += "" if extra.place == "." else f" ({extra.place})"
    if not held:
        best = (extra.data.get("best") or {}).get("state")
        if best and not any(best[group] for group in GROUPS):
            return f"{place}: dense was not beaten, so there is nothing to confirm"
        return f"{place}: not confirmed yet"
    return (
        f"{place}: {interval(held['difference'])} to dense, 95 % interval, "
        f"{held['captions']} captions"
    )


def _fidelities(extras: Sequence[Extra]) -> str:
    return "".join(_fidelity(extra.data) for extra in extras)


def _fidelity(data: Mapping[str, Any]) -> str:
    height, width = data["size"]
    charts = ""
    for name, label, higher in (
        ("reward", "Embedded reward", True),
        ("frechet", "Embedded Fréchet distance", False),
    ):
        points = [
            Point(_row_name(row), row["passes"], d["estimate"], d["low"], d["high"])
            for row in data["rows"]
            if row["passes"] and row["vs_dense"] and (d := row["vs_dense"][name])
        ]
        if points:
            charts += "<figure>" + pareto_svg(
                [Point("dense", 1.0, 0.0), *points],
                x_label="UNet passes, as a multiple of dense",
                y_label=f"{label}: difference to dense",
                title=f"{height}x{width}, k = {data['k']:g}, {data['captions']} captions",
                higher_is_better=higher,
                note="The number after @ is the ratio, the same in all three groups.",
                size=(640.0, 380.0),
            )
            charts += "</figure>"
    rows = [_fidelity_row(row) for row in data["rows"]]
    heads = ("Mode", "Ratio", "Passes", "PSNR to exact, dB", "Reward to exact", "Reward to dense")
    return f'<div class="charts">{charts}</div>{table_html(heads, rows)}'


def _row_name(row: Mapping[str, Any]) -> str:
    return f"{row['mode']} @ {row['ratio']:g}" if row["ratio"] else str(row["mode"])


def _fidelity_row(row: Mapping[str, Any]) -> list[str]:
    exact, dense = row.get("vs_exact"), row["vs_dense"]
    psnr = "–"
    if exact:
        psnr = "equal" if exact["psnr_median"] is None else number(exact["psnr_median"], 1)
    return [
        str(row["mode"]),
        MISSING if row["ratio"] is None else f"{row['ratio']:g}",
        number(row["passes"], 2),
        psnr,
        interval(exact["reward"]) if exact else MISSING,
        interval(dense["reward"]) if dense else MISSING,
    ]


def table_html(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain table of texts, the first column as heads of the rows."""
    head = "".join(f"<th>{html.escape(words)}</th>" for words in heads)
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>"
        + "".join(f"<td>{html.escape(words)}</td>" for words in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _tables(extras: Sequence[Extra]) -> str:
    return "".join(_paper_table(table) for extra in extras for table in extra.data["tables"])


def _paper_table(table: Mapping[str, Any]) -> str:
    title = table["title"] + (f" ({table['block']})" if table.get("block") else "")
    heads = "".join(f"<th>{html.escape(words)}</th>" for words in [*table["heads"]])
    heads += "".join(f"<th>{html.escape(words)}</th>" for words in table["columns"])
    body = ""
    for row in table["rows"]:
        labels = "".join(f"<th>{html.escape(str(words))}</th>" for words in row["labels"])
        entries = "".join(f"<td>{_paper_entry(entry)}</td>" for entry in row["entries"])
        body += f"<tr>{labels}{entries}</tr>"
    told = [*table.get("notes", ()), *_reasons(table)]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in told)
    return (
        f'<h3>{html.escape(title)}</h3><div class="scroll"><table class="numbers"><thead><tr>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
        f'<ul class="small faint">{notes}</ul>'
    )


def _reasons(table: Mapping[str, Any]) -> list[str]:
    """Each reason why something was not measured, once, in full: cells have its first words."""
    values = [
        value
        for row in table["rows"]
        for entry in row["entries"]
        if entry is not None
        for value in (entry["ours"], *entry.get("more", ()))
    ]
    return list(dict.fromkeys(str(value["reason"]) for value in values if value.get("reason")))


def _paper_entry(entry: Mapping[str, Any] | None) -> str:
    """Ours first, with half its interval; below it the paper's value and the difference."""
    if entry is None:
        return ""
    ours, paper, difference = entry["ours"], entry["paper"], entry["difference"]
    lines = [_paper_value(ours)]
    if ours.get("n") is not None:
        lines.append(f"n = {ours['n']}")
    if paper is not None:
        lines.append(f"paper {_plain(paper)}")
    if difference is not None:
        lines.append(f"difference {signed(difference)}")
    lines += [f"{more['label']} {_paper_value(more)}" for more in entry.get("more", ())]
    first, *rest = map(html.escape, lines)
    return first + "".join(f'<span class="delta">{line}</span>' for line in rest)


def _paper_value(value: Mapping[str, Any]) -> str:
    if value.get("reason"):
        return str(value["reason"]).partition(":")[0]
    if value["value"] is None:
        return MISSING
    text = _plain(value["value"])
    if value.get("interval95"):
        low, high = value["interval95"]
        text += f" ±{number((high - low) / 2)}"
    return text


def _plain(value: Any) -> str:
    """A number to four places at most, as short as it is; texts as they are."""
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{round(value, 4):.10g}".replace("-", "−")
