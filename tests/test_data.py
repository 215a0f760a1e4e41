"""Data sets of images by name: what is read, split, augmented and batched, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snnir.data import DATA_SETS, Augmentation, Request, batches, open_data
from snnir.data.images import DEBIAN
from snnir.data.vision import torchvision_module
from snnir.errors import SnnirError

DIGITS = Request("frame", (1, 8, 8), 10)
GREY = Request("frame", (1, 28, 28), 10)
COLOUR = Request("frame", (3, 12, 12), 2)
EVERYTHING = Augmentation(crop_padding=2, flip=True, cutout=3)


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def write_idx(path: Path, values: np.ndarray, *, gz: bool = False) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    data = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{path}.gz").write_bytes(gzip.compress(data)) if gz else path.write_bytes(data)


def write_fashion_mnist(folder: Path, *, train: int = 40, gz: bool = False, classes: int = 10):
    for part, count in (("train", train), ("t10k", 20)):
        write_idx(folder / f"{part}-images-idx3-ubyte", images(count, 28, 28), gz=gz)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(count) % classes, gz=gz)


def write_images(
    folder: Path, *, parts=("train", "test"), mode="RGB", size=(12, 12), count=6
) -> list[Path]:
    """Two classes of PNG files, whose pixels are those of `images`."""
    paths = []
    for number, (part, name) in enumerate((p, c) for p in parts for c in ("cat", "dog")):
        (folder / part / name).mkdir(parents=True)
        bands = len(Image.new(mode, (1, 1)).getbands())
        for i, pixels in enumerate(images(count, *size, bands, seed=number)):
            paths.append(folder / part / name / f"{i}.png")
            Image.fromarray(pixels.squeeze(), mode).save(paths[-1])
    return paths


def everything(samples, **options):
    """All batches of an epoch, as one."""
    xs, ys = zip(*batches(samples, 7, seed=3, **options), strict=True)
    return torch.cat(xs), torch.cat(ys)


def test_digits_come_with_the_package():
    splits = open_data("digits", DIGITS)
    x, y = everything(splits.train)
    assert x.shape == (1437, 1, 8, 8)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal(x * 16, (x * 16).round())
    assert 0.2 < x.mean() < 0.5
    assert len(splits.test) == 360
    assert splits.validation is None
    assert splits.classes == tuple("0123456789")
    assert y.bincount().min() > 130
    assert torch.from_numpy(splits.test.labels).bincount().min() > 30


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("inside", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_as_published(tmp_path, gz, inside):
    write_fashion_mnist(tmp_path / inside, gz=gz)
    splits = open_data(f"fashion-mnist:{tmp_path}", GREY)
    x, y = everything(splits.train)
    assert torch.equal(x[:, 0], torch.from_numpy(images(40, 28, 28)).float() / 255)
    assert y.tolist() == [i % 10 for i in range(40)]
    assert (len(splits.test), splits.classes[9]) == (20, "Ankle boot")


def test_fashion_mnist_where_debian_puts_it():
    if not DEBIAN.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    splits = open_data("fashion-mnist", replace(GREY, limit_train=500))
    assert len(splits.test) == 10_000
    x, y = everything(splits.train)
    assert 0.2 < x.mean() < 0.4
    assert y.bincount().min() > 25


def test_a_download_is_only_made_when_asked_and_needed(tmp_path, monkeypatch):
    asked = []

    def download(root, *, download):
        asked.append(root)
        write_fashion_mnist(Path(root) / "FashionMNIST" / "raw")

    monkeypatch.setattr(torchvision_module("datasets"), "FashionMNIST", download)
    with pytest.raises(SnnirError, match=r"expected .* or --download"):
        open_data(f"fashion-mnist:{tmp_path / 'new'}", GREY)
    assert not asked
    splits = open_data(f"fashion-mnist:{tmp_path / 'new'}", replace(GREY, download=True))
    assert len(splits.train) == 40
    write_fashion_mnist(tmp_path / "old")
    open_data(f"fashion-mnist:{tmp_path / 'old'}", replace(GREY, download=True))
    assert asked == [tmp_path / "new"]


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def download(root, *, download):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision_module("datasets"), "CIFAR10", download)
    with pytest.raises(SnnirError, match=r"download of CIFAR10 failed: no route to host"):
        open_data(f"cifar10:{tmp_path}", replace(COLOUR, download=True))


@pytest.mark.parametrize(("mode", "shape"), [("RGB", (3, 12, 12)), ("L", (1, 12, 12))])
@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_of_images(tmp_path, mode, shape, test):
    write_images(tmp_path, parts=("train", test), mode=mode)
    splits = open_data(f"folder:{tmp_path}", replace(COLOUR, shape=shape))
    for _ in range(2):  # decoded, then kept
        x, y = everything(splits.train)
        assert torch.equal(
            x[6:] * 255, torch.from_numpy(images(6, 12, 12, shape[0], seed=1)).movedim(3, 1).float()
        )
    assert y.tolist() == [0] * 6 + [1] * 6
    assert splits.classes == ("cat", "dog")


def test_imagenet_crops_at_random_in_training_and_the_centre_in_evaluation(tmp_path):
    write_images(tmp_path, parts=("train", "val"), size=(40, 60), count=2)
    Image.fromarray(images(1, 40, 50, 4)[0], "CMYK").save(tmp_path / "train/cat/cmyk.jpg")
    splits = open_data(f"imagenet:{tmp_path}", replace(COLOUR, shape=(3, 16, 16)))
    before = torch.get_rng_state()
    first, again, later = (everything(splits.train, epoch=epoch)[0] for epoch in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in zip(first, later, strict=True))
    assert not torch.equal(first[3], first[4])
    test = [everything(splits.test, epoch=epoch)[0] for epoch in (0, 1)]
    assert test[0].shape == (4, 3, 16, 16)
    assert torch.equal(*test)
    assert test[0].std() > 0.05


def write_torchvision_cifar(folder: Path, monkeypatch) -> None:
    """CIFAR-10 in torchvision's layout, of 4 images a file, and the sums to go with it."""
    cifar = torchvision_module("datasets").CIFAR10
    base = folder / cifar.base_folder
    base.mkdir()
    content = {"label_names": ["airplane", *"bcdefghij"]}
    sums = {}
    for number, name in enumerate(["batches.meta", *dict(cifar.train_list), "test_batch"]):
        if number:
            content = {"data": images(4, 3 * 32 * 32, seed=number), "labels": [number, 2, 3, 4]}
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    for listed in ("train_list", "test_list"):
        monkeypatch.setattr(cifar, listed, [(n, sums[n]) for n, _ in getattr(cifar, listed)])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": sums["batches.meta"]})


