"""Tables of classes as people write them: names, colours, values; with and without a heading; CSV, text, JSON, YAML.

Every line is a class, a heading that is recognised, or an error that names it: nothing moves up or down by one.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fullyconv.data.corpora.class_entries import json_rows, yaml_rows
from fullyconv.data.corpora.class_rows import (
    HEX,
    MEANS,
    ClassRow,
    bare_name,
    colour_of,
    rows_coding,
    table_text,
    value_of,
)
from fullyconv.data.corpora.coding import Coding
from fullyconv.errors import DataError, printable
from fullyconv.taxonomy import Colour, Taxonomy

__all__ = ["class_table", "classes_text", "find_tables", "read_classes", "table_rank"]

_PLAIN = ("classes", "classnames", "classdict", "labelmap", "labelcolors", "labelcolours", "classname", "classlist")
_OTHER = ("classcolors", "classcolours", "labels", "labelnames", "labelname", "labellist", "labelcolor", "labelcolour")
_RARE = ("codes", "categories", "categorynames", "colormap", "colourmap", "colors", "colours", "legend", "names")
_IDS = ("id2label", "label2id", "idtolabel", "labeltoid", "id2class", "class2id", "idtoclass", "classtoid")
_INDICES = ("idx2label", "label2idx", "idx2class", "class2idx", "idxtoclass", "classtoidx", "id2name", "name2id")
_STEMS = (*_PLAIN, *_OTHER, *_RARE, *_IDS, *_INDICES)
_SUFFIXES = (".txt", ".csv", ".tsv", ".names", ".json", ".yaml", ".yml", ".clr")
_YAML = ("data", "dataset")  # data.yaml is a table of classes among other things


def find_tables(folders: Iterable[Path], head: str = "semantic") -> list[Path]:
    """The files in `folders` that are named like tables of the head's classes, the plainest names first."""
    found: dict[Path, tuple[int, int]] = {}
    for folder in dict.fromkeys(folders):
        if folder.is_dir():
            for file in sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES):
                rank = table_rank(file, head)
                if rank is not None and file not in found:
                    found[file] = rank
    return sorted(found, key=lambda f: found[f])  # stable: earlier folders first


def table_rank(file: Path, head: str = "semantic") -> tuple[int, int] | None:
    """How plainly a file's name says that it is the head's table (less is plainer); None where it does not."""
    stem, suffix = file.stem.lower(), file.suffix.lower()
    if head != "semantic":
        if not stem.endswith(f"-{head.lower()}"):
            return None
        stem = stem[: -len(head) - 1]
    plain = re.sub(r"[-_. ]", "", stem)
    if suffix not in _SUFFIXES or plain not in (*_STEMS, *(_YAML if suffix in (".yaml", ".yml") else ())):
        return None
    return _STEMS.index(plain) if plain in _STEMS else len(_STEMS), _SUFFIXES.index(suffix)


def read_classes(file: Path) -> Coding:
    """The classes in a table; see `class_table`."""
    return class_table(file)[0]


def class_table(file: Path) -> tuple[Coding, tuple[str, ...]]:
    """The classes in a table, and what was taken for a heading or left out; in a text one line each:

        road                name alone
        road 128 64 128     with its colour (also name,r,g,b and r g b name, #804080 for a colour)
        road = 255          with the value that stands for it in the label files (also 255 road, road: 255, if all are)
        7,road,128,64,128   with both
        !void 0 0 0         ! marks a colour or value that is ignored

    Columns may have a heading (name, id, red, green, blue, color and their like) in any order. JSON: a list or mapping
    of the same; YAML: the list or mapping `names`.

    Raises DataError for a file that is not UTF-8 text, is empty, has a line that is none of these (it is named) or
    gives a name, value or colour twice.
    """
    notes: list[str] = []
    if file.suffix.lower() == ".json":
        rows = json_rows(file)
    elif file.suffix.lower() in (".yaml", ".yml"):
        rows = yaml_rows(file)
    else:
        rows = _text_rows(file, notes)
    return rows_coding(rows, file), tuple(notes)


def classes_text(taxonomy: Taxonomy) -> str:
    """What `read_classes` reads as these classes: with their colours where each has one of its own.

    DataError for names that would be read as something else: line ends, `name = value`, a leading # or !.
    """
    names, colours = taxonomy.names, taxonomy.palette
    if len(set(colours)) < len(names) or any(n.startswith(("!", "#")) for n in names):
        text = "".join(f"{name}\n" for name in names)
    else:
        text = "".join(f"{name} {r} {g} {b}\n" for name, (r, g, b) in zip(names, colours, strict=True))
    _refuse_others(text, names)
    return text


