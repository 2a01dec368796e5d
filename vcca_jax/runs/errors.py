"""What goes wrong with a run, as its user is told."""


class RunError(RuntimeError):
    """A run that cannot start or go on, or whose files are damaged, with the remedy."""
