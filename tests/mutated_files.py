"""Shared by the fuzz tests of sources: damaged copies of a file, and the promise that holds for whatever is packed.

    @given(damage=damages)
    def test_...(damage):
        path.write_bytes(damage(content))
        out = packed_or_refused("cifar10", root, tmp)    # None if one sentence refused it

`rewrite` puts a tree back before each case, which is quicker than a new one.
"""

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from source_trees import dropped

from data_prep.__main__ import main
from data_prep.check import check

ODD = (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", "\u202e\u0301é٣".encode(), b"\r", b"\n\n", b'"', b"'", b",", b";")
ODD += (b"\t", b" ", b"-1", b"999", b"nan", b"1e999", b"../../etc/passwd", b"\\", b"1" * 500)


@dataclass(frozen=True)
class Damage:
    """One way to damage a file's bytes; `place` and `other` are shares of its length."""

    kind: str
    place: float
    other: float
    value: int

    def __call__(self, content: bytes) -> bytes:
        if not content:
            return content
        start, stop = sorted(int(share * len(content)) for share in (self.place, self.other))
        lines = content.split(b"\n")
        line = int(self.place * (len(lines) - 1))
        match self.kind:
            case "flip":
                return content[:start] + bytes([content[start] ^ (1 << self.value % 8)]) + content[start + 1 :]
            case "truncate":
                return content[:start]
            case "insert":
                return content[:start] + ODD[self.value % len(ODD)] + content[start:]
            case "remove":
                return content[:start] + content[min(stop, start + self.value % 40) :]
            case "zero":
                return content[:start] + bytes(min(stop - start, 64)) + content[min(stop, start + 64) :]
            case "repeat line":
                return b"\n".join([*lines[: line + 1], *lines[line:]])
            case "swap lines":
                return b"\n".join([*lines[:line], *reversed(lines[line : line + 2]), *lines[line + 2 :]])
            case "windows":
                return content.replace(b"\n", b"\r\n")
            case "utf-16":
                return content.decode("latin-1").encode("utf-16")
            case "empty":
                return b""
        raise AssertionError(self.kind)


KINDS = ("flip", "truncate", "insert", "remove", "zero", "repeat line", "swap lines", "windows", "utf-16", "empty")
shares = st.floats(0, 1, exclude_max=True)
damages = st.builds(Damage, st.sampled_from(KINDS[:7] * 3 + KINDS[7:]), shares, shares, st.integers(0, 255))


def packed_or_refused(name: str, source: Path, out: Path, *options: str) -> Path | None:
    """Packs into `out`, anew; the directory, checked, with counts that add up, or None after one sentence."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(out.name + ".partial"), ignore_errors=True)
    command = [name, "--source", str(source), "--out", str(out), "--workers", "1", *options]
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main(command)
    said = [line for line in err.getvalue().replace("\r", "\n").split("\n") if line.startswith("data_prep: ")]
    if code == 2:
        assert len(said) == 1 and len(said[0]) < 1_000 and not out.exists(), said
        return None
    assert code == 0 and check(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"] == manifest["kept"] + sum(manifest["dropped"].values())
    assert len(dropped(out)) == sum(manifest["dropped"].values())
    return out


def rewrite(files: dict[Path, bytes]) -> None:
    """Writes each file's bytes."""
    for path, content in files.items():
        path.write_bytes(content)
