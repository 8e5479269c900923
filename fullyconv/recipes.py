"""Recipes: everything that decides a training run, as one flat TOML table that is checked before anything starts.

`Recipe` is the table; `read_recipe` gets one by name (`fullyconv/published/NAME.toml`), by file, or takes the defaults,
and applies `key=value` settings on top. The resolved recipe is written into the run.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fullyconv.errors import DataError, MissingInput, UnknownName, UsageError, nearest
from fullyconv.files import read_text

__all__ = [
    "AUTO_BATCH",
    "AUTO_CROP",
    "Recipe",
    "key_table",
    "names",
    "parse_time",
    "published_recipe",
    "read_recipe",
    "setting",
]

PUBLISHED = Path(__file__).parent / "published"
DURATION = ("epochs", "steps", "time")
# "auto" of keys that are numbers, until `fullyconv.train.chosen` has settled them by the data.
AUTO_CROP = (0, 0)
AUTO_BATCH = 0  # likewise
AVERAGES = ("mean", "sum", "image-mean")  # of the cross-entropy, where it is the only loss
LOSSES = ("cross_entropy", "focal", "dice", "tversky", "lovasz")


def _or_auto(auto: object) -> BeforeValidator:
    return BeforeValidator(lambda value: auto if value == "auto" else value)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _key(default: Any, description: str, **limits: Any) -> Any:
    """One key: its default, what it means (docs/train.md is made from this), and its limits."""
    if isinstance(default, dict):
        return Field(default_factory=lambda: dict(default), description=description, **limits)
    return Field(default, description=description, **limits)


@final
class Recipe(BaseModel):
    """A training run as data. Keys are flat, unknown keys are refused, values are checked on their own and together.

    >>> fc.Recipe(steps=100, lr=0.01).replace(lr=0.02).lr
    0.02
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    # About the recipe
    name: str = _key("", "Name of the recipe this one came from.")
    source: str = _key("", "Where the recipe was published.")
    expected: str = _key("", "The score to expect, with its data and protocol.")
    stages: tuple[str, ...] = _key(
        (),
        "Recipes run one after the other, each starting from the one before: published ones by name, or files beside "
        "this one (`NAME.toml`).",
    )

    # The network
    model: str = _key(
        "fcn8s-efficientnet_lite0", "Network by name, fcn{32s,16s,8s,4s}-TRUNK; `fullyconv models` lists them."
    )
    weights: str = _key(
        "auto",
        'File with the trunk\'s weights; "auto" takes those of an installed package or of an earlier download, else '
        'none; "imagenet" downloads them; empty learns from scratch.',
    )
    init_from: str = _key("", "Run or model directory to start from by net surgery; two streams: RUN,RUN.")
    padding: Literal["", "paper", "same"] = _key("", "Border handling; empty takes the network's default.")
    options: dict[str, Any] = _key({}, "Further arguments of `models.create`, as an inline table.")
    preprocessing: dict[str, Any] = _key({}, "channels, range, mean, std of weights that come without a sidecar.")
    inputs: tuple[str, ...] = _key((), "Modalities in the network's order; empty takes what its name says.")
    heads: tuple[str, ...] | dict[str, dict[str, Any] | Literal[False]] = _key(
        (),
        "Label heads to learn, by name (empty takes all the data set has), or a table of those to add: "
        "`{from, map}` makes one from another, `{folder, classes}` reads one; `false` leaves one out.",
    )
    frozen_trunk: bool = _key(False, "Learn the score layers only (the paper's 32s-fixed).")
    batch_norm: Literal["auto", "train", "frozen", "unfold"] = _key(
        "auto",
        "Batch statistics are learned, kept as loaded, or measured on the data's own images first, so that the network "
        'learns them and starts as the same function all the same (unfold); auto: "frozen" where a step is too small '
        'for statistics, else "unfold" with trained weights and "train" without.',
    )

    # Images
    split: str = _key("train", "Split that is learned.")
    val_split: str = _key("val", "Split that is measured; empty for none.")
    crop: Annotated[tuple[int, ...], _or_auto(AUTO_CROP)] = _key(
        AUTO_CROP,
        "Largest window (rows, columns) cut from each image; empty takes whole images; auto: what most of the images "
        "hold, up to 512.",
    )
    scale: tuple[float, float] = _key((0.75, 1.5), "Range of the random scale, as a factor.")
    flip: float = _key(0.5, "Share of images mirrored left to right.", ge=0, le=1)
    rotation: float = _key(0.0, "Largest random rotation in degrees.", ge=0, le=180)
    photometric: float = _key(0.0, "Strength of random brightness, contrast and saturation; 0 is off.", ge=0, le=1)
    flip_vertical: float = _key(0.0, "Share of images mirrored top to bottom (aerial images, microscopy).", ge=0, le=1)
    turns: float = _key(0.0, "Share of images turned by 90, 180 or 270 degrees before they are cut.", ge=0, le=1)
    elastic: float = _key(
        0.0, "Largest shift, in pixels, of points 64 pixels apart; what lies between follows.", ge=0, le=16
    )
    blur: float = _key(0.0, "Largest Gaussian blur (sigma, pixels) of every second image.", ge=0, le=20)
    noise: float = _key(
        0.0, "Largest Gaussian noise of every second image, by the image's standard deviation.", ge=0, le=10
    )
    jpeg: float = _key(0.0, "Share of images stored as JPEG of quality 30 to 95 and read again.", ge=0, le=1)
    cutmix: float = _key(
        0.0, "Share of images that get a region of a rare class (the rarer half) of another image.", ge=0, le=1
    )
    transform: str = _key(
        "", "A transform of your own, last of all: `FILE.py:FUNCTION`, or a name in `own.TRANSFORMS`."
    )
    sampling: Literal["epochs", "replacement"] = _key(
        "epochs", "Every image once an epoch in random order, or drawn with replacement (the paper's)."
    )
    batch_size: Annotated[int, _or_auto(AUTO_BATCH)] = _key(
        AUTO_BATCH, "Images a step, all processes together; auto: up to 8, by crop, memory and number of images.", ge=0
    )
    accumulate: int = _key(1, "Passes a step's images are split into, to save memory.", ge=1)
    workers: int = _key(0, "Processes that read and transform images; 0 does it in a thread.", ge=0, le=64)
    cache: Literal["none", "memory", "disk"] = _key(
        "none", "Keep decoded images in memory, or in one file in the run (RUN/cache) until it has ended."
    )
    on_bad_sample: Literal["fail", "skip"] = _key("fail", "An image that cannot be read ends the run or is replaced.")
    max_bad: float = _key(0.01, "With skip: share of images that may be bad before the run ends.", ge=0, le=1)
    worker_timeout: float = _key(10.0, "Seconds standing still at one file after which a worker counts as hung.", gt=0)

    # Loss
    loss: str = _key(
        "mean",
        "Cross-entropy averaged over a step's labelled pixels (mean), summed per image (sum), or averaged image by "
        "image (image-mean); or a sum of cross_entropy, focal, dice, tversky and lovasz, with factors if need be: "
        '"cross_entropy+0.5*dice".',
    )
    focal_gamma: float = _key(2.0, "Focal loss: exponent of 1 - p, by which easy pixels count less.", ge=0, le=20)
    tversky: tuple[float, float] = _key(
        (0.3, 0.7), "Tversky loss: weights of false and of missed pixels (dice: 0.5, 0.5)."
    )
    class_weights: Literal["auto", "none", "median-frequency", "root-median-frequency"] | tuple[float, ...] = _key(
        "auto",
        'Weights of the classes: "none", "median-frequency", "root-median-frequency" (their square roots), or one '
        "number a class; auto: the roots where the largest class has over 20 times the pixels of the smallest.",
    )
    label_smoothing: float = _key(0.0, "Share of the target spread over all classes.", ge=0, lt=1)
    top_k: float = _key(1.0, "Share of the hardest pixels that count (OHEM).", gt=0, le=1)

    # Optimiser
    optimizer: Literal["adamw", "sgd", "caffe-sgd"] = _key("adamw", "caffe-sgd folds the rate into the velocity.")
    lr: float = _key(1e-3, "Learning rate at its highest.", gt=0)
    head_lr: float = _key(1.0, "Factor on the rate of everything but the trunk.", gt=0)
    momentum: float = _key(0.9, "Momentum of SGD, first beta of AdamW.", ge=0, lt=1)
    beta2: float = _key(0.999, "Second beta of AdamW.", ge=0, lt=1)
    weight_decay: float = _key(1e-2, "Weight decay.", ge=0)
    bias_lr: float = _key(1.0, "Factor on the rate of biases (Caffe's recipes: 2).", gt=0)
    bias_decay: bool = _key(False, "Decay biases and batch norm as well.")
    bias_scope: Literal["all", "heads"] = _key(
        "all", "Biases that bias_lr and bias_decay are about; others are weights."
    )
    clip: float = _key(0.0, "Largest norm of the gradient; 0 does not clip.", ge=0)
    schedule: Literal["constant", "poly", "one-cycle"] = _key("poly", "Course of the rate over the run.")
    power: float = _key(0.9, "Exponent of poly.", gt=0)
    warmup: float = _key(0.02, "Share of the run in which the rate rises.", ge=0, lt=1)
    ema: float = _key(
        0.0, "Decay of the running average of the weights that is measured and kept; 0 is off.", ge=0, lt=1
    )

    # Length
    epochs: float = _key(0.0, "Passes over the data; 50 where no length is given.", ge=0)
    steps: int = _key(0, "Steps of the optimiser, in place of epochs.", ge=0)
    time: str = _key("", 'Wall-clock budget such as "30m", in place of epochs; the schedule runs over it.')
    early_stop: int = _key(0, "Measurements without a better mean IU after which the run ends; 0 never.", ge=0)

    # Measuring and keeping
    val_every: float = _key(0.0, "Epochs between measurements; 0 keeps them at a tenth of the work.", ge=0)
    val_share: float = _key(0.1, "Share of the work that measuring may take when val_every is 0.", gt=0, le=1)
    save_every: str = _key("10m", "Time between checkpoints besides those after measurements.")
    max_bad_steps: int = _key(3, "Steps in a row with a NaN or infinite loss or gradient before the run ends.", ge=1)

    # Machine
    device: str = _key("auto", "cpu, cuda, or auto: cuda when there is one.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _key(
        "auto",
        "Numbers of the forward pass (autocast). auto takes bf16 where the processor or GPU has it and a step is "
        "quicker by it, else fp32, and the run keeps what it took.",
    )
    seed: int = _key(0, "Seed of everything random.", ge=0, lt=1 << 63)
    deterministic: bool = _key(False, "Same bits on a GPU too, or an error naming the operation that cannot.")
    tensorboard: bool = _key(False, "Write TensorBoard events into the run as well.")
    loggers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(_listed)] = _key(
        (),
        "Tools that get the figures as well: tensorboard, wandb (offline unless WANDB_MODE says otherwise), mlflow.",
    )

    def model_post_init(self, _context: object) -> None:
        _check_together(self)

    @property
    def seconds(self) -> float:
        """The wall-clock budget in seconds, 0 when there is none."""
        return parse_time(self.time) if self.time else 0.0

    @property
    def loss_terms(self) -> dict[str, float]:
        """The losses that are added up, by name, with their factors; each way to average cross-entropy is that."""
        return {"cross_entropy": 1.0} if self.loss in AVERAGES else _loss_terms(self.loss)

    def replace(self, **changes: object) -> Recipe:
        """A copy with `changes`, checked again."""
        return _build({**self.model_dump(exclude_unset=True), **changes}, "these settings")

    def to_toml(self, only_set: bool = False) -> str:
        """Every key with its value, one a line, in the order of the table; `only_set`: those that were given."""
        table = self.model_dump(exclude_unset=only_set)
        return "".join(f"{key} = {_toml(_worded(key, value))}\n" for key, value in table.items())


