"""Value-constrained credit assignment on traversal learning, as pure functions in JAX.

The system of arXiv:2606.28217 (our reading of it): agents that act for principals train one model
by traversal learning; every update is screened against the principals' value profiles first and
credited second; credit accumulates and revenue is settled on it, in integers.

Stages follow the data: ``cooperative`` -> ``virtual_batches`` -> ``agent_gradients`` -> ``screen``
-> ``one_step_utility`` -> an estimator -> ``Ledger``; ``cooperate`` puts the step together. Modules
that need more than JAX and optax are imported by name: ``vcca_jax.checkpoint`` (Orbax),
``vcca_jax.plotting``, ``vcca_jax.datasets``, ``vcca_jax.runs``.
"""

from vcca_jax import conformance, corruption, models, partition, share_rules
from vcca_jax.adapters import from_linen, from_nnx
from vcca_jax.admission import Admission, AdmissionState, keep_admissible
from vcca_jax.baselines import (
    centralized,
    fedadam,
    fedavg,
    federated,
    fedprox,
    scaffold,
    split_learning,
    splitfed_v1,
    splitfed_v2,
)
from vcca_jax.boundary import check_boundary
from vcca_jax.checks import checked
from vcca_jax.cones.conic import solve_conic_program
from vcca_jax.cones.duals import solve_cone_dual, solve_cone_duals
from vcca_jax.cones.projection import cone_projection, project_onto_cone
from vcca_jax.cones.stacks import project_stack_onto_cones
from vcca_jax.constraints import (
    Constraint,
    forbid,
    freeze,
    max_norm,
    preserve,
    protect,
    trust_region,
    within_angle,
)
from vcca_jax.contribution import (
    across,
    aumann_shapley,
    banzhaf,
    banzhaf_sampled,
    beta_shapley,
    bootstrap,
    by_principal,
    credit_matrix,
    efficiency_gap,
    exact_shapley,
    first_order,
    in_run,
    influence,
    influence_functions,
    kernel_shapley,
    least_core,
    leave_one_out,
    leverage_shapley,
    multilinear_shapley,
    permutation_shapley,
    principal_credits,
    semivalue,
    semivalue_sampled,
    shapley_interactions,
    stratified_shapley,
    until_precise,
    with_validation_error,
)
from vcca_jax.cooperate import CooperateInfo, CooperateState, cooperate
from vcca_jax.cooperative import Cooperative, Shards, cooperative, join, leave
from vcca_jax.earnings import earned
from vcca_jax.epochs import epoch_runner, scan_steps
from vcca_jax.gradients import AgentGradients, agent_gradients, agent_norms, from_stack
from vcca_jax.held_out import HeldOutLoss
from vcca_jax.ledger import Ledger, LedgerError
from vcca_jax.low_rank import low_rank
from vcca_jax.messages import MessageLog, message_log, message_sizes
from vcca_jax.metric import adam_metric
from vcca_jax.model import SplitModel, model_loss
from vcca_jax.models import mlp, transformer, vgg
from vcca_jax.noise import Keyed
from vcca_jax.one_pass.shared_pass import OnePass, shared_pass
from vcca_jax.operators import affine
from vcca_jax.plan import TraversalPlan, virtual_batches
from vcca_jax.plan_stream import stream_plan
from vcca_jax.profiles import ValueProfiles, value_profiles
from vcca_jax.protocol import Messages, exchange
from vcca_jax.refresh import redrawn, retaken, tangent_values
from vcca_jax.rounds import Round, RoundPlan, local_batches
from vcca_jax.rows import Rows, streamed_rows
from vcca_jax.screen_report import ScreenReport, screened_by, untouched
from vcca_jax.screening import screen
from vcca_jax.settlement import allocate, quantise
from vcca_jax.sharding.batch import (
    ShardedBatch,
    shard_cooperative,
    sharded_gather,
    sharded_plan,
)
from vcca_jax.sharding.losses import sharded_loss, spread_loss
from vcca_jax.sharding.mesh import agent_mesh, parameter_shardings, sharded
from vcca_jax.share_rules import RESERVE, ShareRule
from vcca_jax.step_forms import FormCost, cheapest_form, form_costs
from vcca_jax.streaming import StoredShards, open_shards, store_shards, stream_batches
from vcca_jax.subtrees import by_subtree
from vcca_jax.trainer import (
    Trainer,
    TrainInfo,
    TrainState,
    gradient_trainer,
    noisy,
    where_live,
)
from vcca_jax.traversal import split_traversal, traversal, traverse
from vcca_jax.utility import one_step_utility, training_utility
from vcca_jax.values import Values, drawn_loss, group_loss, value_losses
from vcca_jax.virtual_batch import VirtualBatch, by_example, gather, visits

