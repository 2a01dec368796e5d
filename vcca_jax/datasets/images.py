"""Fashion-MNIST and MNIST: 60,000 training and 10,000 test images of 28 x 28 grey levels."""

from __future__ import annotations

import gzip

import numpy as np

from vcca_jax.datasets.folder import read_fetched
from vcca_jax.datasets.sources import IMAGE_FILES

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
MNIST_CLASSES = tuple("0123456789")

Images = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def fashion_mnist() -> Images:
    """Fashion-MNIST, photographs of clothes of ten kinds (`FASHION_MNIST_CLASSES`).

    Returns:
        `((train_inputs, train_targets), (test_inputs, test_targets))`: inputs float32
        [60000, 28, 28, 1] and [10000, 28, 28, 1], grey levels divided by 255, so in [0, 1];
        targets int32 in 0..9, as many of each. In the published order, which is shuffled.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: a file is not the recorded one.

    Source: Xiao, Rasul, Vollgraf (2017), arXiv:1708.07747; MIT licence.
    """
    return _images("fashion-mnist", ".gz")


def mnist() -> Images:
    """MNIST, handwritten digits (`MNIST_CLASSES`).

    Returns:
        As `fashion_mnist`. Classes differ a little in size (5421 to 6742 in training).

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: a file is not the recorded one.

    Source: LeCun, Bottou, Bengio, Haffner (1998), Gradient-based learning applied to
    document recognition, Proceedings of the IEEE 86(11). Its carrier excludes the data from
    its own licence and names none for it; see `data/README.md`.
    """
    return _images("mnist", "")


def read_idx(content: bytes) -> np.ndarray:
    """An IDX file of unsigned bytes as an array, uint8 of the shape in its header.

    Args:
        content: the file; two zero bytes, the type 8, the number of axes, one big-endian
            32-bit length an axis, then the bytes in C order.

    Raises:
        ValueError: the header says otherwise, or does not fit the length of the file.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(
            f"content starts with {content[:4]!r}, which is no IDX header of unsigned bytes; "
            "fetch the file anew"
        )
    start = 4 + 4 * content[3]
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">u4"))
    if len(content) - start != np.prod(shape):
        raise ValueError(
            f"content has {len(content) - start} bytes after its header, not the {shape} that "
            "the header speaks of; fetch the file anew"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _images(name: str, suffix: str) -> Images:
    def read(part: str, kind: str) -> np.ndarray:
        content = read_fetched(name, IMAGE_FILES[part, kind] + suffix)
        return read_idx(gzip.decompress(content) if suffix else content)

    def both(part: str) -> tuple[np.ndarray, np.ndarray]:
        inputs = read(part, "images").astype(np.float32)
        inputs /= np.float32(255)
        return inputs[..., None], read(part, "labels").astype(np.int32)

    return both("train"), both("test")
