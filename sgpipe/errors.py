"""Errors that a user can act upon: each message says what was given, what is valid and what to do."""


class SgpipeError(Exception):
    """Base of every error that is reported as one line, without a traceback."""


class ParamsError(SgpipeError):
    """A value in params.yaml (or a preset, or `-S`) cannot be used."""


class DataError(SgpipeError):
    """An input file is missing, damaged or of an unknown layout."""


class ModelError(SgpipeError):
    """Weights are missing, or are not what the parameters say."""


class StateError(SgpipeError):
    """The working state of a long stage is locked, foreign or cannot be written."""


class TrackingError(SgpipeError):
    """The MLflow store cannot be reached, read or written; a stage goes on without it."""


class CodeError(SgpipeError):
    """The code or the libraries of a stage are not those that the pipeline recorded."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
