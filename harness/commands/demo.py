"""Show on a small trained model what CR-Diff does at sizes that the model was not trained for.

Draws held-out captions at the native size and at unseen sizes: dense, pruned only, CR-Diff with
its stored ratios and k = 1.5, and native size then resize. Prints a table with paired 95 %
intervals and a verdict; writes report.html, results.json, images.csv and demo.png. The same command
goes on after an interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        default=Path("out/demo"),
        metavar="DIR",
        help="where everything is written (default: out/demo)",
    )
    add("--captions", type=int, default=64, metavar="N", help="captions a cell (default: 64)")
    add("--seed", type=int, default=0, help="of captions and images (default: 0)")
    add("--size", action="append", metavar="HxW", help="only these sizes (default: the model's)")


def run(args: argparse.Namespace) -> int:
    from crdiff_ext.presets import builtin_presets
    from harness.demo import NOTES, assessor, demo_config, demo_prompts
    from harness.experiment import open_experiment
    from harness.main_job import conduct, tally_line
    from harness.report.sheet import write_sheet
    from harness.report.text import cell_table, decision_lines

    config = demo_config(args.out, args.captions, args.seed, args.size or ())
    specs, prompts = demo_prompts(args.captions, args.seed)
    # Only the ratios that ship: the demo is the same for everybody.
    experiment = open_experiment(config, prompts, builtin_presets())
    experiment.notes.extend(NOTES)
    for line in decision_lines(experiment):
        print(line)
    results, _, tally = conduct(experiment, "demo", assessor(specs))
    write_sheet(experiment, args.out / "demo.png")
    print(tally_line(tally))
    print()
    print(cell_table(results))
    print(
        "\nAfter each value: the paired difference to dense, ± half of its 95 % interval; that of "
        "the\nFréchet distance is corrected for the distance's bias at few images.\n"
    )
    print(results["verdict"]["headline"])
    for sentence in results["verdict"]["sentences"]:
        print(f"- {sentence}")
    print(f"\nWritten: {args.out / 'report.html'}, results.json, images.csv, demo.png")
    return 0