def test_cifar_as_torchvision_stores_it(tmp_path, monkeypatch):
    write_torchvision_cifar(tmp_path, monkeypatch)
    request = replace(COLOUR, shape=(3, 32, 32), classes=10)
    splits = open_data(f"cifar10:{tmp_path}", request)
    x, y = everything(splits.train)
    assert x.shape == (20, 3, 32, 32)
    assert torch.equal(x[4].flatten() * 255, torch.from_numpy(images(4, 3072, seed=2))[0].float())
    assert y[:5].tolist() == [1, 2, 3, 4, 2]
    assert (len(splits.test), splits.classes[0]) == (4, "airplane")


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_other_pickle_is_ever_read(tmp_path, monkeypatch):
    write_torchvision_cifar(tmp_path, monkeypatch)
    trace = tmp_path / "trace"
    forged = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    forged.write_bytes(pickle.dumps(Trap(trace)))
    with pytest.raises(SnnirError, match=r"no.* intact cifar-10-batches-py, expected the data at"):
        open_data(f"cifar10:{tmp_path}", replace(COLOUR, shape=(3, 32, 32), classes=10))
    assert not trace.exists()
    pickle.loads(forged.read_bytes())
    assert trace.exists()


def test_cifar_as_folders_of_images(tmp_path):
    write_images(tmp_path, size=(32, 32))
    splits = open_data(f"cifar100:{tmp_path}", replace(COLOUR, shape=(3, 32, 32)))
    assert (len(splits.train), splits.classes) == (12, ("cat", "dog"))