_WORDS = re.compile(r"[^\W\d_]+(?:[ _.-]?[^\W_]+)*")  # words of letters and digits


def _refuse_others(text: str, names: Sequence[str]) -> None:
    """DataError unless `text` is read as `names` (but for blanks around them)."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "classes.txt")
        try:
            file.write_text(text, encoding="utf-8")
            found: tuple[str, ...] = read_classes(file).taxonomy.names
        except (DataError, UnicodeEncodeError):
            found = ()
    if found != tuple(name.strip() for name in names):
        wrong = next((n for n in names if not _WORDS.fullmatch(n)), names[0])
        raise DataError(
            f"The class {printable(wrong)[:80]!r} would be read from a classes.txt as something else; rename it: "
            "letters first, then letters, digits and single blanks."
        )


# ---- text ------------------------------------------------------------------------------------------------------

_Line = tuple[int, str]


def _text_rows(file: Path, notes: list[str]) -> list[ClassRow]:
    text = table_text(file)
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    lines = [(n, line) for n, line in lines if not line.startswith("#") or HEX.match(line)]
    if not lines:
        raise DataError(f"{printable(file)} names no class; write one class name a line.")
    if rows := _tools_rows(lines, file):
        return rows
    lines = _without_frame(lines)
    if cells := _columns(lines, file):
        return _table_rows(cells, file, notes)
    if len(lines) == 1 and "," in lines[0][1] and not re.search(r"\d", lines[0][1]):
        notes.append(f"{printable(file.name)} is one line: its names are parted at the commas.")
        names = lines[0][1].strip("[]{}() ").split(",")
        return [ClassRow(bare_name(name), None, None, "line 1") for name in names if name.strip()]
    return _plain_rows([(n, re.sub(r"\s#\s.*", "", line)) for n, line in lines], file, notes)


_NUMBERS_NAME = re.compile(r'^(\d{1,5}(?:[\s,;]+\d+(?:\.\d+)?)+)[\s,;]+"?([^\d\s"].*?)"?$')


def _tools_rows(lines: Sequence[_Line], file: Path) -> list[ClassRow]:
    """Numbers before every name: value r g b alpha (QGIS, GDAL, .clr) and index r g b alpha visible mesh (ITK-SNAP).
    [] for others that are read; DataError for numbers that nobody knows the meaning of."""
    lines = [(n, line) for n, line in lines if not line.startswith("INTERPOLATION:")]
    found = [_NUMBERS_NAME.match(line) for _, line in lines]
    rows = [(m, re.split(r"[\s,;]+", m[1])) for m in found if m]
    counts = {len(numbers) for _, numbers in rows}
    if len(rows) < len(lines) or not rows or counts <= {3, 4}:
        return []
    if len(counts) > 1 or not counts <= {5, 7}:
        raise DataError(
            f"{printable(file)}, line {lines[0][0]}: {printable(lines[0][1][:60])!r} has {len(rows[0][1])} numbers "
            "before the name, which may mean anything; write name r g b, or value name."
        )
    return [
        ClassRow(bare_name(m[2]), _bytes(numbers[1:4], n, file), value_of(numbers[0], file), f"line {n}", numbered=True)
        for (n, _), (m, numbers) in zip(lines, rows, strict=True)
    ]


def _without_frame(lines: Sequence[_Line]) -> list[_Line]:
    """Lines without the strokes that frame a table (| id | name |, |---|---|)."""
    if not all("|" in line for _, line in lines):
        return list(lines)
    return [(n, line.strip("| ")) for n, line in lines if not re.fullmatch(r"[\s|:+-]+", line)]


def _columns(lines: Sequence[_Line], file: Path) -> list[tuple[int, list[str]]]:
    """The lines' cells where tabs, semicolons or commas part them alike; [] for plain lines."""
    csv_named = file.suffix.lower() in (".csv", ".tsv")
    if all(_CVAT.match(line) for _, line in lines):
        return []
    for sign in "\t;|,":
        try:
            cells = [(n, [c.strip() for c in next(csv.reader([line], delimiter=sign))]) for n, line in lines]
        except csv.Error as error:
            raise DataError(f"{printable(file)} is no table ({printable(error)}); write one class a line.") from error
        counts = {len(c) for _, c in cells}
        if max(counts) == 1 or (min(counts) == 1 and not csv_named):
            continue
        table = len(counts) == 1 and all(_is_table_row(c) for _, c in cells[1:]) and len(cells) > 1
        if csv_named or _heading([c for _, c in cells]) or table:
            return cells
    return [(n, [line.strip('"')]) for n, line in lines] if csv_named else []


