"""What QGIS' plugin Deepness reads from a file's metadata (its `ModelBase`): keys of its own beside ours.

It feeds float32 N C H W, (pixel / 255 - mean) / std of 8-bit bands, sets what is below `seg_thresh` to 0, takes the
arg max over the classes and smooths by `seg_small_segment`.
"""

from __future__ import annotations

import json

from fullyconv.runtime.sealing import ExportFacts

__all__ = ["deepness"]


def deepness(about: ExportFacts) -> dict[str, str]:
    """{key: JSON text}; empty where the plugin would not compute what the network does: it takes full probabilities
    of float images, bands in the network's own order and none of them as a logarithm.

    The ground's resolution is not known and tile sizes are the file's own, so neither is said.
    """
    how = about["preprocessing"]
    if (about["output"], about["input"]["kind"]) != ("probabilities", "float"):
        return {}
    if list(how["order"]) != list(range(len(how["mean"]))) or how["log"]:
        return {}
    names = [dict(enumerate(about["taxonomies"][head]["names"])) for head in about["heads"]]
    metadata = {
        "model_type": "Segmentor",
        "class_names": names[0] if len(names) == 1 else names,
        "standardization_mean": [m / (255 * how["scale"]) for m in how["mean"]],
        "standardization_std": [s / (255 * how["scale"]) for s in how["std"]],
        "seg_thresh": 0,  # above 0, pixels of which no class is that probable become class 0
        "seg_small_segment": 0,
    }
    return {key: json.dumps(value) for key, value in metadata.items()}
