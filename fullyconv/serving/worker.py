"""The process that labels: it loads the network, says what it measured, then answers one image after the other.

    python -m fullyconv.serving.worker FD          (started by `pool`; FD: a socket to the server)

Frames both ways: `HEAD` (bytes of JSON, bytes of body), the JSON, the body. First comes the server's {"model", "tile",
"device", "precision", "limits"}; the worker answers {"ready": ...} or {"failed": ...}; then each {"wanted", "media",
"deadline"} with an image is answered by {"status", ...} with the answer's bytes. It ends when the socket does.

Before the first image comes, it gives up writing files and, on Linux with Landlock, opening any but libraries.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

from fullyconv.errors import DataError, FullyconvError
from fullyconv.images import BadImage
from fullyconv.serving.wanted import MEDIA, Wanted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fullyconv.predict import Predictor

__all__ = ["HEAD", "Refused", "decoded", "end_with_parent", "main", "receive", "send"]

HEAD = struct.Struct(">II")
WARM = (96, 128)  # rows and columns of the image that is labelled before any other


@final
class Late(Exception):
    """The deadline of the image in work has passed."""


def main() -> None:
    """Serve the socket whose descriptor is the first argument."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # the server drains, then closes the socket
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    first = receive(channel)
    if first is None:
        return
    try:
        labeller = Labeller(first[0])
    except FullyconvError as error:
        send(channel, {"failed": {"class": type(error).__name__, "message": str(error)}})
        return
    _confine()
    send(channel, {"ready": labeller.about})
    while (request := receive(channel)) is not None:
        answer, body = labeller.answer(*request)
        send(channel, answer, body)


