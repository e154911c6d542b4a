"""From a path that somebody wrote into a table to a file inside the source: nothing outside is ever opened.

A path is relative to the source's root with "/" between its parts. Absolute paths, "..", back-slashes, NUL bytes and
symbolic links that lead out of the root are refused, as are pipes, devices and directories.
"""

import errno
import os
import re
import stat
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from data_prep.packed import Rejected

MAX_FILE_BYTES = 128 << 20  # no photograph is as large; a file is read whole before it is decoded
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
REFUSED = "path refused"
MISSING = "image file is missing"

_DRIVE = re.compile(r"[A-Za-z]:")
_IMPOSSIBLE = (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EILSEQ)


@dataclass(frozen=True, slots=True)
class Located:
    """A regular file: its path relative to the root, as it is on the disk, its bytes and its modification time."""

    path: str
    size: int
    mtime_ns: int


def shown(text: str) -> str:
    """A path or field as it can be printed and stored: at most 200 characters, control characters escaped."""
    text = text if text.isprintable() else text.encode("unicode_escape").decode()
    return text if len(text) <= 200 else text[:197] + "..."


def is_image_name(name: str) -> bool:
    """Whether a file's extension is that of an image that `data_prep.images` reads."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_text(name: str) -> bool:
    """Whether a name from the disk can be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def refusal(path: str) -> Rejected | None:
    """Why a path in a table is not accepted, whatever lies on the disk; None if nothing speaks against it."""
    fault = _path_fault(path)
    return Rejected(REFUSED, f"{fault}: {shown(path)}") if fault else None


def below(folder: str, path: str) -> str:
    """`path` inside `folder`; one that is refused stays as it is written, so that the record shows it."""
    return path if not folder or _path_fault(path) else f"{folder}/{path}"


class Root:
    """Finds files below one directory.

    `any_extension` also accepts a file of the same name in another case, another Unicode form or with another
    extension, if there is exactly one: some tables say .JPG or .png where the disk has .jpg.
    """

    def __init__(self, folder: Path, any_extension: bool = False) -> None:
        self.folder, self._real, self._loose = folder, os.path.realpath(folder), any_extension
        self._inside = lru_cache(4096)(self._is_inside)
        self._names = lru_cache(64)(self._list_names)

    def locate(self, path: str) -> Located | Rejected:
        """The file that `path` names, or why it cannot be used. Raises OSError only if the disk itself fails."""
        why = refusal(path)
        if why:
            return why
        folder, _, name = path.rpartition("/")
        try:
            if not self._inside(folder):
                return Rejected(REFUSED, f"a link leads out of the source: {shown(path)}")
            found = self._stat(path)
            if found is None and self._loose:
                names = self._names(folder)
                name = names.get(_loose(name)) or names.get(_loose(_stem(name)))
                if name:
                    path = f"{folder}/{name}" if folder else name
                    found = self._stat(path)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            found = None
        if isinstance(found, os.stat_result):
            return _checked(path, found)
        return found or Rejected(MISSING, shown(path))

    def _stat(self, path: str) -> os.stat_result | Rejected | None:
        """What lies there, a link inside the root followed; None if there is nothing."""
        whole = f"{self._real}/{path}"
        try:
            found = os.lstat(whole)
            if stat.S_ISLNK(found.st_mode):
                if not self._contains(os.path.realpath(whole)):
                    return Rejected(REFUSED, f"a link leads out of the source: {shown(path)}")
                found = os.stat(whole)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            return Rejected("image file cannot be opened", shown(path))
        except OSError as error:
            if error.errno not in _IMPOSSIBLE:
                raise
            return Rejected(REFUSED, f"{error.strerror}: {shown(path)}")
        return found

    def _contains(self, real: str) -> bool:
        return os.path.commonpath([self._real, real]) == self._real

    def _is_inside(self, folder: str) -> bool:
        return self._contains(os.path.realpath(f"{self._real}/{folder}"))

    def _list_names(self, folder: str) -> dict[str, str]:
        """Names in a folder by their loose form and by that of their stem; one shared by two names leads nowhere."""
        found: dict[str, str] = {}
        for form in (_loose, lambda name: _loose(_stem(name))):
            here: dict[str, list[str]] = {}
            for name in os.listdir(f"{self._real}/{folder}"):
                here.setdefault(form(name), []).append(name)
            found = {**{key: names[0] for key, names in here.items() if len(names) == 1}, **found}
        return found


def _path_fault(path: str) -> str:
    """What makes a path unacceptable whatever lies on the disk, "" for nothing."""
    if not path.strip():
        return "empty"
    if "\0" in path:
        return "NUL byte"
    if "\\" in path:
        return "back-slash, use / between folders"
    if path.startswith("/") or _DRIVE.match(path):
        return "absolute, must be relative to the source"
    if ".." in path.split("/"):
        return "leads out of the source"
    if not is_text(path):
        return "not UTF-8"
    return ""


def _checked(path: str, found: os.stat_result) -> Located | Rejected:
    if not stat.S_ISREG(found.st_mode):
        return Rejected("not a regular file", shown(path))
    if not found.st_size:
        return Rejected("image file is empty", shown(path))
    if found.st_size > MAX_FILE_BYTES:
        return Rejected("image file is too large", f"{found.st_size >> 20:,} MB: {shown(path)}")
    return Located(path, found.st_size, found.st_mtime_ns)


def _loose(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