def _check_together(recipe: Recipe) -> None:
    """Refuse combinations that cannot be meant."""
    if sum(bool(getattr(recipe, key)) for key in DURATION) > 1:
        raise UsageError("A run has one length: give only one of epochs, steps and time.")
    if len(recipe.crop) not in (0, 2) or (recipe.crop != AUTO_CROP and any(side < 1 for side in recipe.crop)):
        raise UsageError(f"crop = {list(recipe.crop)} is not a window; give two sides (rows, columns) of at least 1.")
    low, high = recipe.scale
    if not 0 < low <= high:
        raise UsageError(f"scale = [{low}, {high}] is not a range of factors; give 0 < low <= high.")
    if recipe.batch_size != AUTO_BATCH and recipe.accumulate > recipe.batch_size:
        raise UsageError(f"accumulate = {recipe.accumulate} splits a step of {recipe.batch_size} images; lower it.")
    if isinstance(recipe.class_weights, tuple) and any(not 0 <= w < math.inf for w in recipe.class_weights):
        raise UsageError("class_weights must be finite and not negative.")
    if isinstance(recipe.class_weights, tuple) and not any(recipe.class_weights):
        raise UsageError("class_weights are all 0, so nothing would be learned; give the classes that count a weight.")
    if isinstance(recipe.class_weights, tuple) and max(recipe.class_weights) > LARGEST_WEIGHT:
        raise UsageError(
            f"class_weights holds {max(recipe.class_weights):g}, with which the loss is infinite within a few steps; "
            f"give weights of about 1, at most {LARGEST_WEIGHT:g}."
        )
    _refuse_large_rates(recipe)
    terms = recipe.loss_terms
    if recipe.top_k < 1 and (recipe.loss in ("sum", "image-mean") or "cross_entropy" not in terms):
        raise UsageError(f'top_k is about cross-entropy averaged over all pixels (loss = "mean"), not {recipe.loss!r}.')
    if recipe.label_smoothing and "cross_entropy" not in terms:
        raise UsageError(
            f"label_smoothing is about cross-entropy; take it out, or add cross_entropy to {recipe.loss!r}."
        )
    if not all(0 < part < math.inf for part in recipe.tversky):
        raise UsageError(f"tversky = {list(recipe.tversky)} must be two numbers above 0, such as [0.3, 0.7].")
    parse_time(recipe.save_every)
    if recipe.time:
        parse_time(recipe.time)
    _refuse_large_sum(recipe)


