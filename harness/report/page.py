"""report.html: one self-contained page that opens offline. Every text from outside is escaped.

The page asks for nothing: images are data, fonts are the system's, and its content policy allows
inline styles and this one script by its hash. Without scripts all tables and images are there.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from crdiff_ext.errors import CRDiffError
from harness.methods import Method, get_methods
from harness.report.extras import extras_html
from harness.report.figures import figures_html
from harness.report.gallery import gallery_html
from harness.report.source import Results, Source, read_rows
from harness.report.text import by_size, interval, is_idle, number
from harness.store import write_atomically

HERE = Path(__file__).parent
PAIRS = 64
"""Pairs of images a size on a page that was asked for."""
RUN_PAIRS = 24
"""Pairs of images a size on the page that every run writes."""


def write_run_report(folder: Path, results: Results) -> None:
    """Write the page of a run that has just ended and written its images.csv."""
    source = Source(folder, results, list(read_rows(folder, results)))
    write_report(source, folder / "report.html", RUN_PAIRS)


def write_report(source: Source, path: Path, pairs: int = PAIRS) -> None:
    """Write the page whole or not at all."""
    write_atomically(path, page_html(source, pairs).encode())


def page_html(source: Source, pairs: int = PAIRS) -> str:
    """The page's text. Raises CRDiffError when a stored image can't be read."""
    script = _file("script.js")
    extras = extras_html(source)
    if source.results is None:
        title, lead = "CR-Diff report", f"What is in the folder {source.folder.name}."
        main = extras
    else:
        title, lead = _title(source.results), _lead(source.results)
        main = _run_html(source, source.results, pairs, extras)
    parts = {
        "title": html.escape(title),
        "policy": _policy(script),
        "style": _file("style.css").strip(),
        "lead": html.escape(lead),
        "main": main,
        "script": script,
    }
    return Template(_file("page.html")).substitute(parts)


def _run_html(source: Source, results: Results, pairs: int, extras: str) -> str:
    return "\n".join(
        [
            _verdict(results["verdict"]),
            f'<div class="small faint">{_list(results["notes"])}</div>',
            f"<h2>What CR-Diff does at each size</h2>{_decisions(results)}",
            f"<h2>Results</h2>{_tables(results)}",
            figures_html(results),
            extras,
            f"<h2>Images</h2>{gallery_html(source, pairs)}",
            _file("compare.html"),
            f"<h2>How this was made</h2>{_method(results)}",
        ]
    )


def _file(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing from anywhere, but inline images and styles, and the one script by its hash."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _title(results: Mapping[str, Any]) -> str:
    what = "CR-Diff demo" if results["kind"] == "demo" else "CR-Diff run"
    return f"{what}: {results['model']['label']}"


def _lead(results: Mapping[str, Any]) -> str:
    prompts = results["prompts"]
    sizes = ", ".join(dict.fromkeys(_size(cell) for cell in results["cells"]))
    return (
        f"{prompts['used']} prompts ({prompts['source']}) at {sizes}; sizes are height x width. "
        f"{results['finished'] or results['started']}."
    )


def _size(cell: Mapping[str, Any]) -> str:
    return f"{cell['height']}x{cell['width']}"


def _verdict(verdict: Mapping[str, Any] | None) -> str:
    if verdict is None:
        return ""
    items = _list(verdict["sentences"])
    headline = html.escape(verdict["headline"])
    return f'<section class="verdict"><p class="headline">{headline}</p>{items}</section>'


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in sentences)}</ul>"


def _decisions(results: Mapping[str, Any]) -> str:
    rows = []
    for size, cells in by_size(results).items():
        decision = cells[0]["decision"]
        forced = any(cell["forced"] for cell in cells)
        note = "; told to act, though Auto would not" if forced else ""
        rows.append([size, f"{decision['sentence']}{note}", decision["source"] or "–"])
    body = "".join(
        f"<tr><th>{html.escape(row[0])}</th>"
        + "".join(f"<td>{html.escape(text)}</td>" for text in row[1:])
        + "</tr>"
        for row in rows
    )
    head = "<tr><th>Size</th><th>Decision</th><th>Source of the ratios</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _tables(results: Mapping[str, Any]) -> str:
    """One table, a group of rows for each size, so that columns line up."""
    metrics = results["metrics"]
    head = "".join(
        f"<th>{html.escape(metric['label'])}&nbsp;{'↑' if metric['higher_is_better'] else '↓'}</th>"
        for metric in metrics
    )
    groups = ""
    for size, cells in by_size(results).items():
        native = [cells[0]["height"], cells[0]["width"]] == results["model"]["native"]
        tag = ' <span class="tag">native size</span>' if native else ""
        columns = 2 + len(metrics)
        images = max(cell["images"] for cell in cells)
        groups += (
            f'<tbody><tr class="size"><th colspan="{columns}">{html.escape(size)}{tag} '
            f'<span class="faint small">{images} images a method</span></th></tr>'
            + "".join(_row(cell, metrics) for cell in cells)
            + "</tbody>"
        )
    note = (
        '<p class="small faint">Below each value: the paired difference to dense at the same size '
        "and its 95 % interval over prompts; coloured where that interval excludes zero, "
        "not corrected for the number of comparisons (the verdict above is).</p>"
    )
    return (
        f'{note if metrics else ""}<div class="scroll"><table class="scores"><thead><tr>'
        f"<th>Method</th>{head}<th>Seconds an&nbsp;image</th></tr></thead>{groups}</table></div>"
    )


def _row(cell: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    notes = []
    if cell["same_as"]:
        notes.append(f"same images as {cell['same_as'].partition('/')[2]}")
    if is_idle(cell):
        notes.append("inactive: these are dense images")
    if cell["forced"]:
        notes.append("forced: Auto would leave this size alone")
    if cell["status"] != "complete":
        notes.append(f"only {cell['images']} images")
    small = "".join(f'<span class="delta">{html.escape(note)}</span>' for note in notes)
    values = "".join(_value(cell, metric) for metric in metrics)
    return (
        f"<tr><th>{html.escape(cell['label'])}{small}</th>{values}"
        f"<td>{number(cell['seconds_per_image'], 2)}</td></tr>"
    )


def _value(cell: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    entry, decimals = cell["metrics"].get(metric["name"]), metric["decimals"]
    if entry is None:
        return "<td>–</td>"
    difference = entry["vs_dense"]
    if difference is None or cell["same_as"]:
        return f"<td>{number(entry['value'], decimals)}</td>"
    side = (difference["low"] > 0) - (difference["high"] < 0)
    if not metric["higher_is_better"]:
        side = -side
    kind = {1: " good", -1: " bad", 0: ""}[side]
    shown = interval(difference, decimals)
    return f'<td>{number(entry["value"], decimals)}<span class="delta{kind}">{shown}</span></td>'


def _methods(results: Mapping[str, Any]) -> list[Method]:
    """Those of the run's methods that this version knows."""
    found = []
    for name in dict.fromkeys(cell["method"] for cell in results["cells"]):
        with contextlib.suppress(CRDiffError):
            found += get_methods((name,))
    return found


