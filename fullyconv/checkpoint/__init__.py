"""Model and run directories as a format: safetensors, JSON and a manifest of sha256 sums. Knows no network, no pickle.

A model directory (Hugging Face layout):

    model.safetensors            the weights
    config.json                  the caller's config + model_type, architectures, id2label, label2id
    preprocessor_config.json     how pixels become input
    canary.safetensors           optional: a small input and the scores it must give
    state.json optim.safetensors optional: everything to resume (see `state`)
    MANIFEST.json                size and sha256 of each file above, format version, and its own sha256
    README.md                    the card; the user's to edit, outside the manifest

    write_model(directory, tensors=model.state_dict(), config=..., preprocessor=..., card="# ...", canary=None,
                state=None)
        Whole or absent, also after a crash or power loss. An existing model directory is exchanged in one step; any
        other non-empty directory is refused. `state`: any nest of dict/list/tuple/str/int/float/bool/None/bytes/
        torch tensors/numpy arrays (an optimiser's state_dict(), RNG states); it comes back equal, types and bits.

    stored = read_model(directory)       needs no torch: manifest, sizes, JSON sums and weight headers are checked
        stored.config, stored.preprocessor, stored.card, stored.step
        stored.header                    {name: TensorInfo(dtype, shape, begin, end)}
        stored.match(model.state_dict()) DataError unless names, shapes and dtypes are exactly these (meta tensors do)
        stored.tensors                   {name: torch CPU tensor}, sha256-checked while read (first access; cached)
        stored.canary                    {"input": N C H W, head: N K h w, ...} or None, checked likewise
        stored.state                     what `state` was, or None, checked likewise
    following(directory, use)            use(stored), begun again if `directory` is a link that moved on meanwhile
    model_of(path)                       the model directory itself, or the best one of a run directory
    check_canary(stored, run)            run(input) -> {head: scores}; DataError when the scores are not the stored ones
    verify(directory) -> Stored          reads and checks every byte now, without torch

    with RunDirectory(path) as run:      flock; TryAgain if another trainer holds it
        stored = run.resume()            newest verified checkpoint or None; metrics.jsonl is cut back to it
        run.notes                        what a user must be told (a damaged checkpoint was passed over)
        run.log({"step": 7, ...})        one line of metrics.jsonl
        run.save(step, tensors=..., config=..., preprocessor=..., card=..., canary=None, state=..., best=False)
        run.latest(), run.best()         Stored or None
        run.rows()                       the rows of metrics.jsonl

Every refusal is an error of `fullyconv.errors` that names the file.
"""

from fullyconv.checkpoint.model import Stored, check_canary, following, read_model, verify_model, write_model
from fullyconv.checkpoint.run import RunDirectory, model_of
from fullyconv.checkpoint.state import pack, unpack

__all__ = [
    "RunDirectory",
    "Stored",
    "check_canary",
    "following",
    "model_of",
    "pack",
    "read_model",
    "unpack",
    "verify_model",
    "write_model",
]