def _loss_terms(text: str) -> dict[str, float]:
    """ "cross_entropy+0.5*dice" -> {"cross_entropy": 1.0, "dice": 0.5}."""
    terms: dict[str, float] = {}
    for part in text.split("+"):
        factor, star, name = part.rpartition("*")
        name = name.strip()
        if name not in LOSSES:
            raise UnknownName("loss", name, LOSSES if "+" in text or star else (*AVERAGES, *LOSSES))
        if name in terms:
            raise UsageError(f"loss = {text!r} has {name} twice; give it one factor.")
        try:
            terms[name] = float(factor) if star else 1.0
        except ValueError:
            terms[name] = math.nan
        if not 0 < terms[name] <= LARGEST_WEIGHT:
            raise UsageError(
                f"The factor {factor.strip()!r} of {name} in loss = {text!r} is no number above 0 and at most "
                f"{LARGEST_WEIGHT:g}."
            )
    return terms


LARGEST_WEIGHT = 1e6  # a class in one of a million pixels
LARGEST_RATE = 1e4  # a rate above it overflows float32 within a few steps, whatever the network


def _refuse_large_rates(recipe: Recipe) -> None:
    """Numbers that no step survives, told before anything is read."""
    rates = {"lr": recipe.lr, "head_lr": recipe.lr * recipe.head_lr, "bias_lr": recipe.lr * recipe.bias_lr}
    rates["bias_lr"] *= max(1.0, recipe.head_lr)
    rates["weight_decay"] = recipe.lr * recipe.weight_decay * max(1.0, recipe.head_lr, recipe.bias_lr)
    for key, rate in rates.items():
        if not rate <= LARGEST_RATE:
            what = "takes off each weight, every step," if key == "weight_decay" else "makes a learning rate of"
            times = " times itself" if key == "weight_decay" else ""
            raise UsageError(
                f"{key} = {getattr(recipe, key):g} {what} {rate:g}{times}, with which every network ends in infinite "
                f"weights; give one below {LARGEST_RATE:g} (usual are 1e-5 to 0.1)."
            )