def _method(results: Mapping[str, Any]) -> str:
    settings, environment, model = results["settings"], results["environment"], results["model"]
    packages = ", ".join(f"{name} {v}" for name, v in environment["packages"].items() if v)
    git = environment["git"]
    facts = {
        **{method.label: method.what for method in _methods(results)},
        **{metric["label"]: metric["what"] for metric in results["metrics"]},
        "Model": f"{model['name']} ({model['label']}), SHA-256 {model['sha256']}",
        "Prompts": f"{results['prompts']['source']}, SHA-256 {results['prompts']['sha256']}",
        **{
            name.capitalize(): f"{settings[name]} ({settings['origins'][name]})"
            for name in ("steps", "guidance", "scheduler", "batch")
        },
        "Negative prompt": settings["negative_prompt"] or "none",
        "Seed": f"{', '.join(map(str, settings.get('seeds', [settings['seed']])))} + number of the "
        "prompt, the same for every method",
        "Amplification": f"k = {settings['k']:g} ({settings['origins']['k']}), ratios: "
        f"{settings['ratios']}",
        "Numbers": f"{settings['dtype']} on {settings['device']}, {environment['threads']} threads",
        "Machine": f"{environment['gpu'] or environment['processor']}, {environment['system']}, "
        f"Python {environment['python']}",
        "Packages": packages,
        "Code": f"crdiff {results['crdiff_version']}"
        + (f", commit {git['commit']}{' with changes' if git['changed'] else ''}" if git else ""),
    }
    if results["metrics"]:
        facts["Intervals"] = (
            "Estimate ± Student's t times the standard error over prompts, paired. The error is "
            "the bootstrap's; for a distance of sets of images it is the jackknife's, and the "
            "estimate is corrected for bias. Simulations in the tests check that the intervals "
            "cover the truth as often as they say."
        )
    items = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{items}</dl>"
