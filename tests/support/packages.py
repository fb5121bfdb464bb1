"""Packages that parts of flowguide do without."""

# What neither the core rooms nor an exported sampler need.
HEAVY = ["flax", "optax", "orbax", "grain", "tensorflow", "tensorflow_datasets", "ml_collections", "absl", "chex"]
HEAVY += ["diffrax", "etils", "fsspec", "matplotlib", "PIL", "sklearn", "scipy.stats", "tqdm"]

# What sampling does not need: the data room, figures and logs.
OF_TRAINING = ["tensorflow", "tensorflow_datasets", "grain", "array_record", "matplotlib", "tensorboardX"]


def without(packages):
    """Code that makes these packages impossible to import, for the start of a process."""
    return f"import sys\nsys.modules.update(dict.fromkeys({packages!r}))\n"