def augmented(**how):
    """Every training image of the digits, plain and augmented; plain ones are read last, and so
    show whether augmentation left them as they were."""
    train = open_data("digits", replace(DIGITS, augmentation=Augmentation(**how))).train
    x, _ = everything(train)
    return everything(replace(train, augmentation=None))[0], x


def test_a_crop_is_a_window_of_the_padded_image():
    plain, x = augmented(crop_padding=2)
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # [N, 1, 5, 5, 8, 8]
    same = (windows == x[:, :, None, None]).flatten(4).all(4).flatten(1)
    assert same.any(1).all()
    found = same.double().argmax(1).bincount(minlength=25)
    assert found.min() > 20, "every one of the 25 windows is drawn"


def test_a_flip_mirrors_half_of_the_images():
    plain, x = augmented(flip=True)
    mirrored = (x == plain.flip(3)).flatten(1).all(1)
    assert ((x == plain).flatten(1).all(1) | mirrored).all()
    assert 0.45 < mirrored.double().mean() < 0.55


def test_a_cutout_is_a_square_of_zeros_within_the_image():
    plain, x = augmented(cutout=3)
    changed = (x != plain).squeeze(1)
    assert (x[changed.unsqueeze(1)] == 0).all()
    rows, columns = changed.any(2), changed.any(1)
    assert rows.sum(1).max() == columns.sum(1).max() == 3
    assert 0.8 < changed.flatten(1).any(1).double().mean() < 1
    assert changed.any(0)[[0, -1]].any(1).all(), "it reaches the edges"


def test_what_is_random_depends_on_seed_epoch_and_sample_alone():
    train = open_data("digits", replace(DIGITS, augmentation=EVERYTHING)).train
    x, y = train.batch(range(50), seed=1, epoch=2)
    one, label = train.batch([33], seed=1, epoch=2)
    assert torch.equal(one[0], x[33])
    assert label[0] == y[33]
    for other in (train.batch(range(50), seed=1, epoch=3), train.batch(range(50), seed=2, epoch=2)):
        same = (other[0] == x).flatten(1).all(1)
        assert same.sum() < 5
        assert torch.equal(other[1], y)
    limited = open_data("digits", replace(DIGITS, augmentation=EVERYTHING, limit_train=9)).train
    number = limited.indices[4]
    assert torch.equal(
        limited.batch([4], seed=1, epoch=2)[0], train.batch([number], seed=1, epoch=2)[0]
    )


def test_evaluation_is_not_augmented():
    request = replace(DIGITS, augmentation=EVERYTHING, validation=100)
    splits, plain = open_data("digits", request), open_data("digits", DIGITS)
    assert torch.equal(everything(splits.test)[0], everything(plain.test)[0])
    held_out = plain.train.batch(splits.validation.indices)[0]
    assert torch.equal(everything(splits.validation)[0], held_out)
    assert not torch.equal(splits.train.batch(range(9))[0], held_out[:9])


EPOCH = {"seed": 5, "epoch": 1, "shuffle": True}


@pytest.fixture(scope="module")
def train():
    return open_data("digits", replace(DIGITS, augmentation=EVERYTHING, limit_train=103)).train


def assert_same_batches(found, expected):
    for (x, y), (x_, y_) in zip(found, expected, strict=True):
        assert torch.equal(x, x_)
        assert torch.equal(y, y_)


def test_workers_change_nothing(train):
    torch_state = torch.get_rng_state()
    assert_same_batches(batches(train, 16, **EPOCH, workers=2), batches(train, 16, **EPOCH))
    assert torch.equal(torch_state, torch.get_rng_state())


def test_an_epoch_resumes_at_any_batch(train):
    whole = list(batches(train, 16, **EPOCH))
    assert len(whole) == len(batches(train, 16, **EPOCH)) == 7
    for start in (3, 7):
        rest = batches(train, 16, **EPOCH, start=start)
        assert len(rest) == 7 - start
        assert_same_batches(rest, whole[start:])