def _is_table_row(cells: Sequence[str]) -> bool:
    """Whether cells are a name with a number of its own or a colour."""
    numbers = sum(c.isdecimal() for c in cells)
    names = sum(not c.isdecimal() and bool(c) for c in cells)
    return names >= 1 and (numbers in (1, 3, 4) or any(colour_of(c) is not None for c in cells))


def _heading(cells: Sequence[Sequence[str]]) -> dict[str, int]:
    """{what: column} by a heading of known words (a name, and more than it unless it is the only column), else {}."""
    words = [MEANS.get(re.sub(r"[^a-z]", "", c.lower()) if not re.search(r"\d", c) else "?", "?") for c in cells[0]]
    columns: dict[str, int] = {}
    for k, what in enumerate(words):
        some = [row[k] for row in cells[1:] if k < len(row)]
        digits = bool(some) and all(s.isdecimal() for s in some)
        if what == "named":
            what = "value" if digits and "value" not in words else "name" if "name" not in words else "?"
        if what == "colour" and digits:
            what = "?"
        if what not in ("?", "") and what not in columns:
            columns[what] = k
    if "name" not in columns or (len(cells[0]) > 1 and len(columns) < 2):
        return {}
    return columns


def _table_rows(cells: Sequence[tuple[int, list[str]]], file: Path, notes: list[str]) -> list[ClassRow]:
    """The rows of a table of columns, by its heading or by what stands in them."""
    head = cells[0][1]
    if columns := _heading([c for _, c in cells]):
        unused = [head[k] for k in range(len(head)) if k not in columns.values() and head[k]]
        rest = f", columns left out: {', '.join(map(printable, unused))}" if unused else ""
        notes.append(f"the first line of {printable(file.name)} is its heading ({_shown(head)}){rest}.")
        cells = cells[1:]
    else:
        if len(cells) > 1 and not any(map(_numeric, head)) and any(map(_numeric, cells[1][1])):
            notes.append(f"the first line of {printable(file.name)} is taken for a heading ({_shown(head)}).")
            cells = cells[1:]
        columns = _guessed([c for _, c in cells], file, cells[0][0])
        notes += _left_out(cells, columns, file)
    if not cells:
        raise DataError(f"{printable(file)} has a heading and no class below it; write one class a line.")
    for n, row in cells:
        if any(row[len(head) :]):
            raise DataError(
                f"{printable(file)}, line {n}: {_shown(row)!r} has {len(row)} columns, the first line {len(head)}; "
                "correct the line."
            )
    return [_table_row(n, row, columns, file) for n, row in cells]


def _left_out(cells: Sequence[tuple[int, list[str]]], columns: Mapping[str, int], file: Path) -> list[str]:
    """A note of the columns that no heading names and that are not read; DataError for one of colours that are not
    all colours."""
    notes = []
    for k in sorted(set(range(max(len(row) for _, row in cells))) - set(columns.values())):
        column = [(n, row[k] if k < len(row) else "") for n, row in cells]
        if any(c.startswith("#") and colour_of(c) is not None for _, c in column):
            n, wrong = next((n, c) for n, c in column if colour_of(c) is None)
            raise DataError(
                f"{printable(file)}, line {n}: {printable(wrong[:40])!r} stands where a colour is expected, such as "
                "#804080; correct the line."
            )
        if not all(c.isdecimal() or not c for _, c in column):
            example = next(c for _, c in column if c)
            notes.append(f"column {k + 1} of {printable(file.name)} is not read ({printable(example[:40])!r}, ...).")
    return notes


def _shown(cells: Sequence[str]) -> str:
    return ",".join(map(printable, cells))[:80]


def _numeric(cell: str) -> bool:
    return cell.isdecimal() or bool(HEX.fullmatch(cell) and cell.startswith("#")) or colour_of(cell) is not None


