"""One verified, resumable download. https alone; what has not been checked never stands under its final name."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fullyconv.errors import DataError, FullyconvError, InternalError, MissingInput, TryAgain, UsageError, printable
from fullyconv.files.disk import Lock, make_directory, require_space, sha256_file, storage_errors, sync_directory

__all__ = ["download"]

LIMIT = 64 << 30  # bytes, where no size is given
_REDIRECTS, _ATTEMPTS, _CHUNK = 5, 4, 1 << 20  # hosts use one or two; a download goes on where it broke off; bytes
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all


class _Expected(NamedTuple):
    sha256: str  # 64 hex digits, or fewer where the publisher gives no more
    size: int | None


class _Reply(NamedTuple):
    stream: Any
    status: int
    headers: Any


def download(
    url: str,
    path: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    size: int | None = None,
    unpublished: bool = False,
    progress: Progress | None = None,
    allow_http: bool = False,
    timeout: float = 30.0,
) -> Path:
    """The file at `path`, fetched from `url` unless it is there already; its sha256 is checked on every call.

    sha256: 64 hex digits; sha256_prefix: for publishers that give only the first ones (at least 8). An interrupted
    download goes on where it stopped (Range, If-Range) when the server allows it. `unpublished`: its publisher gives no
    sha256, so https alone vouches for the bytes. `allow_http` is for tests on the local machine. With FULLYCONV_OFFLINE
    set nothing is fetched. Raises DataError (wrong bytes; nothing is left), TryAgain (network; what has come is kept),
    UsageError (not https), MissingInput (offline, or 404).
    """
    expected = _Expected("" if unpublished else _digits(sha256, sha256_prefix), size)
    target = Path(path)
    if target.exists() and _matches(target, expected):
        return target
    if os.environ.get("FULLYCONV_OFFLINE"):
        raise MissingInput(f"{printable(target)} is not here (or damaged), and FULLYCONV_OFFLINE forbids fetching it.")
    _check_url(url, allow_http)
    make_directory(target.parent)
    with Lock(target.with_name(target.name + ".lock")):
        if not (target.exists() and _matches(target, expected)):
            _fetch(url, target, expected, progress, allow_http, timeout)
    return target


def _digits(sha256: str | None, prefix: str | None) -> str:
    digits = (sha256 or prefix or "").lower()
    least = 64 if sha256 else 8
    if not re.fullmatch(r"[0-9a-f]{8,64}", digits) or len(digits) < least:
        raise InternalError("A download needs its sha256 (64 hex digits, or at least the first 8); please report it.")
    return digits


def _matches(path: Path, expected: _Expected) -> bool:
    if expected.size is not None and path.stat().st_size != expected.size:
        return False
    return sha256_file(path).startswith(expected.sha256)


def _check_url(url: str, allow_http: bool) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme != "https" and not (allow_http and scheme == "http"):
        raise UsageError(f"{printable(url)} is not https, so it is not fetched; give an https address.")


def _fetch(
    url: str, target: Path, expected: _Expected, progress: Progress | None, allow_http: bool, timeout: float
) -> None:
    """Fill `target`.part, going on where it stops, then check it and rename it."""
    part = target.with_name(target.name + ".part")
    for attempt in range(_ATTEMPTS):
        try:
            if _receive(url, part, expected, progress, allow_http, timeout):
                break
        except (OSError, http.client.HTTPException) as error:
            if attempt == _ATTEMPTS - 1:
                raise TryAgain(
                    f"Fetching {printable(url)} failed ({printable(error)}); run it again to go on where it stopped."
                ) from error
    else:
        raise TryAgain(f"{printable(url)} broke off {_ATTEMPTS} times; run it again to go on where it stopped.")
    if not _matches(part, expected):
        _forget(part)
        raise DataError(
            f"{printable(url)} gave other bytes than expected (sha256 {expected.sha256[:16]}...); nothing was kept. "
            "Try again, or fetch the file by hand."
        )
    with storage_errors("Writing", target):
        os.rename(part, target)
        _note(part).unlink(missing_ok=True)
    sync_directory(target.parent)


def _note(part: Path) -> Path:
    """Beside the part: which URL and version (ETag or date) its bytes belong to."""
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    with storage_errors("Removing", part):
        part.unlink(missing_ok=True)
        _note(part).unlink(missing_ok=True)


def _receive(
    url: str, part: Path, expected: _Expected, progress: Progress | None, allow_http: bool, timeout: float
) -> bool:
    """One request; True when the server has said that `part` is whole."""
    have, version = _resumable(part, url)
    with _open(url, have, version, allow_http, timeout) as reply:
        if reply.status == 416:  # nothing beyond what we have: whole, or another version; the sha256 will tell
            if expected.size in (None, have) and have:
                return True
            _forget(part)
            return False
        have, total = _position(reply, have, part)
        if expected.size is not None and total not in (None, expected.size):
            raise DataError(f"{printable(url)} is {total} bytes, not {expected.size}; it is not the file expected.")
        require_space(part.parent, (total or expected.size or have) - have)
        _remember(part, url, reply)
        got = _append(reply, part, have, min(total or LIMIT, expected.size or LIMIT), total, progress)
    return got == total if total is not None else True


def _resumable(part: Path, url: str) -> tuple[int, str | None]:
    """How many bytes of `part` can be built on, and the version they are of."""
    try:
        note = json.loads(_note(part).read_text())
        version = note["version"]
        if note["url"] == url and isinstance(version, str):
            return part.stat().st_size, version
    except (OSError, ValueError, KeyError, TypeError):
        pass
    _forget(part)
    return 0, None


def _remember(part: Path, url: str, reply: _Reply) -> None:
    etag = reply.headers.get("ETag")
    version = etag if etag and not etag.startswith("W/") else reply.headers.get("Last-Modified")
    with storage_errors("Writing", _note(part)):
        _note(part).write_text(json.dumps({"url": url, "version": version}))


@contextlib.contextmanager
def _open(url: str, have: int, version: str | None, allow_http: bool, timeout: float) -> Iterator[_Reply]:
    """GET, following at most five redirects, each of them checked like the first address."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPHandler(),  # reached only by addresses that `_check_url` let through
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    headers = {"User-Agent": "fullyconv", "Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    where = url
    for _ in range(_REDIRECTS + 1):
        _check_url(where, allow_http)
        try:
            stream = opener.open(urllib.request.Request(where, headers=headers), timeout=timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (301, 302, 303, 307, 308) and error.headers.get("Location"):
                    where = urllib.parse.urljoin(where, error.headers["Location"])
                    continue
                if error.code != 416:
                    raise _refusal(url, error.code) from error
                yield _Reply(error, 416, error.headers)
                return
        with stream:
            yield _Reply(stream, stream.status, stream.headers)
        return
    raise DataError(f"{printable(url)} redirects more than {_REDIRECTS} times; fetch the file by hand.")


def _refusal(url: str, code: int) -> FullyconvError:
    if code in (404, 410):
        return MissingInput(f"{printable(url)} does not exist there any more ({code}); fetch the file elsewhere.")
    return TryAgain(f"{printable(url)} was refused by its server ({code}); try again later.")


def _position(reply: _Reply, have: int, part: Path) -> tuple[int, int | None]:
    """(where this reply's bytes begin, the whole file's size if told). 200 begins anew whatever was asked."""
    if (reply.headers.get("Content-Encoding") or "identity") != "identity":
        raise DataError("The server sent a compressed reply that was not asked for; fetch the file by hand.")
    length = reply.headers.get("Content-Length", "")
    count = int(length) if length.isdecimal() else None
    if reply.status == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", reply.headers.get("Content-Range", ""))
        if found and int(found[1]) == have:
            return have, int(found[3]) if found[3] != "*" else (None if count is None else have + count)
        _forget(part)
        raise OSError("the server sent another part of the file than was asked for")
    if reply.status != 200:
        raise OSError(f"the server answered {reply.status}")
    return 0, count


def _append(reply: _Reply, part: Path, have: int, limit: int, total: int | None, progress: Progress | None) -> int:
    """Write the body at byte `have`; returns the size then. More bytes than `limit` are refused, not written."""
    with storage_errors("Writing", part):
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    with os.fdopen(fd, "wb") as file:
        file.truncate(have)
        file.seek(have)
        try:
            while chunk := reply.stream.read(_CHUNK):
                have += len(chunk)
                if have > limit:
                    raise DataError(f"{printable(part)}: the server sends more than {limit} bytes; fetch it by hand.")
                with storage_errors("Writing", part):
                    file.write(chunk)
                if progress is not None:
                    progress(have, total)
        except http.client.IncompleteRead as error:
            have += len(error.partial)
            file.write(error.partial)
        finally:
            with storage_errors("Writing", part):
                file.flush()
                os.fsync(file.fileno())
    return have