__version__ = "0.1.0"

__all__ = [
    "RESERVE",
    "Admission",
    "AdmissionState",
    "AgentGradients",
    "Constraint",
    "CooperateInfo",
    "CooperateState",
    "Cooperative",
    "FormCost",
    "HeldOutLoss",
    "Keyed",
    "Ledger",
    "LedgerError",
    "MessageLog",
    "Messages",
    "OnePass",
    "Round",
    "RoundPlan",
    "Rows",
    "ScreenReport",
    "ShardedBatch",
    "Shards",
    "ShareRule",
    "SplitModel",
    "StoredShards",
    "TrainInfo",
    "TrainState",
    "Trainer",
    "TraversalPlan",
    "ValueProfiles",
    "Values",
    "VirtualBatch",
    "across",
    "adam_metric",
    "affine",
    "agent_gradients",
    "agent_mesh",
    "agent_norms",
    "allocate",
    "aumann_shapley",
    "banzhaf",
    "banzhaf_sampled",
    "beta_shapley",
    "bootstrap",
    "by_example",
    "by_principal",
    "by_subtree",
    "centralized",
    "cheapest_form",
    "check_boundary",
    "checked",
    "cone_projection",
    "conformance",
    "cooperate",
    "cooperative",
    "corruption",
    "credit_matrix",
    "drawn_loss",
    "earned",
    "efficiency_gap",
    "epoch_runner",
    "exact_shapley",
    "exchange",
    "fedadam",
    "fedavg",
    "federated",
    "fedprox",
    "first_order",
    "forbid",
    "form_costs",
    "freeze",
    "from_linen",
    "from_nnx",
    "from_stack",
    "gather",
    "gradient_trainer",
    "group_loss",
    "in_run",
    "influence",
    "influence_functions",
    "join",
    "keep_admissible",
    "kernel_shapley",
    "least_core",
    "leave",
    "leave_one_out",
    "leverage_shapley",
    "local_batches",
    "low_rank",
    "max_norm",
    "message_log",
    "message_sizes",
    "mlp",
    "model_loss",
    "models",
    "multilinear_shapley",
    "noisy",
    "one_step_utility",
    "open_shards",
    "parameter_shardings",
    "partition",
    "permutation_shapley",
    "preserve",
    "principal_credits",
    "project_onto_cone",
    "project_stack_onto_cones",
    "protect",
    "quantise",
    "redrawn",
    "retaken",
    "scaffold",
    "scan_steps",
    "screen",
    "screened_by",
    "semivalue",
    "semivalue_sampled",
    "shapley_interactions",
    "shard_cooperative",
    "sharded",
    "sharded_gather",
    "sharded_loss",
    "sharded_plan",
    "share_rules",
    "shared_pass",
    "solve_cone_dual",
    "solve_cone_duals",
    "solve_conic_program",
    "split_learning",
    "split_traversal",
    "splitfed_v1",
    "splitfed_v2",
    "spread_loss",
    "store_shards",
    "stratified_shapley",
    "stream_batches",
    "stream_plan",
    "streamed_rows",
    "tangent_values",
    "training_utility",
    "transformer",
    "traversal",
    "traverse",
    "trust_region",
    "until_precise",
    "untouched",
    "value_losses",
    "value_profiles",
    "vgg",
    "virtual_batches",
    "visits",
    "where_live",
    "with_validation_error",
    "within_angle",
]
