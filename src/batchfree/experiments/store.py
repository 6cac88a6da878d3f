"""JSON files of checked dataclasses: written in one piece, read with errors that say what to do."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from batchfree._errors import ResultsError
from batchfree._files import write_atomically
from batchfree.experiments._fields import Checked


class Stored(Checked):
    """A checked dataclass that is a file of its own.

    Attributes:
        SCHEMA: what the file says it is.
        REMEDY: what to do with a damaged one.
    """

    SCHEMA: ClassVar[str]
    REMEDY: ClassVar[str]


_T = TypeVar("_T", bound=Stored)


def read_file(path: str | os.PathLike[str], kind: type[_T]) -> _T:
    """Read a file that holds a `kind`.

    Raises:
        ResultsError: there is no such file, or it is cut short, damaged or of another schema; the
            message names the file, the place in it, the field and what to do.
    """
    path = Path(path)
    again = f"{kind.REMEDY}; run the same command again to rebuild it"
    value = _parse(path, again)
    if value["schema"] != kind.SCHEMA:
        raise ResultsError(
            f"{path}: schema {value['schema']!r} where {kind.SCHEMA!r} is read; name a file of "
            "that schema, or read it with the batchfree version that wrote it"
        )
    try:
        return kind.from_json({name: item for name, item in value.items() if name != "schema"})
    except (ResultsError, RecursionError) as error:
        raise ResultsError(f"{path}: {error}; the file is damaged: {again}") from None


def schema_of(path: str | os.PathLike[str]) -> str:
    """The schema that a file names.

    Raises:
        ResultsError: as `read_file`, where the file names none.
    """
    return str(_parse(Path(path), "finished runs are kept beside it under rows/")["schema"])


def write_file(path: str | os.PathLike[str], value: Stored) -> None:
    """Write a file in one piece; its lists of objects have a line for each of them.

    Raises:
        OSError: as `write_whole`.
    """
    content = value.to_json()
    lists = {
        name: item
        for name, item in content.items()
        if isinstance(item, list) and all(isinstance(entry, dict) for entry in item)
    }
    lines = [f'"schema": {_dump(value.SCHEMA)}']
    lines += [f"{_dump(k)}: {_dump(item)}" for k, item in content.items() if k not in lists]
    for name, items in lists.items():
        entries = ",\n".join(map(_dump, items))
        lines.append(f"{_dump(name)}: [\n{entries}\n]")
    write_whole(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file in one piece: a reader finds the old content or the new, never a part.

    Args:
        path: the file; folders above it are made.
        content: of the file.

    Raises:
        OSError: the file cannot be written (disk full, folder read-only, ...); the message names
            it and what to do. It is the subclass that the system raised, with its `errno`.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, content)
    except OSError as error:
        code = error.errno or errno.EIO
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = "free some space and run the same command again"
        else:
            remedy = "choose another file or folder, one that you may write to"
        reason = f"cannot write it ({os.strerror(code)}), what was there before is untouched"
        raise OSError(code, f"{reason}; {remedy}", str(target)) from error


def _dump(value: object) -> str:
    return json.dumps(value, allow_nan=False)


def _parse(path: Path, again: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: there is no such file; name the results.json of a finished experiment "
            "(`batchfree demo` makes one)"
        ) from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror}); name a file") from error
    try:
        value = json.loads(content.decode("utf-8-sig"), parse_constant=_no_constant)
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}; {again}") from None
    except (ValueError, RecursionError) as error:
        problem = "the file ends early" if _is_cut(content) else f"not JSON ({error})"
        raise ResultsError(f"{path}: {problem}; {again}") from None
    if not isinstance(value, dict) or "schema" not in value:
        raise ResultsError(f"{path}: not a batchfree file: it has no field 'schema'; name another")
    return value


def _no_constant(name: str) -> None:
    raise ResultsError(f"{name} is not a JSON number")


def _is_cut(content: bytes) -> bool:
    """Whether brackets or quotes that the text opens are never closed."""
    bare = re.sub(rb'"(?:[^"\\]|\\.)*"', b"", content, flags=re.DOTALL)
    opened = sum(map(bare.count, (b"{", b"["))) - sum(map(bare.count, (b"}", b"]")))
    return not content.strip() or b'"' in bare or opened > 0
