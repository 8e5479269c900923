"""A GeoPackage is a database: what it would compute while it is read is refused before GDAL opens it."""

from __future__ import annotations

import contextlib
import sqlite3
import urllib.parse
from pathlib import Path

from fullyconv.errors import DataError, printable

__all__ = ["refuse_computed_tables"]


def refuse_computed_tables(path: Path) -> None:
    """DataError for views and computed columns: one line of SQL can be rows without end."""
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as base:
            found = base.execute("SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
            computed = [str(name) for kind, name in found if kind == "view"]
            for name in (name for kind, name in found if kind == "table"):
                columns = base.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden IN (2, 3)", (name,))
                computed += [f"{name}.{column}" for (column,) in columns]
    except (sqlite3.Error, UnicodeError) as error:
        raise DataError(f"{printable(path)} cannot be read ({printable(error)[:160]}); export it again.") from error
    if computed:
        raise DataError(
            f"{printable(path)} computes {printable(computed[0])[:80]!r} when it is read (a view or a computed "
            "column), which may never end; export the layer by itself."
        )
