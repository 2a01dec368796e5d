"""What a run was computed by: versions and devices, as far as they can change its numbers."""

import platform
from importlib import metadata

import jax

import vcca_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, str]:
    """Names and versions, by what they are of; nothing that names a machine or a person."""
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    return {
        "vcca_jax": vcca_jax.__version__,
        "Python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{len(devices)} × {kinds} ({jax.default_backend()})",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
