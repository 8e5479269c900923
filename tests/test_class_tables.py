"""Tables of classes: every usual way to write one gives the same classes, and none gives others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fullyconv.data.corpora.class_tables import class_table, find_tables, read_classes
from fullyconv.errors import DataError

NAMES = ("ground", "big disc", "box")
COLOURS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def table(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


COLOURED = [
    ("classes.txt", "{n} {r} {g} {b}", ""),
    ("classes.txt", "{n}\t{r}\t{g}\t{b}", ""),
    ("classes.txt", '"{n}" {r} {g} {b}', ""),
    ("classes.txt", "{r} {g} {b}\t\t{n}", ""),
    ("classes.txt", "{n}:{r},{g},{b}::", "# label:color_rgb:parts:actions"),
    ("classes.txt", "{n} {r} {g} {b}", "# r g b name"),
    ("classes.txt", "{n},{r},{g},{b}", "class_name,red,green,blue"),
    ("classes.txt", "{n},{r},{g},{b}", "klasse,rot,gruen,blau"),
    ("classes.txt", "{n} {r} {g} {b}", "name r g b"),
    ("classes.txt", "{n} #{r:02x}{g:02x}{b:02X}", ""),
    ("classes.csv", "{n},{r},{g},{b},1", "name,r,g,b,class_11"),
    ("classes.csv", "{n};{r};{g};{b}", "Name;R;G;B"),
    ("classes.csv", '"{n}","{r}","{g}","{b}"', '"name","r","g","b"'),
    ("classes.csv", "{v},{n},{r},{g},{b}", "id,name,red,green,blue"),
    ("classes.csv", "{v},{n},{r},{g},{b}", ""),
    ("classes.csv", "{v},{r},{g},{b},{n}", ""),
    ("classes.csv", "{n},{r},{g},{b},255", ""),
    ("classes.csv", '{n},"({r}, {g}, {b})"', "label,color"),
    ("classes.csv", "{n},#{r:02x}{g:02x}{b:02x}", "category,hex"),
    ("classes.csv", "\ufeff{n},{r},{g},{b}", ""),
    ("classes.tsv", "{r}\t{g}\t{b}\t{n}", "red\tgreen\tblue\tname"),
    ("classes.txt", "{v} {n} {r} {g} {b}", ""),
    ("classes.txt", "{v} {r} {g} {b} {n}", ""),
]


@pytest.mark.parametrize(("name", "form", "head"), COLOURED)
def test_a_table_of_colours_with_or_without_a_heading_gives_its_classes(
    name: str, form: str, head: str, tmp_path: Path
) -> None:
    rows = [
        (form if k == 0 else form.lstrip("\ufeff")).format(n=n, v=k, r=r, g=g, b=b)
        for k, (n, (r, g, b)) in enumerate(zip(NAMES, COLOURS, strict=True))
    ]
    found = read_classes(table(tmp_path, name, "\n".join([head, *rows] if head else rows)))
    assert (found.taxonomy.names, found.taxonomy.palette) == (NAMES, COLOURS)
    assert found.colours == {c: k for k, c in enumerate(COLOURS)}
    assert found.values == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "ground\nbig disc\nbox\n"),
        ("classes.txt", "class_name\nground\nbig disc\nbox\n"),
        ("classes.txt", "ground, big disc, box"),
        ("classes.csv", "class\nground\nbig disc\nbox\n"),
        ("_classes.csv", "Pixel Value, Class\n0, ground\n1, big disc\n2, box\n"),
        ("labels.txt", "__ignore__\nground\nbig disc\nbox\n"),
        ("classes.csv", "id,name\n2,box\n0,ground\n1,big disc\n"),
        ("classes.csv", "class,name\n0,ground\n1,big disc\n2,box\n"),
        ("classes.csv", "label,value\nground,0\nbig disc,1\nbox,2\n"),
        ("classes.txt", "0: ground\n1: big disc\n2: box\n"),
        ("classes.json", '["ground", "big disc", "box"]'),
        ("classes.json", '{"0": "ground", "2": "box", "1": "big disc"}'),
        ("classes.json", '{"labels": {"ground": 0, "big disc": 1, "box": 2}}'),
        ("classes.json", '[{"id": 0, "name": "ground"}, {"id": 1, "name": "big disc"}, {"id": 2, "name": "box"}]'),
        ("data.yaml", "train: x\nnames: {0: ground, 1: big disc, 2: 'box'}\n"),
        ("data.yaml", "names: [ground, 'big disc', box]\nnc: 3\n"),
        ("data.yaml", "nc: 3\nnames:\n  0: ground\n  1: big disc\n  2: box\npath: .\n"),
        ("data.yaml", "names:\n- ground\n- big disc  # round\n- box\n"),
        ("data.yaml", "names: [ground,\n  big disc,\n  box]\n"),
    ],
)
def test_names_and_numbers_are_read_however_they_are_written(name: str, text: str, tmp_path: Path) -> None:
    found = read_classes(table(tmp_path, name, text))
    assert found.taxonomy.names == NAMES
    assert found.values == {}


def test_numbers_with_gaps_are_values_in_their_order_and_255_void_is_ignored(tmp_path: Path) -> None:
    found = read_classes(table(tmp_path, "classes.csv", "id,name\n7,box\n255,void\n3,ground\n"))
    assert found.taxonomy.names == ("ground", "box")
    assert found.values == {3: 0, 7: 1, 255: 255}


def test_a_heading_and_a_column_that_is_not_used_are_said(tmp_path: Path) -> None:
    notes = class_table(table(tmp_path, "class_dict.csv", "name,r,g,b,class_11\na,1,2,3,1\nb,4,5,6,1\n"))[1]
    assert notes == (
        "the first line of class_dict.csv is its heading (name,r,g,b,class_11), columns left out: class_11.",
    )
    notes = class_table(table(tmp_path, "classes.csv", "0,a,one\n1,b,other\n"))[1]
    assert notes == ("column 3 of classes.csv is not read ('one', ...).",)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("classes.csv", "name,r,g,b\na,1,2,3\nb,4,5\n", "line 3: 'b,4,5' has '' where a number"),
        ("classes.csv", "name,r,g,b\na,1,2,3\nb,4,x,6\n", "line 3: .* 'x' where a number"),
        ("classes.csv", "name,r,g,b\na,1,2,3\nb,4,5,256\n", "line 3: .* above 255"),
        ("classes.csv", "a,1,2,3\nb,4,5,6,7,8\n", "line 2"),
        ("classes.txt", "a 1 2 3\nb\nc 4 5 6\n", "line 2 .*'b'.* has none"),
        ("classes.txt", "a,1,2,3\nb,4,5\n", "line 2 .*'b,4,5'.* has none"),
        ("classes.csv", "a,1,2,3,4\nb,5,6,7,8\n", "write the heading"),
        ("classes.csv", "1,2,3\n4,5,6\n", "no name"),
        ("classes.csv", "a,#000000\nb,#gggggg\n", "line 2: '#gggggg' .* a colour"),
        ("classes.csv", "0,a,#000000\n1,b,#12345\n", "line 2: '#12345' .* a colour"),
        ("classes.csv", "name,color\na,#000000\nb,#gggggg\n", "line 3: .*'#gggggg' .* a colour"),
        ("classes.csv", "id,name\n1,a\n1,b\n", "value 1 twice .line 2 and line 3"),
        ("classes.csv", "name,r,g,b\n", "no class below"),
        ("classes.json", '{"a": {"b": 1}}', "no plain table"),
        ("classes.json", "{", "no JSON"),
        ("data.yaml", "names: *other\n", "no plain table"),
        ("data.yaml", "train: x\n", "no list of names"),
    ],
)
def test_a_line_that_is_no_class_is_refused_and_named(name: str, text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        read_classes(table(tmp_path, name, text))


def test_tables_are_found_by_their_usual_names_the_plainest_first(tmp_path: Path) -> None:
    for name in ("label_colors.txt", "classes.txt", "_classes.csv", "readme.txt", "train.txt", "classes-side.txt"):
        table(tmp_path, name, "a\n")
    assert [f.name for f in find_tables([tmp_path])] == ["classes.txt", "_classes.csv", "label_colors.txt"]
    assert [f.name for f in find_tables([tmp_path], "side")] == ["classes-side.txt"]


def test_a_pipe_named_like_a_table_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "classes.txt")
    with pytest.raises(DataError, match="not a regular file"):
        read_classes(tmp_path / "classes.txt")
