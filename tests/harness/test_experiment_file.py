"""YAML experiments: types, unknown keys, and what the command line replaces."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from crdiff_ext.errors import CRDiffError
from harness.cli import main
from harness.commands import run
from harness.config import Size
from harness.experiment_file import KEYS, read_experiment

WHOLE = """\
model: some/model
sizes: [512x512, 400x560]
prompts: captions.csv
out: out/x
methods: dense
ratios: {down: 0.3, mid: 0.2, up: 0.25}
seeds: [3, 4]
steps: 20
guidance: 5
negative: ""
"""


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return parser.parse_args(words)


def write(folder: Path, text: str) -> Path:
    path = folder / "exp.yaml"
    path.write_text(text)
    return path


def test_file_alone(tmp_path: Path) -> None:
    settings = run.settings_of(parse(str(write(tmp_path, WHOLE))))
    config = run.config_of(settings)
    assert config.model == "some/model"
    assert config.sizes == (Size(512, 512), Size(400, 560))
    assert config.methods == ("dense",)
    assert config.ratios == "0.3/0.2/0.25"
    assert config.seeds == (3, 4)
    assert (config.steps, config.guidance, config.negative) == (20, 5.0, "")
    assert config.scheduler == "default"
    assert settings["prompts"] == Path("captions.csv")


def test_command_line_replaces_the_file(tmp_path: Path) -> None:
    words = ["--steps", "7", "--size", "64x64", "--method", "dense,crdiff", "--seed", "9"]
    config = run.config_of(run.settings_of(parse(str(write(tmp_path, WHOLE)), *words)))
    assert config.steps == 7
    assert config.sizes == (Size(64, 64),)
    assert config.methods == ("dense", "crdiff")
    assert config.seeds == (9,)
    assert config.guidance == 5.0


def test_command_line_alone() -> None:
    words = ["--model", "m", "--size", "512x512", "--prompts", "p.txt", "--out", "o"]
    config = run.config_of(run.settings_of(parse(*words, "--seed", "1,2", "--seed", "3")))
    assert config.methods == ("dense", "crdiff")
    assert config.seeds == (1, 2, 3)


def test_every_key_is_an_option() -> None:
    assert set(KEYS) <= set(vars(parse()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz: 3", r"unknown key 'stepz': did you mean steps\? The keys are model, sizes"),
        ("3: 3", "unknown key 3: use model"),
        ("steps: many", "steps in .* is 'many': it must be a whole number"),
        ("steps: 3.5", "whole number"),
        ("steps: true", "whole number"),
        ("guidance: [7.5]", "it must be a number"),
        ("seeds: [1, x]", "whole number, or a list of such"),
        ("sizes: {h: 3}", "a text, or a list of such"),
        ("ratios: {down: 0.3}", "three ratios"),
        ("prompts: 3", "a path"),
        ("- a\n- b", "holds no settings"),
        ("", "holds no settings"),
        ("a: [", "is not YAML"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(CRDiffError, match=said):
        read_experiment(write(tmp_path, text))


def test_text_that_is_a_number_to_yaml(tmp_path: Path) -> None:
    settings = read_experiment(write(tmp_path, "guidance: 1e1\nnegative: 3\nratios: 0.3"))
    assert settings == {"guidance": 10.0, "negative": "3", "ratios": "0.3"}


@pytest.mark.parametrize("key", ["model", "sizes", "prompts", "out"])
def test_what_is_needed(tmp_path: Path, key: str) -> None:
    lines = [line for line in WHOLE.splitlines() if not line.startswith(key)]
    with pytest.raises(CRDiffError, match=f"is missing: give it, or write {key} into"):
        run.settings_of(parse(str(write(tmp_path, "\n".join(lines)))))


def test_a_missing_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "none.yaml"]) == 2
    assert "the experiment file none.yaml does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("seeds", "said"), [("1,x", "whole numbers"), ("2,2", "named twice")])
def test_bad_seeds(seeds: str, said: str) -> None:
    words = ["--model", "m", "--size", "512x512", "--prompts", "p.txt", "--out", "o"]
    with pytest.raises(CRDiffError, match=said):
        run.config_of(run.settings_of(parse(*words, "--seed", seeds)))


def test_a_run_from_a_file(
    tiny_model: Path, prompts_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drawn from a file with two seeds; the first seed's images are those of a run without it."""
    out = tmp_path / "out"
    text = (
        f"model: {tiny_model}\nsizes: 64x64\nprompts: {prompts_file}\nout: {out}\n"
        "methods: [dense, native-resize]\nseeds: [5, 6]\nsteps: 1\nbatch: 2\n"
    )
    exp = str(write(tmp_path, text))
    assert main(["run", exp, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "12 images to draw (12 UNet passes at 1 steps), 6 to scale" in said
    # two sizes; a full batch and a last one of one prompt each
    assert "Estimated from a probe of 4 kinds of batches:" in said
    assert not out.exists()
    assert main(["run", exp, "--seed", "5"]) == 0
    first = json.loads((out / "results.json").read_text())
    assert main(["run", exp]) == 0
    assert "9 drawn" not in capsys.readouterr().out
    both = json.loads((out / "results.json").read_text())
    assert both["settings"]["seeds"] == [5, 6]
    assert [cell["images"] for cell in first["cells"]] == [3, 3]
    assert [cell["images"] for cell in both["cells"]] == [6, 6]
    lines = (out / "images.csv").read_text().splitlines()[1:]
    seeds = [int(line.split(",")[6]) for line in lines if line.startswith("64x64/dense")]
    assert seeds == [5, 6, 7, 1_000_009, 1_000_010, 1_000_011]
    assert main(["run", exp]) == 0
    assert "nothing was drawn" in capsys.readouterr().out
