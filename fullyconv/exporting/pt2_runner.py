"""A FILE.pt2 run by torch alone, in a process of its own: python -I pt2_runner.py FILE, then a job in JSON a line.

Not a part of the package at run time: it is started by its path, and imports of fullyconv fail in it.
"""

import json
import sys
from typing import final

sys.modules["fullyconv"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import fx  # noqa: E402


@final
class Watching(fx.Interpreter):
    """Keeps the values that are asked for, wherever in the program they are made."""

    def __init__(self, program: fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(program)
        self.wanted, self.found = wanted, {}  # type: ignore[var-annotated]

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.wanted:
            self.found[n.name] = value
        return value


def main(file: str) -> None:
    torch.set_num_threads(1)
    program = torch.export.load(file).module()
    print("ok", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        with np.load(job["fed"]) as fed, torch.inference_mode():
            image = torch.from_numpy(fed["image"])
            outputs = program(image)  # as anybody calls it
            if not set(job["wanted"]) <= set(outputs):
                watching = Watching(program, set(job["wanted"]))
                watching.run(image)
                outputs = {**outputs, **watching.found}
        np.savez(job["answer"], **{f"value{k}": outputs[name].numpy() for k, name in enumerate(job["wanted"])})
        print("ok", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " ")[:500], flush=True)
