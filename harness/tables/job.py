"""``crdiff tables``: from its options to drawn, scored, filled and written tables."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crdiff_ext import __version__
from crdiff_ext.errors import CRDiffError
from harness.config import Size
from harness.demo import demo_prompts
from harness.embedded.scenes import SceneSpec
from harness.embedded.weights import embedded_model_dir
from harness.environment import describe
from harness.locate import read_json
from harness.main_job import dry_run_line, probe_line
from harness.prompts import read_prompts
from harness.results import Metric, utc_now
from harness.scorers import open_reference
from harness.store import check_folder, write_atomically
from harness.tables.book import Books
from harness.tables.catalogue import BUILDERS, build
from harness.tables.curves import Curve, curves_csv, read_curve, search_embedded
from harness.tables.layout import Filled, Head, Row, Table, as_dict, fill
from harness.tables.panel import EMBEDDED, PAPER_HEADS, STAND_IN, STAND_IN_HEADS, Panel
from harness.tables.render import csv_text, markdown
from harness.tables.runner import Job, open_model, run_models, wanted_cells
from harness.user_presets import stored_presets

SCHEMA = "crdiff-tables"
SCHEMA_VERSION = 1
USUAL = {  # without --model: these three
    "SDXL": "stabilityai/stable-diffusion-xl-base-1.0",
    "SD1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "SD2.1": "stabilityai/stable-diffusion-2-1",
}
TRANSFORMERS = {
    "SD3Medium": "stabilityai/stable-diffusion-3-medium-diffusers",
    "FLUX.dev": "black-forest-labs/FLUX.1-dev",
}
"""Table 3's, by name only: they are large, and their licences have to be accepted first."""
EMBEDDED_CAPTIONS = 16


def run_tables(args: argparse.Namespace) -> int:
    """Everything. Returns the exit code; raises CRDiffError."""
    check_folder(args.out)
    keys = _keys(args)
    models = _models(args)
    sizes = tuple(Size.parse(text) for text in args.size or ())
    job, panels = _job(args, models, sizes)
    curves = _curves(args, keys, panels)
    panels = [replace(panel, curves=curves) for panel in panels]
    job = replace(job, timed="fig8" in keys)
    named = args.model is not None and EMBEDDED not in models
    tables = [
        kept
        for key in keys
        for panel in panels
        for table in build(key, panel)
        if (kept := _kept(table, sizes, models if named else None)).rows
    ]
    if not tables:
        raise CRDiffError(
            f"none of these tables has rows of {', '.join(models)}"
            f"{' at ' + ', '.join(map(str, sizes)) if sizes else ''}: leave out --size or --model"
        )
    quantities = [quantity for table in tables for quantity in table.quantities()]
    wanted = wanted_cells(quantities, sizes)
    if args.dry_run:
        return _dry_run(job, wanted)
    books = run_models(job, wanted, _metrics(panels))
    filled = [fill(table, books) for table in tables]
    _write(args, job, books, filled)
    if curves:
        write_atomically(args.out / "fig7b.csv", curves_csv(curves).encode())
    print("\n".join(markdown(one) for one in filled))
    print(f"Written: {args.out / 'tables.md'}, tables.csv, tables.json; images beside them")
    return 0


def _keys(args: argparse.Namespace) -> list[str]:
    if args.all:
        return list(BUILDERS)
    unknown = [key for key in args.tables if key not in BUILDERS]
    if unknown or not args.tables:
        said = f"table {unknown[0]!r} is not known" if unknown else "no table was named"
        raise CRDiffError(f"{said}: name one or more of {', '.join(BUILDERS)}, or give --all")
    return list(dict.fromkeys(args.tables))


def _models(args: argparse.Namespace) -> dict[str, str]:
    """Label -> where the model is. Raises CRDiffError."""
    given = args.model or ([EMBEDDED] if args.all and args.prompts is None else list(USUAL))
    known = {**USUAL, **TRANSFORMERS, EMBEDDED: str(embedded_model_dir())}
    labels = {label.lower(): label for label in known}
    models: dict[str, str] = {}
    for text in given:
        name, _, where = text.partition("=")
        if name.lower() not in labels:
            raise CRDiffError(
                f"--model {text} is not understood: write {', '.join(known)}, with where it is "
                "after a = sign if need be, such as SDXL=models/sdxl.safetensors"
            )
        label = labels[name.lower()]
        models[label] = where or known[label]
    if EMBEDDED in models and len(models) > 1:
        raise CRDiffError("the embedded model has captions of its own: run it without the others")
    if EMBEDDED not in models and args.prompts is None:
        raise CRDiffError(
            "--prompts is missing: give the captions, such as COCO's captions_val2014.json"
        )
    return models


