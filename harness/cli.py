"""The ``crdiff`` command: one sub-command a module under ``harness.commands``.

A command's modules are imported only when it runs or shows its help, so ``crdiff --help`` is quick.
Foreseeable trouble ends in one sentence on stderr and exit code 2; a traceback means a bug here.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from crdiff_ext.errors import CRDiffError

COMMANDS = {
    "run": ("harness.commands.run", "draw images with any SD1.5, SD2.1 or SDXL checkpoint"),
    "score": ("harness.commands.score", "score a run's stored images: FID, CLIP, ImageReward, ..."),
    "demo": ("harness.commands.demo", "show on a small trained model what CR-Diff does"),
    "report": ("harness.commands.report", "one HTML page of a run: images, tables, charts"),
    "inspect": ("harness.commands.inspect", "family, decision and sparsity of a checkpoint"),
    "presets": ("harness.commands.presets", "list, show, export and import stored ratios"),
    "search": ("harness.commands.search", "search block ratios by simulated annealing"),
    "refine": ("harness.commands.refine", "search the ratios for one prompt and size"),
    "judge": ("harness.commands.judge", "score images sent on stdin, for the WebUI"),
    "tables": ("harness.commands.tables", "the paper's tables with its values and ours"),
    "bench": ("harness.commands.bench", "measure the core's speed and memory"),
    "export": ("harness.commands.export", "write a pipeline as the single file that WebUIs read"),
    "check-embedded": ("harness.commands.check_embedded", "how far its measures can be trusted"),
    "train-embedded": ("harness.commands.train_embedded", "train the embedded model anew"),
}
FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, or 2 after one sentence on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except CRDiffError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted: run the same command again to go on where it stopped")
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; there is nobody to tell
        return FAILED
    except (OSError, MemoryError, ImportError, RuntimeError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        return _fail(sentence)


def _run(words: Sequence[str]) -> int:
    parser = _parser()
    name = words[0] if words else None
    if name not in COMMANDS:
        parser.parse_args(words)  # shows help or the error, and leaves
        parser.print_help()
        return 0
    module = importlib.import_module(COMMANDS[name][0])
    command = argparse.ArgumentParser(
        prog=f"crdiff {name}", description=module.__doc__, formatter_class=_Help
    )
    module.add_arguments(command)
    arguments = command.parse_args(list(words[1:]))
    _quiet()
    return int(module.run(arguments))


class _Help(argparse.RawDescriptionHelpFormatter):
    """Descriptions as written in the module's docstring."""


def _parser() -> argparse.ArgumentParser:
    """The top-level parser: knows the commands' names, not their arguments."""
    lines = "\n".join(f"  {name:<16}{what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="crdiff",
        description="CR-Diff: better images at sizes that a diffusion model was not trained for.",
        epilog=f"commands:\n{lines}\n\ncrdiff COMMAND --help tells more.",
        formatter_class=_Help,
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", nargs="?")
    return parser


def _quiet() -> None:
    """Our own notes as plain lines on stderr; other libraries only when something is wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("harness", "crdiff_ext"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def _fail(sentence: str) -> int:
    print(f"crdiff: {' '.join(sentence.split())}", file=sys.stderr)
    return FAILED


def _sentence(error: BaseException) -> str | None:
    """What to tell of an error from below that can happen on a healthy program, or None."""
    if isinstance(error, OSError):
        from harness.store import raise_full_disk

        try:
            raise_full_disk(error, Path(error.filename or "."))
        except CRDiffError as full:
            return str(full)
        if isinstance(error, PermissionError):
            return f"{error.filename} cannot be read or written: check its permissions"
        if error.filename is not None and error.errno is not None:
            return f"{error.filename} cannot be used ({error.strerror}): give another path"
        return None
    if isinstance(error, ModuleNotFoundError):
        top = (error.name or "").partition(".")[0]
        if top in ("", "harness", "crdiff_ext"):
            return None
        return f"the package {top} is missing: install it with pip install 'crdiff[harness]'"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory: try a smaller --batch, a smaller --size, or --dtype fp16 on a GPU"
    return None


if __name__ == "__main__":
    sys.exit(main())
