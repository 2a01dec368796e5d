"""Small sets that come with scikit-learn, for tests and notebooks."""

from __future__ import annotations

from types import ModuleType

import numpy as np


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's handwritten digits, 1797 images of 8 x 8.

    Returns:
        Inputs float32 [1797, 64], grey levels divided by 16 so that they lie in [0, 1], and
        targets int32 [1797] in 0..9.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    inputs, targets = _sklearn_datasets().load_digits(return_X_y=True)
    return (inputs / 16.0).astype(np.float32), targets.astype(np.int32)


def breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's Wisconsin breast cancer data, 569 tumours, 30 measurements.

    Returns:
        Inputs float32 [569, 30], every column with mean 0 and standard deviation 1 over all
        569 rows (standardise again on the training rows where a held-out figure is
        reported), and targets int32 [569], 1 = benign.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    inputs, targets = _sklearn_datasets().load_breast_cancer(return_X_y=True)
    scaled = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    return scaled.astype(np.float32), targets.astype(np.int32)


def _sklearn_datasets() -> ModuleType:
    """`sklearn.datasets`, imported only when asked for."""
    try:
        import sklearn.datasets
    except ImportError as error:
        raise ImportError(
            "scikit-learn is needed for this data set and is not installed; "
            "install it with: pip install 'vcca_jax[experiments]'"
        ) from error
    return sklearn.datasets