def _refuse_large_sum(recipe: Recipe) -> None:
    """A summed loss has gradients of ~10^5 pixels: rates that suit a mean make it NaN within a few steps."""
    if recipe.loss != "sum" or recipe.stages:
        return
    effective = recipe.lr / (1 - recipe.momentum)
    if effective > 1e-7:
        raise UsageError(
            f'loss = "sum" adds up every pixel, so lr = {recipe.lr:g} with momentum {recipe.momentum:g} acts like a '
            f"mean loss at lr = {recipe.lr * 187_500:g} on a 375x500 image; divide by the pixels of an image "
            f'(lr = {recipe.lr / 187_500:.1g}), or use loss = "mean".'
        )


def names() -> list[str]:
    """The published recipes' names, sorted."""
    return sorted(path.stem for path in PUBLISHED.glob("*.toml"))


def published_recipe(name: str) -> Recipe:
    """The published recipe of that name; UnknownName offers the nearest."""
    if name not in names():
        raise UnknownName("recipe", name, names())
    return read_recipe(name)


def read_recipe(recipe: str | Path | None = None, settings: Mapping[str, object] | Iterable[str] = ()) -> Recipe:
    """The recipe of that name or in that file (None: the defaults) with `settings` on top.

    `settings` are a mapping, or texts `key=value` whose value is read as TOML, else as a string; `heads.NAME=value` is
    one entry of a table. A length among them (epochs, steps, time) replaces the recipe's. Raises UnknownName for a key
    or recipe that does not exist, UsageError for a value that does not fit, MissingInput for a file that is not there.
    """
    values, where = _read_table(recipe)
    changes = dict(settings) if isinstance(settings, Mapping) else dict(map(setting, settings))
    if any(key in changes for key in DURATION):
        values = {key: value for key, value in values.items() if key not in DURATION}
    for key, value in changes.items():
        values = _changed(values, key.split("."), value)
    return _build(values, where)