def end_with_parent() -> None:
    """Be killed when the process that started this one ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _confine() -> None:
    """Whatever an image does to a decoder here: no file is written, no core dumped, none but libraries opened."""
    from fullyconv.sandbox.landlock import restrict_files

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(KeyError, OSError):  # processors whose calls are not known
            restrict_files()


def receive(channel: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    head = _exactly(channel, HEAD.size)
    if head is None:
        return None
    sizes = HEAD.unpack(head)
    text = _exactly(channel, sizes[0])
    body = _exactly(channel, sizes[1])
    return None if text is None or body is None else (json.loads(text), body)


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = channel.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return bytes(data)


def send(channel: socket.socket, message: Mapping[str, object], body: bytes = b"") -> None:
    text = json.dumps(message).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server is gone; the next read says so
        channel.sendall(HEAD.pack(len(text), len(body)) + text)
        channel.sendall(body)


@final
class Labeller:
    """A network and what is asked of it. `about`: what the server says of itself, measured on a forward pass."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from fullyconv.predict import Predictor, open_network

        model = open_network(settings["model"], settings["device"])
        self.predictor: Predictor = Predictor(model, tile=settings["tile"] or None, precision=settings["precision"])
        if (self.predictor.inputs or ("rgb",)) != ("rgb",):
            raise DataError(
                f"This network takes {', '.join(self.predictor.inputs or ())}, and a request holds one colour image; "
                "serve a network of RGB alone."
            )
        self.limits = settings["limits"]
        self.heads = list(self.predictor.heads)
        self.deadline = float("inf")
        self._watch()
        self.about = {
            "name": model.name,
            "heads": [
                {"name": h, "classes": list(t.names), "palette": [list(c) for c in t.palette]}
                for h, t in self.predictor.taxonomies.items()
            ],
            "weights_sha256": self.predictor.backend.digest(),
            "device": str(self.predictor.device),
            "precision": self.predictor.precision,
            "tiling": self.predictor.tiling,
            "warm_seconds": round(self._warm(), 4),
        }

    def _warm(self) -> float:
        """Seconds of a small forward pass, every output tried before: what is compiled on first use is compiled now."""
        import numpy as np

        image = np.arange(WARM[0] * WARM[1] * 3, dtype=np.uint32).astype(np.uint8).reshape(*WARM, 3)
        self.predictor.scores(image)
        self._encoded(Wanted("json", 0, True, True), image)
        self._encoded(Wanted("overlay"), image)
        for media, kind in MEDIA.items():  # after numba is loaded, whose kernels the decoder then takes
            decoded(_drawn(image, kind), media, self.limits)
        begun = time.monotonic()
        self.predictor.labels(image)
        return time.monotonic() - begun

    def _watch(self) -> None:
        """Between two tiles the deadline is looked at."""

        def look() -> None:
            if time.monotonic() > self.deadline:
                raise Late

        self.predictor.before_window = look

    def answer(self, request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        """({"status": 200, "media": ...}, answer) or ({"status", "code", "detail"}, b""). Details never hold what was
        sent, and no path."""
        self.deadline = request["deadline"]
        asked = Wanted(**request["wanted"])
        try:
            image = decoded(body, request["media"], self.limits)
            if asked.output == "probabilities":
                classes = self.predictor.heads[self.heads[asked.head]]
                if classes * image.shape[0] * image.shape[1] * 4 > self.limits["answer"]:
                    return _refused(413, "answer", "Probabilities of so large an image are not sent; ask for json.")
            media, answer = self._encoded(asked, image)
            return {"status": 200, "media": media, "size": list(image.shape[:2])}, answer
        except Refused as error:
            return _refused(*error.args)
        except (BadImage, DataError):
            return _refused(422, "image", "The image is damaged, or not of the kind that Content-Type says.")
        except Late:
            return _refused(504, "deadline", "Labelling took too long; send a smaller image.")
        except Exception as error:
            if isinstance(error, MemoryError) or "memory" in str(error).lower():
                return _refused(413, "memory", "The image is too large for this server's memory.")
            traceback.print_exc()  # a mistake of ours, for the log alone
            return _refused(500, "mistake", "The server made a mistake; its log says which.")

    def _encoded(self, asked: Wanted, image: NDArray[np.number]) -> tuple[str, bytes]:
        from fullyconv.images import encode_label
        from fullyconv.serving.wanted import OUTPUTS

        head = self.heads[asked.head]
        taxonomy = self.predictor.taxonomies[head]
        if asked.output == "probabilities":
            return OUTPUTS[asked.output], self._probabilities(image, head)
        labels = self.predictor.labels(image)[head]
        if asked.output == "labels":
            return OUTPUTS["labels"], encode_label(labels, taxonomy.palette)
        if asked.output == "overlay":
            from fullyconv.drawing import encode_jpeg, overlay

            return OUTPUTS["overlay"], encode_jpeg(overlay(image, labels, taxonomy.palette))
        from fullyconv.serving.answers import described

        return OUTPUTS["json"], json.dumps(described(asked, head, labels, taxonomy)).encode()

    def _probabilities(self, image: NDArray[np.number], head: str) -> bytes:
        """An .npy file, float32 K H W."""
        from io import BytesIO

        import numpy as np

        scores = self.predictor.scores(image)
        scores = scores[head] if isinstance(scores, dict) else scores
        data = BytesIO()
        np.save(data, self.predictor.backend.probabilities(scores, False, scores.shape[1:]))
        return data.getvalue()


def decoded(body: bytes, media: str, limits: Mapping[str, Any]) -> NDArray[Any]:
    """The image H W 3, its header looked at before its pixels; Refused or BadImage for any that is not taken."""
    from fullyconv.images import image_info, read_image

    info = image_info(body, max_pixels=1 << 40)
    if info.format != MEDIA[media]:
        raise Refused(415, "media_type", "The image is of another kind than Content-Type says.")
    if info.frames > 1:
        raise Refused(422, "frames", "The image has several frames; send one.")
    if info.size[0] * info.size[1] > limits["pixels"] or max(info.size) > limits["side"]:
        raise Refused(413, "pixels", f"An image has at most {limits['pixels']} pixels and {limits['side']} a side.")
    return read_image(body, max_pixels=limits["pixels"])


def _drawn(image: NDArray[np.number], kind: str) -> bytes:
    from io import BytesIO

    from PIL import Image

    out = BytesIO()
    Image.fromarray(image).save(out, kind)
    return out.getvalue()


@final
class Refused(Exception):
    """(status, code, detail)."""


def _refused(status: int, code: str, detail: str) -> tuple[dict[str, Any], bytes]:
    return {"status": status, "code": code, "detail": detail}, b""


if __name__ == "__main__":
    main()