def _guessed(cells: Sequence[Sequence[str]], file: Path, line: int) -> dict[str, int]:
    """What the columns of a table without a heading are: one name, three bytes or a colour, one number."""
    width = max(map(len, cells))
    numbers = [k for k in range(width) if all(k < len(r) and r[k].isdecimal() for r in cells)]
    colour = [k for k in range(width) if all(k < len(r) and colour_of(r[k]) is not None for r in cells)]
    colour = [k for k in colour if k not in numbers]
    names = [
        k for k in range(width) if k not in numbers and k not in colour and any(k < len(r) and r[k] for r in cells)
    ]
    columns = {"name": names[0]} if names else {}
    if len(numbers) == 4 and names:
        apart = [numbers[k] for k, near in ((0, 1), (3, 2)) if abs(numbers[k] - numbers[near]) > 1]
        if not apart and all(r[numbers[3]] == "255" for r in cells):
            numbers = numbers[:3]  # alpha
        elif apart or numbers[0] < names[0]:  # id,name,r,g,b; name,r,g,b,x,id; id,r,g,b,name
            columns["value"] = (apart or numbers)[0]
            numbers = [n for n in numbers if n != columns["value"]]
    if len(numbers) == 3 and numbers[2] - numbers[0] == 2:
        columns |= dict(zip("rgb", numbers, strict=True))
    elif len(numbers) == 1:
        columns["value"] = numbers[0]
    elif numbers:
        raise DataError(
            f"{printable(file)}, line {line}: {_shown(cells[0])!r} has {len(numbers)} numbers and no heading "
            "says which they are; write the heading name,r,g,b (or id,name,r,g,b) over the columns."
        )
    if colour:
        columns["colour"] = colour[0]
    if "name" not in columns:
        raise DataError(
            f"{printable(file)}, line {line}: {_shown(cells[0])!r} holds no name of a class; write name,r,g,b, or "
            "one name a line."
        )
    return columns


def _table_row(n: int, row: Sequence[str], columns: Mapping[str, int], file: Path) -> ClassRow:
    """A row by its columns; DataError that names the line for a cell that is missing or no number."""
    cells = {what: row[k] if k < len(row) else "" for what, k in columns.items()}
    colour: Colour | None = None
    value: int | None = None
    wrong: list[str] = [w for w in ("r", "g", "b", "value") if w in cells and not cells[w].isdecimal()]
    if "colour" in cells:
        colour = colour_of(cells["colour"])
        wrong += ["colour"] if colour is None else []
    if wrong or not cells["name"]:
        what = f"{cells[wrong[0]]!r} where a {_KINDS[wrong[0]]} is expected" if wrong else "no name"
        raise DataError(
            f"{printable(file)}, line {n}: {printable(_shown(row))!r} has {printable(what)}; correct the line."
        )
    if "r" in cells and "g" in cells and "b" in cells:
        colour = _bytes([cells[c] for c in "rgb"], n, file)
    if "value" in cells:
        value = value_of(cells["value"], file)
    return ClassRow(cells["name"].strip("\"'"), colour, value, f"line {n}", numbered=value is not None)


_KINDS = {"r": "number 0..255", "g": "number 0..255", "b": "number 0..255", "value": "number", "colour": "colour"}


def _bytes(texts: Sequence[str], n: int, file: Path) -> Colour:
    if any(len(t) > 3 or int(t) > 255 for t in texts):
        raise DataError(f"{printable(file)}, line {n}: the colour {' '.join(texts)[:40]} is above 255; give bytes.")
    r, g, b = map(int, texts)
    return r, g, b


# ---- plain lines -----------------------------------------------------------------------------------------------

_NUMBER = r"\s*(\d{1,5})\s*"
_NAME_RGB = re.compile(rf"^(?P<name>.*?)[\s,;:]+{_NUMBER}[\s,;]{_NUMBER}[\s,;]{_NUMBER}$")  # name r g b
_RGB_NAME = re.compile(rf"^{_NUMBER}[\s,;]{_NUMBER}[\s,;]{_NUMBER}[\s,;]+(?P<name>\D.*)$")  # r g b name
_CVAT = re.compile(rf"^(?P<name>[^:]+):{_NUMBER},{_NUMBER},{_NUMBER}(?::.*)?$")  # CVAT's labelmap.txt
_NAME_HEX = re.compile(r"^(?P<name>\S.*?)[\s,;:]+(?P<hex>#[0-9a-fA-F]{6})$")
_HEX_NAME = re.compile(r"^(?P<hex>#[0-9a-fA-F]{6})[\s,;:]+(?P<name>\S.*)$")
_NUMBERED = re.compile(r"^(\d{1,5})[\s,;:]+(\S.*)$")
_NUMBERS = re.compile(r"(?<![\w#])\d+(?!\w)")
_BARE = re.compile(r"^(?P<value>\d{1,5})\s*[\s:,;=\t.)]\s*(?P<name>[^\d\s].*)$")  # 7 road, 7: road, 7. road
_BARE_LAST = re.compile(r"^(?P<name>[^:,;\t]*[^\d\s:,;\t])\s*[:,;\t]\s*(?P<value>\d{1,5})$")  # road: 7
_EQUALS = re.compile(r"^(?P<name>.*\S)\s*=\s*(?P<value>\d+)$")  # road = 7