def _job(
    args: argparse.Namespace, models: Mapping[str, str], sizes: tuple[Size, ...]
) -> tuple[Job, list[Panel]]:
    from harness.commands.run import seeds_of

    seeds = seeds_of(args.seeds) or (0,)
    heads = tuple(
        replace(head, metric=args.clip) if head.key == "clip" else head for head in PAPER_HEADS
    )
    settings = {
        "steps": args.steps,
        "guidance": args.guidance,
        "scheduler": args.scheduler,
        "dtype": args.dtype,
        "device": args.device,
        "batch": args.batch,
        "calibration": args.calibration,
        "seed": seeds[0],
        "more_seeds": seeds[1:],
    }
    reference = open_reference(args.reference) if args.reference else None
    main = Panel(heads, _reward(heads, "image_reward"), paper=True)
    panels, specs = [main], list[SceneSpec]()
    if EMBEDDED in models:
        if args.prompts is not None:
            raise CRDiffError("the embedded model draws captions of its own: leave out --prompts")
        specs, prompts = demo_prompts(args.captions or EMBEDDED_CAPTIONS, seeds[0])
        settings["batch"] = args.batch or EMBEDDED_CAPTIONS
        unseen, native = _embedded_sizes()
        main = replace(main, unseen=unseen, native=native)
        reward = next(head for head in STAND_IN_HEADS if head.metric == "embedded_reward")
        panels = [main, Panel(STAND_IN_HEADS, reward, False, unseen, native, STAND_IN)]
    else:
        prompts = read_prompts(args.prompts, args.captions, args.reference)
    job = Job(
        out=args.out,
        models=models,
        sizes=sizes,
        settings=settings,
        prompts=prompts,
        presets=stored_presets(args.presets),
        scorers=tuple(head.metric for head in heads),
        weights=args.weights,
        protocol=args.protocol,
        reference=reference,
        specs=tuple(specs),
    )
    return job, panels


def _curves(
    args: argparse.Namespace, keys: Sequence[str], panels: Sequence[Panel]
) -> tuple[Curve, ...]:
    """The searches that were given; for the embedded model, two small ones of its own."""
    if "fig7b" not in keys:
        return ()
    folders = [Path(text) for text in args.search or ()]
    unseen = panels[-1].unseen
    if not folders and unseen and not args.dry_run:
        folders = search_embedded(args.out, unseen[0], 0)
    return tuple(read_curve(folder) for folder in folders)


def _reward(heads: Sequence[Head], key: str) -> Head:
    return next(head for head in heads if head.key == key)


def _embedded_sizes() -> tuple[tuple[Size, ...], Size]:
    """(the two smallest unseen sizes, the smaller first; the native one)."""
    from crdiff_ext.families import FAMILIES

    own = [Size.parse(text) for text in read_json(embedded_model_dir() / "crdiff.json")["sizes"]]
    family = FAMILIES[EMBEDDED].native
    assert family is not None
    native = Size(*family)
    unseen = sorted((size for size in own if size != native), key=lambda s: s.height * s.width)
    return tuple(unseen[:2]), native


def _kept(table: Table, sizes: tuple[Size, ...], models: Mapping[str, str] | None) -> Table:
    """The table without rows that were not asked for."""

    def asked(row: Row) -> bool:
        entries = [entry for entry in row.entries if entry is not None]
        cells = [cell for one in entries if one.quantity for cell in one.quantity.cells]
        if not cells:
            return not sizes and models is None
        return any(
            (not sizes or cell.size in sizes) and (models is None or cell.model in models)
            for cell in cells
        )

    return replace(table, rows=tuple(row for row in table.rows if asked(row)))


def _metrics(panels: Iterable[Panel]) -> dict[str, Metric]:
    heads = [head for panel in panels for head in panel.heads]
    return {
        head.metric: Metric(
            head.metric, head.label, head.title, head.rises, head.per_image, head.decimals
        )
        for head in heads
    }


def _dry_run(job: Job, wanted: Mapping[str, list[Any]]) -> int:
    for model, cells in wanted.items():
        if model in job.models:
            book = open_model(job, model, cells)
            print(f"{model}: {len(book.cells)} cells. {dry_run_line(book.experiment)}")
            print(f"{model}: {probe_line(book.experiment)}")
            for reason in dict.fromkeys(book.absent.values()):
                print(f"{model}: {reason}")
    return 0


def _write(args: argparse.Namespace, job: Job, books: Books, filled: Sequence[Filled]) -> None:
    first = next(iter(books.models.values()), None)
    prompts = job.prompts
    document = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "written": utc_now(),
        "crdiff_version": __version__,
        "environment": describe(first.experiment.sampling.device) if first else None,
        "prompts": {
            "source": prompts.source,
            "sha256": prompts.sha256,
            "used": len(prompts.prompts),
            "total": prompts.total,
            "note": prompts.note or None,
        },
        "seeds": list(first.experiment.sampling.seeds) if first else [],
        "protocol": job.protocol,
        "reference": job.reference.describe() if job.reference else None,
        "models": {
            label: {
                "name": book.experiment.loaded.model_id,
                "sha256": book.experiment.sampling.model_hash,
                "folder": book.experiment.store.folder.name,
                "steps": book.experiment.sampling.steps,
                "guidance": book.experiment.sampling.guidance,
                "scheduler": book.experiment.sampling.scheduler,
                "origins": book.experiment.origins,
            }
            for label, book in books.models.items()
        },
        "tables": [as_dict(one) for one in filled],
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(args.out / "tables.json", (text + "\n").encode())
    write_atomically(args.out / "tables.csv", csv_text(filled).encode())
    page = "\n".join(markdown(one) for one in filled)
    write_atomically(args.out / "tables.md", page.encode())
