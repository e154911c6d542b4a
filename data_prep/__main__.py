"""`python -m data_prep NAME --source PATH --out DIR`, `check DIR`, `audit DIR`, `detect PATH`, `list`.

Exit codes: 0 done, 1 `check` or `audit --strict` found something, 2 one sentence on stderr says what is wrong, 130
Ctrl-C.
"""

import os
import sys
import textwrap
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from data_prep import detect
from data_prep.audit import audit_packed, read_audit
from data_prep.audit_page import write_audit
from data_prep.check import check
from data_prep.labels import select_classes
from data_prep.packed import SPLITS, DataError, Plan, read_manifest
from data_prep.writer import write

SOURCES = {  # command: (module, one line for `list`); a module is imported only when its command is used
    "synthetic": ("data_prep.synthetic_source", "drawn faces of this project, 7 classes: no download, no licence"),
    "fer2013": ("data_prep.fer2013", "FER2013: 35,887 grey faces of 48 x 48, 7 classes; csv or folder copy"),
    "ferplus": ("data_prep.ferplus", "FER+: ten votes an image for fer2013.csv, 8 classes"),
    "affectnet": ("data_prep.affectnet", "AffectNet 2017: csv lists and photographs; expression, valence, arousal"),
    "affectnet8": ("data_prep.affectnet8", "AffectNet-8 of March 2021: aligned faces of 224 x 224, npy annotations"),
    "rafdb": ("data_prep.rafdb", "RAF-DB, basic expressions: 7 classes; the authors' layout or a folder copy"),
    "rafdb-compound": ("data_prep.rafdb_compound", "RAF-DB, compound expressions: 11 pairs of emotions"),
    "rafce": ("data_prep.rafce", "RAF-CE, compound expressions: 14 pairs of emotions"),
    "expw": ("data_prep.expw", "ExpW: 91,793 faces in photographs from the web, 7 classes, no official split"),
    "sfew": ("data_prep.sfew", "SFEW 2.0: frames of films with aligned faces, 7 classes"),
    "ckplus": ("data_prep.ckplus", "CK+: posed expressions, image sequences of 123 people, 8 classes; folds of people"),
    "ck48": ("data_prep.ck48", "CK+48: 981 grey faces of 48 x 48 from CK+, 7 classes; folds of people"),
    "affwild2": ("data_prep.affwild2", "Aff-Wild2 (ABAW): frames of films; expressions, valence/arousal, action units"),
    "disfa": ("data_prep.disfa", "DISFA: frames of 27 people's films, intensities of 12 action units; folds of people"),
    "bp4d": ("data_prep.bp4d", "BP4D: frames of 41 people's films, 12 action units; folds of people"),
    "emotionet": ("data_prep.emotionet", "EmotioNet: photographs from the web, 12 action units"),
    "cifar10": ("data_prep.cifar10", "CIFAR-10: 60,000 colour images of 32 x 32, 10 classes; the official batches"),
    "stanford_cars": ("data_prep.stanford_cars", "Stanford Cars: 196 models, boxes cropped; the devkit or its copies"),
    "image_folder": ("data_prep.image_folder", "any folder of classes: CLASS/*.jpg or {train,val,test}/CLASS/*.jpg"),
    "table": ("data_prep.csv_table", "any csv or parquet of image paths, labels, soft labels, boxes, valence/arousal"),
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
    auditor = commands.add_parser("audit", help="flaws of images and labels: leaks, duplicates, conflicts, blanks")
    auditor.add_argument("directory", type=Path, metavar="DIR")
    auditor.add_argument("--strict", action="store_true", help="exit code 1 if something was found")
    auditor.add_argument("--out", type=Path, metavar="DIR2", help="where the report goes (default: DIR)")
    auditor.add_argument("--workers", type=_count, default=_cores(), help="threads (%(default)s)")
    auditor.set_defaults(run=_audit)
    detector = commands.add_parser("detect", help="which source's layout a path holds, and the command to run")
    detector.add_argument("path", type=Path, metavar="PATH")
    detector.set_defaults(run=_detect)
    commands.add_parser("list", help="the sources, their licences and where to get them").set_defaults(run=_list)
    return parser


def _add_common(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="directory to make")
    parser.add_argument("--workers", type=_count, default=_cores(), help="processes (%(default)s); 1 = this one only")
    parser.add_argument("--classes", type=_names, metavar="A,B,...", help="only these classes, in this order")
    parser.add_argument("--strict", action="store_true", help="stop at the first bad input instead of recording it")
    parser.add_argument("--overwrite", action="store_true", help="replace a packed directory that is already there")
    parser.add_argument("--no-audit", action="store_true", help="do not look for flaws in what was packed")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ArgumentTypeError(f"{text!r} is no count of processes: 1 or more")
    return int(text)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- commands -------------------------------------------------------------------------------------------------------


def _pack(options: Namespace) -> int:
    plan = import_module(options.module).plan(options)
    if options.classes:
        plan = select_classes(plan, options.classes)
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
    if not options.no_audit:
        print("\n".join(_audit_lines(_audited(options.out, options.workers), options.out)))
    return 0


def _audited(directory: Path, workers: int) -> dict:
    """audit.json of a packed directory, made if it is not there."""
    found = read_audit(directory)
    if found is None:
        audit = audit_packed(directory, workers)
        write_audit(audit, directory)
        found = audit.as_json()
    return found


def _audit(options: Namespace) -> int:
    audit, out = audit_packed(options.directory, options.workers), options.out or options.directory
    write_audit(audit, out)
    print("\n".join(_audit_lines(audit.as_json(), out)))
    return 1 if options.strict and audit.found else 0


def _check(options: Namespace) -> int:
    problems = check(options.directory)
    if problems:
        print("\n".join(problems))
        return 1
    manifest = read_manifest(options.directory)
    sizes = ", ".join(f"{split} {manifest['splits'][split]['n']:,}" for split in SPLITS)
    print(f"ok: {manifest['title']}, {sizes} images, content {manifest['content_sha256'][:12]}")
    return 0


def _detect(options: Namespace) -> int:
    found = list(detect.detect(options.path, SOURCES))
    for name, layout in found:
        print(f"{name}: {layout.evidence}\n  {detect.command(name, layout)}")
    if not found:
        raise DataError(f"{options.path} has no layout known here; see 'python -m data_prep table --help' for your own")
    return 0


def _list(options: Namespace) -> int:
    for name, (module, title) in SOURCES.items():
        source = import_module(module)
        print(f"{name:16}{title}")
        for heading, text in (("licence", source.LICENCE), ("access", source.ACCESS)):
            print(textwrap.fill(f"{heading}: {text}", 100, initial_indent=" " * 16, subsequent_indent=" " * 18))
    return 0


# --- the report after packing ---------------------------------------------------------------------------------------


def _summary(manifest: dict, plan: Plan, out: Path) -> Iterator[str]:
    dropped = sum(manifest["dropped"].values())
    yield f"{manifest['title']}: {manifest['inputs']:,} inputs = {manifest['kept']:,} kept + {dropped:,} dropped"
    for reason, count in manifest["dropped"].items():
        yield f"  dropped {count:,}: {reason}"
    yield from (f"  note: {note}" for note in manifest.get("notes", ()))
    if manifest["options"].get("validation_as") == "test":
        yield "  note: the official validation set is test here, as papers report it, and val is a share of train"
    if not manifest["splits"]["val"]["n"]:
        yield "  note: val is empty, and training needs images in it to choose the epoch by"
    yield from _mapping_lines(manifest.get("label_mapping", {}))
    yield from _duplicate_lines(manifest["duplicates"])
    yield from _count_table(manifest, plan.published)
    yield f"packed in {out}, content {manifest['content_sha256'][:12]}"


def _audit_lines(found: Mapping, out: Path) -> Iterator[str]:
    checks = found["checks"]
    yield f"audit: {len(found['found'])} of {len(checks)} checks found something"
    yield from (f"  {checks[name]['title']}: {checks[name]['sentence']}" for name in found["found"])
    yield f"read {out / 'audit.html'}"


def _mapping_lines(mapping: Mapping[str, str]) -> Iterator[str]:
    """Source label -> class, a line a class."""
    labels: dict[str, list[str]] = {}
    for label, name in mapping.items():
        labels.setdefault(name, []).append(label)
    if any(label != name for label, name in mapping.items()):
        yield from (f"  label {', '.join(found)} -> {name}" for name, found in labels.items())


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
    width = max(10, *(len(name) + 1 for name in manifest["classes"]))
    headings = [split + (" (published)" if known[split] else "") for split in SPLITS]
    yield f"{'class':{width}}" + "".join(f"{heading:>24}" for heading in headings)
    for name in (*manifest["classes"], "all"):
        cells = [_cell(found[split][name], known[split].get(name)) for split in SPLITS]
        yield f"{name:{width}}" + "".join(f"{cell:>24}" for cell in cells)
    differing = sum(found[split][name] != count for split in SPLITS for name, count in published.get(split, {}).items())
    if published:
        yield f"{differing} counts differ from the published ones" if differing else "all counts as published"


def _with_sum(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(counts) if "all" in counts or not counts else {**counts, "all": sum(counts.values())}


def _cell(found: int, published: int | None) -> str:
    return f"{found:,}" if published is None else f"{found:,} ({published:,})"


if __name__ == "__main__":
    sys.exit(main())
