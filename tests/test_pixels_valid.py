"""Pixels that hold no data, images of unlike depth, and arrays of a wrong range: found, said, and never learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded, tiff
from numpy.typing import NDArray

from fullyconv import images
from fullyconv.data import open_dataset
from fullyconv.data.validity import read_valid
from fullyconv.doctor import check
from fullyconv.errors import DataError
from fullyconv.predict.inputs import as_array, refuse_scaled

SIZE = (12, 16)
RNG = np.random.default_rng(5)


def bands(count: int, dtype: str = "f4") -> NDArray[Any]:
    return RNG.integers(1, 200, (*SIZE, count)).astype(dtype)


def write(root: Path, images: list[bytes]) -> None:
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for i, data in enumerate(images):
        (root / "images" / f"{i}.tif").write_bytes(data)
        (root / "labels" / f"{i}.png").write_bytes(encoded((np.arange(192).reshape(SIZE) % 3).astype(np.uint8)))


def with_nothing(kind: str) -> bytes:
    """An image whose first two rows hold no data, declared or not a number."""
    if kind in ("nan", "inf"):
        image = bands(4)
        image[:2] = np.nan if kind == "nan" else np.inf
        return tiff(image)
    if kind == "-9999":
        image = bands(4)
        image[:2, :, 1] = -9999  # in one band of several
        return tiff(image, nodata=kind)
    if kind == "alpha":
        image = bands(4, "u1")
        image[..., 3] = 255
        image[:2, :, 3] = 0
        return tiff(image, more={338: 2})
    image = bands(int(kind[0]), kind[2:4])
    image[:2] = int(kind[5:])
    image[5, 5, 0] = int(kind[5:])  # one band alone is a measurement in unsigned integers
    return tiff(image, nodata=kind[5:])


KINDS = ["nan", "inf", "-9999", "alpha", "5 u1 0", "3 u1 0", "5 u2 65535", "4 u2 0"]


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_that_hold_no_data_are_ignored_and_finite_and_said_with_their_file(tmp_path: Path, kind: str) -> None:
    write(tmp_path, [with_nothing(kind), with_nothing(kind)])
    sample = open_dataset(tmp_path)[0]
    assert (sample.labels["semantic"][:2] == 255).all()
    assert (sample.labels["semantic"][2:] != 255).all()
    assert np.isfinite(sample.image).all()
    valid = sample.image[2:].reshape(-1, sample.image.shape[2]).astype(float)
    np.testing.assert_allclose(sample.image[0, 0], valid.mean(axis=0), atol=0.51, rtol=1e-5)
    for fast in (False, True):
        found = [f for f in check(tmp_path, fast=fast) if f.kind == "invalid-pixels"]
        assert [f.files[0].name for f in found] == ["0.tif", "1.tif"]
        assert found[0].count == 32
        assert "32 of 192 pixels" in found[0].message


def test_a_mask_beside_a_tiff_says_what_holds_no_data(tmp_path: Path) -> None:
    write(tmp_path, [tiff(bands(3, "u1")), tiff(bands(4, "u2"))])
    mask = np.full(SIZE, 255, np.uint8)
    mask[:2] = 0
    for i in range(2):
        (tmp_path / "images" / f"{i}.tif.msk").write_bytes(tiff(mask))
    dataset = open_dataset(tmp_path)
    assert (dataset[1].labels["semantic"][:2] == 255).all()
    assert [f.count for f in check(tmp_path) if f.kind == "invalid-pixels"] == [32, 32]
    assert ".msk" not in "".join(dataset.notes)
    (tmp_path / "images" / "0.tif.msk").write_bytes(tiff(mask[1:]))
    with pytest.raises(DataError, match=r"0\.tif\.msk.*mask of 11x16"):
        images.declared_invalid(tmp_path / "images" / "0.tif")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("inside", [False, True])
def test_masks_as_gdal_writes_them_are_read_whole_and_by_windows(inside: bool, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    from fullyconv.rasters.geotiff import GeoTiffSource
    from fullyconv.rasters.windows import Window

    file, mask = tmp_path / "a.tif", np.full((37, 45), 255, np.uint8)
    mask[:4, :7] = 0
    kind = {"driver": "GTiff", "height": 37, "width": 45, "count": 3, "dtype": "uint8", "compress": "lzw"}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(file, "w", **kind) as written:
        written.write(np.full((3, 37, 45), 9, np.uint8))
        written.write_mask(mask)
    assert (tmp_path / "a.tif.msk").exists() != inside
    declared = images.declared_invalid(file)
    assert declared is not None
    np.testing.assert_array_equal(declared, mask == 0)
    source = GeoTiffSource(file)
    valid = source.read(Window(1, 2, 20, 30))[1]
    source.close()
    assert valid is not None
    np.testing.assert_array_equal(valid, mask[1:20, 2:30] == 255)


def test_predict_says_which_images_hold_pixels_without_data(tmp_path: Path) -> None:
    from fullyconv.predict.sources import InputFiles, invalid_note

    write(tmp_path, [with_nothing("nan"), tiff(bands(4))])
    reading = InputFiles(("bands",), {})
    for i in range(2):
        reading.read(tmp_path / "images" / f"{i}.tif")
    answer = invalid_note(reading.invalid)
    assert answer.startswith("1 images hold pixels without data (")
    assert "0.tif: 32 of 192 pixels" in answer
    assert invalid_note({}) == ""


def test_an_image_without_invalid_pixels_is_not_touched() -> None:
    image = bands(3, "u1")
    same, bad = read_valid(image)
    assert same is image
    assert bad is None
    empty, bad = read_valid(np.full((3, 3, 2), np.nan, np.float32))
    assert (empty == 0).all()
    assert bad is not None


def test_measured_preprocessing_takes_valid_pixels_alone_and_keeps_small_spreads_far_from_zero(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from fullyconv.train.network import measure_preprocessing

    far = [1e7 + RNG.normal(size=(*SIZE, 5)) for _ in range(3)]
    stored = [f.astype(np.float32) for f in far]
    for image in stored:
        image[::2, ::2][:2] = -9999
    write(tmp_path, [tiff(v, nodata="-9999") for v in stored])
    kept = np.concatenate([v[::2, ::2][2:].reshape(-1, 5) for v in stored]).astype(np.float64)
    found = measure_preprocessing(open_dataset(tmp_path))
    np.testing.assert_allclose(found.mean, kept.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(found.std, kept.std(axis=0), rtol=1e-6)


def test_bands_have_one_type_whatever_values_they_hold() -> None:
    """A file of small integers must not meet one of large ones in another type."""
    for top in (10, 100_000):
        image = images.read_image(tiff(np.full((4, 4), top, np.int32)), mode="bands")
        assert image.dtype == np.float32
        assert (image == top).all()


# ---- unlike depth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [(4, "u2"), (5, "u1"), (4, "f4"), (3, "u1")])
def test_images_of_unlike_depth_are_one_error_in_the_same_words_whichever_comes_first(
    tmp_path: Path, other: tuple[int, str]
) -> None:
    plain = {262: 1}
    one, two = tiff(bands(4, "u1"), more=plain), tiff(bands(*other), more=plain if other[0] > 3 else None)
    answer = []
    for name, files in (("a", [one, one, two]), ("b", [two, one, one])):
        write(tmp_path / name, files)
        assert open_dataset(tmp_path / name).inputs == ("bands",), "read by bands whichever comes first"
        (found,) = [f for f in check(tmp_path / name, fast=True) if f.kind == "mixed-bands"]
        assert found.level == "error"
        assert len(found.files) == 2
        answer.append("".join(c for c in found.message.replace(str(tmp_path / name), "") if c not in "012.tif/"))
    assert answer[0] == answer[1]
    odd = tmp_path / "a" / "images" / "2.tif"
    odd.unlink()  # what the remedy says
    (tmp_path / "a" / "labels" / "2.png").unlink()
    assert not [f for f in check(tmp_path / "a") if f.kind == "mixed-bands"]


# ---- ranges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 1, r"multiply it by 255"),
        (-1, 1, "-1"),
        (-123, 151, "-123"),
        (-2.1, 2.6, "without norm"),
        (0, 65535, "65535"),
    ],
)
def test_arrays_of_another_range_are_refused_with_what_they_hold_and_what_is_taken(
    low: float, high: float, words: str
) -> None:
    array = np.linspace(low, high, 300).reshape(10, 10, 3)
    with pytest.raises(DataError, match=words) as error:
        refuse_scaled(array, 124.0, 255)
    assert "0..255" in str(error.value)


def test_arrays_of_the_networks_range_pass_and_nan_becomes_the_mean_of_the_others() -> None:
    refuse_scaled(np.linspace(0, 255, 300).reshape(10, 10, 3), 124.0, 255)
    refuse_scaled(np.linspace(-5, 9000, 300).reshape(10, 10, 3), 700.0)
    array = np.full((4, 4, 3), 7.0)
    array[0, 0, 1] = np.nan
    np.testing.assert_array_equal(as_array(array), np.full((4, 4, 3), 7.0))


def test_bands_in_other_units_than_the_networks_are_refused_and_dark_flat_or_glaring_ones_are_not() -> None:
    from fullyconv.predict.inputs import refuse_unlike
    from fullyconv.preprocessing import Preprocessing

    measured = Preprocessing((0, 1, 2, 3), 1.0, (1200.0, 900.0, 700.0, 2500.0), (300.0, 250.0, 200.0, 800.0))
    stored = RNG.normal(measured.mean, measured.std, (30, 40, 4))
    standard = (stored - measured.mean) / measured.std
    for usual in (stored, stored * 3, np.full((9, 9, 4), 20.0), np.zeros((5, 5, 4)), stored + 4000):
        refuse_unlike(usual.astype(np.float32), measured)
    refuse_unlike((standard * 2 + 3).clip(0).astype(np.uint16), measured)  # whole numbers near 0: shadow
    for unit in (stored * 257, standard, stored / 10_000, stored - 60_000):
        with pytest.raises(DataError, match=r"trained on 1200 \+- 3e\+02.*units of the training images"):
            refuse_unlike(unit.astype(np.float32), measured)
