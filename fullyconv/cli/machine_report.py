"""What `fullyconv info` without a name prints: what this machine offers, and what is chosen by it."""

from __future__ import annotations

from typing import Any

__all__ = ["machine_facts", "print_machine"]


def print_machine(as_json: bool) -> None:
    """Print `machine_facts`, a line each, or as one JSON object; what is amiss as notes on stderr."""
    import json
    import sys

    from fullyconv import processor

    found = machine_facts()
    if as_json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            words = ", ".join(value) or "none" if isinstance(value, list) else value
            print(f"{key.replace('_', ' '):26}{words}")
    for note in [*processor.right_threads(), processor.numba_note(), _others(found)]:
        if note:
            print(note, file=sys.stderr)


def machine_facts() -> dict[str, Any]:
    """Instruction sets, cores, threads, memory, huge pages, GPU, and the precision that "auto" comes to."""
    import importlib.util

    from fullyconv import processor

    try:
        import torch
    except ModuleNotFoundError:
        torch = None  # type: ignore[assignment]
    load = processor.busy_cores()
    return {
        "processor": processor.name(),
        "instruction_sets": list(processor.instruction_sets()),
        "width": processor.width(),
        "cores": processor.cores(),
        "cores_granted": processor.cores_granted(),
        "threads": torch.get_num_threads() if torch else _runtime_threads(),
        "busy_in_the_last_minute": None if load is None else round(load, 2),
        "memory_gib": round(processor.memory() / 2**30, 1),
        "huge_pages": processor.huge_page_setting(),
        "gpu": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count() if torch else 0)],
        "numba": importlib.util.find_spec("numba") is not None,
        "torch": str(torch.__version__) if torch else "none: exported files alone are run",
        "precision": _precision() if torch else "that of the exported file",
    }


def _runtime_threads() -> int:
    from fullyconv.runtime.onnx_session import threads

    return threads()


def _precision() -> str:
    import torch

    from fullyconv.engine.precision import device_has_native

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device_has_native("bf16", device):
        return "auto: bf16 where it is measured to be quicker for the network, else fp32"
    return "auto: fp32 (no bfloat16 arithmetic)"


def _others(found: dict[str, Any]) -> str:
    """Where too few cores are free for the threads, other programs share them."""
    load = found["busy_in_the_last_minute"]
    free = found["cores_granted"] - (load or 0)
    if load is None or free >= min(found["threads"], found["cores_granted"]) - 0.5:
        return ""
    work = f"{load:g} cores' worth of work in the last minute, {found['cores_granted']:g} granted"
    return f"Others use this machine: {work}; times will be longer and unsteady."