def test_an_epoch_is_a_permutation(train):
    plain = replace(train, augmentation=None)
    ordered = torch.cat([x for x, _ in batches(plain, 16, seed=5)])
    orders = []
    for seed, epoch in ((5, 1), (5, 2), (6, 1)):
        x = torch.cat([x for x, _ in batches(plain, 16, seed=seed, epoch=epoch, shuffle=True)])
        order = (x[:, None] == ordered[None]).flatten(2).all(2).double().argmax(1)
        assert sorted(order.tolist()) == list(range(103))
        orders.append(tuple(order.tolist()))
    assert len({*orders, tuple(range(103))}) == 4


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_every_batch(train, world_size, drop_last):
    options = {**EPOCH, "drop_last": drop_last}
    whole = list(batches(train, 17, **options))
    assert [len(y) for _, y in whole] == [17] * 6 + [1] * (not drop_last)
    shares = [
        list(batches(train, 17, **options, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    joined = [
        tuple(torch.cat(parts) for parts in zip(*share, strict=True))
        for share in zip(*shares, strict=True)
    ]
    assert_same_batches(joined, whole)
    assert {len(share[0][1]) for share in shares} <= {17 // world_size, 17 // world_size + 1}


def test_held_out_samples_are_seeded_mixed_and_never_trained_on():
    request = replace(DIGITS, validation=300, seed=4)
    splits = open_data("digits", request)
    train, validation = {*splits.train.indices}, {*splits.validation.indices}
    assert (len(train), len(validation)) == (1137, 300)
    assert not train & validation
    assert np.bincount(splits.validation.labels).min() > 15
    assert {*open_data("digits", request).validation.indices} == validation
    assert {*open_data("digits", replace(request, seed=5)).validation.indices} != validation


def test_limits_keep_a_random_part_of_what_is_not_held_out():
    request = replace(DIGITS, validation=300, limit_train=200, limit_test=100)
    splits, more = (
        open_data("digits", request),
        open_data("digits", replace(request, limit_train=9999)),
    )
    assert (len(splits.train), len(splits.test), len(more.train)) == (200, 100, 1137)
    assert {*splits.train.indices} < {*more.train.indices}
    assert {*splits.validation.indices} == {*more.validation.indices}
    assert np.bincount(splits.train.labels).min() > 8
    assert np.bincount(splits.test.labels).min() > 3


@pytest.mark.parametrize(
    ("spec", "request_", "message"),
    [
        ("cifra10", GREY, r"found data set 'cifra10', expected .*; did you mean 'cifar10'\?"),
        ("n-mnist", GREY, r"n-mnist: found data of kind events, expected frame .*fashion-mnist"),
        ("digits", replace(DIGITS, kind="events"), r"found data of kind frame.*: one of n-mnist"),
        ("digits", GREY, r"found samples of \[1, 8, 8\], expected \[1, 28, 28\] .*input=1x8x8"),
        ("digits", replace(DIGITS, classes=7), r"found 10 classes, expected 7 .*--set classes=10"),
        ("digits:here", DIGITS, r"digits: found path here, expected none"),
        ("digits", replace(DIGITS, limit_train=0), r"limit_train: found 0, expected at least 1"),
        ("digits", replace(DIGITS, limit_test=-1), r"limit_test: found -1, expected at least 1"),
        ("digits", replace(DIGITS, validation=-1), r"validation: found -1, expected at least 0"),
        ("digits", replace(DIGITS, seed=-1), r"seed: found -1, expected at least 0"),
        ("digits", replace(DIGITS, validation=1437), r"found 1437 training samples, expected more"),
        ("imagenet", GREY, r"found samples of \[3, 28, 28\], expected \[1, 28, 28\]"),
        ("imagenet", COLOUR, r"found no folder data/imagenet, expected imagenet:PATH$"),
        ("cifar10", COLOUR, r"found no folder data/cifar10, expected cifar10:PATH, or --download"),
        ("cifar10:away", COLOUR, r"found no folder away, expected the data at away, or --download"),
        ("folder", COLOUR, r"folder: found no path, expected folder:PATH"),
        (
            "digits",
            replace(DIGITS, augmentation=Augmentation(cutout=8)),
            r"cutout: found 8, expected less than 8",
        ),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_met(spec, request_, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SnnirError, match=message) as caught:
        open_data(spec, request_)
    assert "\n" not in str(caught.value)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: truncate(f / "train-images-idx3-ubyte"),
         r"train-images-idx3-ubyte: found 31355 values, expected \[40, 28, 28\]"),
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(),
         r"found neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"),
        (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01\x00"),
         r"train-labels-idx1-ubyte: found 5 bytes, expected a header of 8"),
        (lambda f: (f / "train-labels-idx1-ubyte").write_bytes(b"PK\x03\x04"),
         r"found bytes 50 4b 03 04, expected 00 00 08 and the rank"),
        (lambda f: write_idx(f / "train-labels-idx1-ubyte", np.zeros(39)),
         r"found train images of \[40, 28, 28\] and labels of \[39\]"),
        (lambda f: write_fashion_mnist(f, classes=12), r"found label 10, expected 0 to 9"),
    ],
)  # fmt: skip
def test_damaged_idx_files(tmp_path, damage, message):
    write_fashion_mnist(tmp_path)
    damage(tmp_path)
    with pytest.raises(SnnirError, match=message):
        open_data(f"fashion-mnist:{tmp_path}", GREY)


def test_a_truncated_gzip_file(tmp_path):
    write_fashion_mnist(tmp_path, gz=True)
    truncate(tmp_path / "t10k-images-idx3-ubyte.gz")
    with pytest.raises(SnnirError, match=r"ubyte.gz: found no readable gzip file: "):
        open_data(f"fashion-mnist:{tmp_path}", GREY)


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("L", (12, 12), r"0.png: found samples of \[1, 12, 12\], expected \[3, 12, 12\]"),
        ("RGB", (10, 12), r"0.png: found samples of \[3, 10, 12\], .*input=3x10x12"),
        ("RGBA", (12, 12), r"0.png: found an image of mode RGBA, expected L or RGB"),
    ],
)
def test_images_that_do_not_fit_the_network(tmp_path, mode, size, message):
    write_images(tmp_path, mode=mode, size=size)
    with pytest.raises(SnnirError, match=message):
        open_data(f"folder:{tmp_path}", COLOUR)


