"""`python -m data_prep NAME --source PATH --out DIR`, `check DIR`, `list`.

Exit codes: 0 done, 1 `check` found a problem, 2 one sentence on stderr says what is wrong, 130 Ctrl-C.
"""

import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from data_prep.check import check
from data_prep.packed import SPLITS, DataError, Plan, read_manifest
from data_prep.writer import write

SOURCES = {  # command: (module, one line for `list`); a module is imported only when its command is used
    "synthetic": ("data_prep.synthetic_source", "drawn faces of this project, 7 classes: no download, no licence"),
    "fer2013": ("data_prep.fer2013", "FER2013: 35,887 grey faces of 48 x 48, 7 classes; csv or folder copy"),
    "ferplus": ("data_prep.ferplus", "FER+: ten votes an image for fer2013.csv, 8 classes"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code; user data never meets a traceback."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(arguments).parse_args(arguments)
    try:
        return options.run(options)
    except DataError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or 'the disk'}: {error.strerror or error}")
    except KeyboardInterrupt:
        _say("stopped; the same command picks up where it stopped")
        return 130


def _say(sentence: str) -> None:
    print(f"data_prep: {sentence}", file=sys.stderr)


def _fail(sentence: str) -> int:
    _say(sentence)
    return 2


# --- arguments ------------------------------------------------------------------------------------------------------


def _parser(arguments: Sequence[str]) -> ArgumentParser:
    """The parser; of the sources only the one that is asked for is imported, for its options."""
    parser = ArgumentParser(prog="data_prep", description="Turns raw data sets into the packed format.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, title) in SOURCES.items():
        command = commands.add_parser(name, help=title, description=title, allow_abbrev=False)
        if arguments and arguments[0] == name:
            _add_common(command)
            import_module(module).add_arguments(command)
        command.set_defaults(run=_pack, module=module)
    checker = commands.add_parser("check", help="compare a packed directory with its manifest")
    checker.add_argument("directory", type=Path, metavar="DIR")
    checker.set_defaults(run=_check)
    commands.add_parser("list", help="the sources").set_defaults(run=_list)
    return parser


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--workers", type=_count, default=_cores(), help="processes (%(default)s); 1 = this one only")
    parser.add_argument("--strict", action="store_true", help="stop at the first bad input instead of recording it")
    parser.add_argument("--overwrite", action="store_true", help="replace a packed directory that is already there")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is no count of processes: 1 or more")
    return int(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- commands -------------------------------------------------------------------------------------------------------


def _pack(options: Namespace) -> int:
    plan = import_module(options.module).plan(options)
    manifest = write(
        plan,
        options.out,
        workers=options.workers,
        strict=options.strict,
        overwrite=options.overwrite,
        say=_say,
        progress=True,
    )
    print("\n".join(_summary(manifest, plan, options.out)))
    return 0


def _check(options: Namespace) -> int:
    problems = check(options.directory)
    if problems:
        print("\n".join(problems))
        return 1
    manifest = read_manifest(options.directory)
    sizes = ", ".join(f"{split} {manifest['splits'][split]['n']:,}" for split in SPLITS)
    print(f"ok: {manifest['title']}, {sizes} images, content {manifest['content_sha256'][:12]}")
    return 0


def _list(options: Namespace) -> int:
    for name, (_, title) in SOURCES.items():
        print(f"{name:12}{title}")
    return 0


# --- the report after packing ---------------------------------------------------------------------------------------


def _summary(manifest: dict, plan: Plan, out: Path) -> Iterator[str]:
    dropped = sum(manifest["dropped"].values())
    yield f"{manifest['title']}: {manifest['inputs']:,} inputs = {manifest['kept']:,} kept + {dropped:,} dropped"
    for reason, count in manifest["dropped"].items():
        yield f"  dropped {count:,}: {reason}"
    yield from _duplicate_lines(manifest["duplicates"])
    yield from _count_table(manifest, plan.published)
    yield f"packed in {out}, content {manifest['content_sha256'][:12]}"


def _duplicate_lines(found: Mapping[str, int]) -> Iterator[str]:
    if found["surplus"]:
        yield (
            f"  among the decoded images: {found['surplus']:,} surplus copies of {found['groups']:,} images, "
            f"{found['groups_with_other_labels']:,} of them with different labels"
        )
        yield (
            f"  equal to a training image: {found['val_in_train']:,} val and {found['test_in_train']:,} test; "
            f"test equal to val: {found['test_in_val']:,}"
        )


def _count_table(manifest: dict, published: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Counts per class and split, each beside the published one where there is one."""
    found = {split: manifest["splits"][split]["class_counts"] for split in SPLITS}
    found = {split: {**counts, "all": sum(counts.values())} for split, counts in found.items()}
    known = {split: _with_sum(published.get(split, {})) for split in SPLITS}
    yield f"{'class':10}" + "".join(f"{split + (' (published)' if published else ''):>24}" for split in SPLITS)
    for name in (*manifest["classes"], "all"):
        yield f"{name:10}" + "".join(f"{_cell(found[split][name], known[split].get(name)):>24}" for split in SPLITS)
    differing = sum(found[split][name] != count for split in SPLITS for name, count in known[split].items())
    if published:
        yield f"{differing} counts differ from the published ones" if differing else "all counts as published"


def _with_sum(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(counts) if "all" in counts or not counts else {**counts, "all": sum(counts.values())}


def _cell(found: int, published: int | None) -> str:
    return f"{found:,}" if published is None else f"{found:,} ({published:,})"


if __name__ == "__main__":
    sys.exit(main())
