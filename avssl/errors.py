"""Errors a user can act on: each names the value, the rule and the remedy.

The command line prints the message of an :class:`AvsslError` as one line and exits with status 2;
anything else is a defect of the package and keeps its traceback.
"""

from __future__ import annotations

from pathlib import Path


class AvsslError(Exception):
    """Root of all errors raised on purpose by this package."""


class ConfigError(AvsslError):
    """A configuration key or value that cannot be used; may hold several complaints, one a line."""


class ManifestError(AvsslError):
    """A manifest that is missing, damaged or does not fit what is asked of it."""


class PrepareError(AvsslError):
    """Shards that cannot be written, taken up again or trusted."""


class CheckpointError(AvsslError):
    """A checkpoint that is missing, damaged or belongs to another run."""


class DataGoneError(AvsslError):
    """The folder of the data is missing or empty: none of the samples is to blame."""


class EvaluationError(AvsslError):
    """Features or labels from which the requested number cannot be computed."""


class TooManySkippedError(AvsslError):
    """The share of samples that could not be read went above the limit of the run."""


class DecodeError(AvsslError):
    """A file from which the requested clip cannot be read.

    Parameters
    ----------
    path : str or Path
        The file.
    stage : str
        Where it failed: ``"open"``, ``"video"`` or ``"audio"``.
    reason : str
        What went wrong, in words.
    """

    def __init__(self, path: str | Path, stage: str, reason: str) -> None:
        super().__init__(f"{path}: {stage}: {reason}")
        self.path = str(path)
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str, str]]:
        """Pickle by constructor arguments: the error crosses from loader workers to the trainer."""
        return type(self), (self.path, self.stage, self.reason)


class TrainingError(AvsslError):
    """Training that cannot go on, such as a loss that is not finite."""


class LaunchError(AvsslError):
    """A job that cannot be submitted."""


class Interrupted(AvsslError):
    """Training stopped on request, after a checkpoint was written.

    Parameters
    ----------
    message : str
        What happened, and how to go on.
    number : int
        The signal that asked.
    """

    def __init__(self, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.number = number