def _plain_rows(lines: Sequence[_Line], file: Path, notes: list[str]) -> list[ClassRow]:
    """Lines without columns. If one gives a colour (or a value) all must; else each is a name."""
    if len(lines) > 1 and _is_heading(lines[0][1], lines[1][1]):
        notes.append(f"the first line of {printable(file.name)} is its heading ({printable(lines[0][1])[:80]}).")
        lines = lines[1:]
    coloured = [_coloured(n, line, file, numbered=True) for n, line in lines]
    if any(coloured):
        if not all(r and r.numbered for r in coloured):  # 3 days 1 2 3
            coloured = [_coloured(n, line, file, numbered=False) for n, line in lines]
        return _all_given(coloured, lines, file, "colour (name r g b)")
    equal = [_EQUALS.match(line) for _, line in lines]
    if any(equal):
        rows = [
            ClassRow(bare_name(m["name"]), None, value_of(m["value"], file), f"line {n}") if m else None
            for m, (n, _) in zip(equal, lines, strict=True)
        ]
        return _all_given(rows, lines, file, "values (name = value)")
    for pattern in (_BARE, _BARE_LAST):
        found = [m for _, line in lines if (m := pattern.match(line))]
        if len(found) == len(lines) and len({int(m["value"]) for m in found}) == len(found):
            return [
                ClassRow(bare_name(m["name"]), None, value_of(m["value"], file), f"line {n}", numbered=True)
                for m, (n, _) in zip(found, lines, strict=True)
            ]
    return [ClassRow(bare_name(line), None, None, f"line {n}") for n, line in lines]


def _is_heading(line: str, following: str) -> bool:
    words = [MEANS.get(re.sub(r"[^a-z]", "", w.lower()), "?") for w in re.split(r"[\s,;:|]+", line) if w]
    whole = MEANS.get(re.sub(r"[^a-z]", "", line.lower()), "?") == "name"
    several = len(words) > 1 and "?" not in words and bool(re.search(r"\d|#", following))
    plain = re.sub(r"[^a-z]", "", line.lower())
    alone = (plain in _HEADINGS and not re.search(r"\d", line)) or (line.endswith(":") and not following.endswith(":"))
    return (whole and "name" in line.lower()) or alone or (several and not re.search(r"\d", line))


_HEADINGS = ("class", "classes", "label", "labels", "category", "categories", "names", "classlabels")


def _coloured(n: int, line: str, file: Path, *, numbered: bool) -> ClassRow | None:
    """A line that ends or begins with a colour; numbered: with a number before, "7 road 1 2 3" or "7 1 2 3 road"."""
    for pattern in (_NAME_HEX, _HEX_NAME):
        if m := pattern.match(line):
            return ClassRow(bare_name(m["name"]), colour_of(m["hex"]), None, f"line {n}")
    number = _NUMBERED.match(line) if numbered and len(_NUMBERS.findall(line)) >= 4 else None
    value = value_of(number[1], file) if number else None
    for pattern in (_CVAT, _NAME_RGB, _RGB_NAME):
        if (found := pattern.match(number[2] if number else line)) and not found["name"].strip().isdecimal():
            groups = [g for k, g in enumerate(found.groups(), 1) if k != pattern.groupindex["name"]]
            return ClassRow(
                bare_name(found["name"]), _bytes(groups, n, file), value, f"line {n}", numbered=bool(number)
            )
    return None


def _all_given(rows: Sequence[ClassRow | None], lines: Sequence[_Line], file: Path, what: str) -> list[ClassRow]:
    for row, (n, line) in zip(rows, lines, strict=True):
        if row is None:
            raise DataError(
                f"{printable(file)} gives a {what} to some classes only, line {n} ({printable(line[:60])!r}) has none; "
                "give one to each, or correct the line."
            )
    return [r for r in rows if r is not None]