def _changed(table: Mapping[str, object], path: Sequence[str], value: object) -> dict[str, Any]:
    """`table` with the entry at `path` (keys from the outside in) set to `value`."""
    key, *inner = path
    if inner:
        old = table.get(key) or {}
        if not isinstance(old, Mapping):
            raise UsageError(f"{key} = {old!r} is no table, so {'.'.join(path)} cannot be set; set {key} as a whole.")
        value = _changed(old, inner, value)
    return {**table, key: value}


def _read_table(recipe: str | Path | None) -> tuple[dict[str, Any], str]:
    """The table and how to name it in an error."""
    if recipe is None:
        return {}, "the settings"
    text, path = str(recipe), Path(recipe)
    if "/" not in text and not text.endswith(".toml"):
        if text not in names():
            raise UnknownName("recipe", text, names())
        path = PUBLISHED / f"{text}.toml"
    try:
        table = tomllib.loads(read_text(path, 1 << 20))
    except MissingInput as error:
        raise MissingInput(f"The recipe {path} cannot be opened (it does not exist); name a TOML file.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The recipe {path} is not TOML ({error}); correct that line.") from error
    if PUBLISHED in path.parents:
        table.setdefault("name", path.stem)
    elif isinstance(table.get("stages"), list):
        table["stages"] = [_stage_beside(path, stage) for stage in table["stages"]]
    return table, f"the recipe {path.name}"


def _stage_beside(path: Path, stage: object) -> Any:
    """A stage that is a file (NAME.toml) lies beside the recipe that names it; any other is a published recipe."""
    if isinstance(stage, str) and stage.endswith(".toml"):
        return str((path.parent / stage).resolve())
    return stage


def setting(text: str) -> tuple[str, Any]:
    """`key=value`, the value as TOML, else as a string."""
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r} has no value; write it as key=value.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _build(values: Mapping[str, Any], where: str) -> Recipe:
    """A checked Recipe, pydantic's complaint turned into one sentence."""
    for key in values:
        if key not in Recipe.model_fields:
            raise UnknownName("recipe key", key, Recipe.model_fields)
    try:
        return Recipe(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"][:1])
        problem = first["msg"][0].lower() + first["msg"][1:]
        hint = _hint(key, first.get("input"))
        raise UsageError(f"{key} = {first.get('input')!r} in {where} cannot be used: {problem}{hint or '.'}") from None


def _hint(key: str, value: object) -> str:
    """The nearest choice for a mistyped word of a key that takes some words only."""
    kind = str(Recipe.model_fields[key].annotation)
    words = re.findall(r"'([^']+)'", kind) if "Literal" in kind else []
    near = nearest(str(value), words) if isinstance(value, str) else None
    return f"; did you mean {near!r}?" if near else ""


def _worded(key: str, value: object) -> Any:
    """ "auto" in place of the numbers that stand for it."""
    return "auto" if (key, value) in (("crop", AUTO_CROP), ("batch_size", AUTO_BATCH)) else value


def _toml(value: object) -> str:
    """A TOML value: the inverse of tomllib for what recipes hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    raise DataError(f"A recipe cannot hold {value!r}; use texts, numbers, lists and tables.")


def key_table() -> str:
    """Every key, its default and what it means, as a Markdown table (docs/train.md)."""
    rows = [
        f"| `{name}` | `{_toml(_worded(name, field.get_default(call_default_factory=True)))}` | {field.description} |"
        for name, field in Recipe.model_fields.items()
    ]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def parse_time(text: str) -> float:
    """Seconds of "90s", "30m", "1h30m", "2d" or a plain number of seconds; UsageError otherwise."""
    text = text.strip() + ("s" if re.fullmatch(r"[\d.]+", text.strip()) else "")
    found = re.fullmatch(r"\s*(?:(\d+)d)?\s*(?:(\d+)h)?\s*(?:(\d+)m)?\s*(?:(\d+(?:\.\d+)?)s)?\s*", text)
    seconds = (
        sum(float(n or 0) * unit for n, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True)) if found else 0
    )
    if seconds <= 0:
        raise UsageError(f"{text!r} is not a length of time; write it like 90s, 30m or 1h30m.")
    return seconds
