"""Any trunk of timm: the same skips, the same geometry, read off the graph or probed (and said).

python examples/timm_trunk.py [--trunk resnet10t]
"""

import argparse

import torch

import fullyconv as fc


def main(trunk: str) -> torch.Tensor:
    model = fc.create(f"fcn8s-timm:{trunk}", classes=5, quiet=True).eval()
    geometry = model.geometry(70, 93)
    print(f"{trunk}: taps at strides {list(geometry.taps)}, {'traced' if geometry.exact else 'probed'}")
    print(f"a tile needs {geometry.halo} pixels of context to equal the whole")
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, 70, 93))["out"]  # any size in, the same size out
    print(f"scores {tuple(scores.shape)}")
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trunk", default="resnet10t")
    main(parser.parse_args().trunk)
