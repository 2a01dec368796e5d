"""Programs compiled as users get them, for tests of what rounding leaves.

The suite compiles without optimization (``conftest``), which adds and fuses in another order. A
test of the last digits, or of exact zeros, says what users see only of programs made here.
"""

from collections.abc import Callable
from typing import Any

import jax

AS_USERS: dict[str, Any] = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
if jax.__version_info__ < (0, 11):  # gone since, with its only other setting
    AS_USERS["xla_cpu_use_fusion_emitters"] = True


def optimized(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """``jax.jit`` with the compiler's own settings instead of the suite's."""
    return jax.jit(function, compiler_options=AS_USERS, **options)