@pytest.mark.parametrize(
    ("remove", "empty", "message"),
    [
        ("train", False, r"train: found no folder per class, expected .*train/CLASS"),
        ("train", True, r"train: found no folder per class"),
        ("test", False, r"val: found no folder per class"),
        ("test/dog", False, r"found class dog in only one of train and test"),
        ("train/dog", True, r"train/dog: found no files, expected names in .jpg"),
    ],
)
def test_folders_that_lack_something(tmp_path, remove, empty, message):
    write_images(tmp_path)
    shutil.rmtree(tmp_path / remove)
    if empty:
        (tmp_path / remove).mkdir()
    with pytest.raises(SnnirError, match=message):
        open_data(f"folder:{tmp_path}", COLOUR)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_without_a_worker_traceback(tmp_path, workers):
    bad = write_images(tmp_path)[7]
    bad.write_bytes(bad.read_bytes()[:60])
    train = open_data(f"folder:{tmp_path}", COLOUR).train
    given = []
    with pytest.raises(SnnirError, match=rf"{bad}: found no readable image: ") as caught:
        given.extend(batches(train, 4, seed=0, workers=workers))
    assert len(given) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch size: found 0, expected at least 1, one per process"),
        ({"batch_size": 3, "world_size": 4}, r"batch size: found 3, expected at least 4"),
        ({"batch_size": 104, "drop_last": True}, r"found 104, expected at most 103, the number"),
    ],
)
def test_batch_sizes_that_cannot_be_had(train, options, message):
    with pytest.raises(SnnirError, match=message):
        batches(train, **options, seed=0)


def test_every_name_is_documented_and_typed():
    assert {entry.kind for entry in DATA_SETS.values()} == {"frame", "events", "stereo"}
    assert all(entry.open.__doc__ for entry in DATA_SETS.values())


def test_torchvision_imports_beside_any_torch():
    assert torchvision_module("transforms.v2").functional
    assert torchvision_module("datasets").ImageFolder


def test_other_failures_of_torchvision_are_not_hidden(monkeypatch):
    def broken(name):
        raise RuntimeError("something else")

    monkeypatch.setattr("snnir.data.vision.import_module", broken)
    with pytest.raises(RuntimeError, match="something else"):
        torchvision_module("datasets")
