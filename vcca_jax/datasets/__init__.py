"""Real data, as plain NumPy arrays (host only: nothing here is traced by JAX).

`heart_disease` is the study of four hospitals that the main job runs on. Its file is small
and free (CC BY 4.0) and lies in the package. `digits` and `breast_cancer` are scikit-learn's,
for tests and notebooks. All others are fetched once, by `make data` or by
`python -m vcca_jax.datasets.fetch`, into the folder `VCCA_DATA`, or `.data` where that is not
set; `fetched(name)` tells whether a set is there. Every file is verified by its SHA-256 each time
it is read. `vcca_jax/data/README.md` has every set's provenance, licence and oddities.

Tables come as a `Study`: the agents' training shards, held-out rows for values, validation and
test, and what is known of each row beside its inputs. Texts come as a `TextStudy`, images as
training and test arrays, to be dealt out by `vcca_jax.partition`.
"""

from vcca_jax.datasets.adult import ADULT_GROUPS, ADULT_RACES, adult, read_adult
from vcca_jax.datasets.bundled import breast_cancer, digits
from vcca_jax.datasets.credit_default import (
    CREDIT_EDUCATIONS,
    CREDIT_GROUPS,
    CREDIT_MARRIAGES,
    credit_default,
    read_credit_default,
)
from vcca_jax.datasets.folder import data_folder, fetched
from vcca_jax.datasets.heart_disease import (
    AGENTS,
    GROUPS,
    HEART_DISEASE_PATH,
    HEART_DISEASE_SHA256,
    heart_disease,
    read_heart_disease,
)
from vcca_jax.datasets.images import (
    FASHION_MNIST_CLASSES,
    MNIST_CLASSES,
    fashion_mnist,
    mnist,
)
from vcca_jax.datasets.sentiment import (
    PADDING,
    SENTIMENT_AGENTS,
    SENTIMENT_GROUPS,
    UNKNOWN,
    TextStudy,
    read_sentiment,
    sentiment,
)
from vcca_jax.datasets.sources import SOURCES
from vcca_jax.datasets.study import SPLITS, Row, Shard, Split, Study
from vcca_jax.datasets.world_values import (
    WORLD_VALUES_ANSWERS,
    Answers,
    read_world_values,
    world_values,
)

__all__ = [
    "ADULT_GROUPS",
    "ADULT_RACES",
    "AGENTS",
    "CREDIT_EDUCATIONS",
    "CREDIT_GROUPS",
    "CREDIT_MARRIAGES",
    "FASHION_MNIST_CLASSES",
    "GROUPS",
    "HEART_DISEASE_PATH",
    "HEART_DISEASE_SHA256",
    "MNIST_CLASSES",
    "PADDING",
    "SENTIMENT_AGENTS",
    "SENTIMENT_GROUPS",
    "SOURCES",
    "SPLITS",
    "UNKNOWN",
    "WORLD_VALUES_ANSWERS",
    "Answers",
    "Row",
    "Shard",
    "Split",
    "Study",
    "TextStudy",
    "adult",
    "breast_cancer",
    "credit_default",
    "data_folder",
    "digits",
    "fashion_mnist",
    "fetched",
    "heart_disease",
    "mnist",
    "read_adult",
    "read_credit_default",
    "read_heart_disease",
    "read_sentiment",
    "read_world_values",
    "sentiment",
    "world_values",
]
