"""The `config.pbtxt` by which NVIDIA's Triton Inference Server serves an exported file."""

from __future__ import annotations

from fullyconv.runtime.sealing import ExportFacts

__all__ = ["BATCH", "triton_config"]

BATCH = 8  # images of one size that Triton may put into one batch


def triton_config(about: ExportFacts) -> str:
    """`ModelConfig` as text, of what a file says of itself. The batch is Triton's own axis and so not among `dims`.

    The model's name is left to its directory, as Triton does where none is given.
    """
    channels, small = int(about["input"]["channels"]), about["input"]["kind"] == "uint8"
    inputs = [
        _tensor(
            about["input"]["name"], "UINT8" if small else "FP32", (-1, -1, channels) if small else (channels, -1, -1)
        )
    ]
    outputs = []
    for head, names in about["names"].items():
        classes = int(about["heads"][head])
        for name in names:
            if about["output"] in ("labels", "confidence"):
                kind = "FP32" if name != names[0] else "UINT8" if classes <= 255 else "UINT16"
                outputs.append(_tensor(name, kind, (-1, -1)))
            else:
                outputs.append(_tensor(name, "FP32", (classes, -1, -1)))
    return (
        f'backend: "onnxruntime"\ndefault_model_filename: "model.onnx"\nmax_batch_size: {BATCH}\n'
        f"input [\n{_listed(inputs)}\n]\noutput [\n{_listed(outputs)}\n]\ndynamic_batching {{ }}\n"
    )


def _tensor(name: str, kind: str, dims: tuple[int, ...]) -> str:
    # Names come from heads, which may hold anything that fits a recipe: quoted as protobuf's text format does.
    quoted = str(name).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'  {{ name: "{quoted}", data_type: TYPE_{kind}, dims: [ {", ".join(map(str, dims))} ] }}'


def _listed(parts: list[str]) -> str:
    return ",\n".join(parts)
