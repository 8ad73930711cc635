"""What spikelet raises.

Every class is a `SpikeletError` and also the built-in error that fits, so either `except` works.

Arguments of a wrong type raise `TypeError`, as everywhere in Python.
"""

__all__ = [
    "DeviceError",
    "FileError",
    "FormatError",
    "InternalError",
    "NotFiniteError",
    "NotFoundError",
    "OptionError",
    "SpikeletError",
    "StateError",
    "TokenizerError",
    "UnsupportedError",
]


class SpikeletError(Exception):
    """The base of all errors of this package."""


class OptionError(SpikeletError, ValueError):
    """An option, a prompt or a token id has a value that it cannot have."""


class FormatError(SpikeletError, ValueError):
    """A weight file or a configuration is broken, contradicts itself or lacks something."""


class TokenizerError(SpikeletError, ValueError):
    """A tokenizer is missing, broken or does not fit the model."""


class UnsupportedError(SpikeletError, ValueError):
    """Something that this version does not do."""


class StateError(SpikeletError, ValueError):
    """A state or session belongs to another model, is broken, or is in use at the moment."""


class NotFiniteError(SpikeletError, ArithmeticError):
    """Logits are not numbers, or options have made the greatest of them infinite."""


class DeviceError(SpikeletError, RuntimeError):
    """A GPU cannot be used, has no more memory, or was lost. Models elsewhere go on."""


class FileError(SpikeletError, OSError):
    """The operating system refused to read or write a file. `errno` says why, where it is known."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    def __str__(self) -> str:
        return str(self.args[0])


class NotFoundError(FileError, FileNotFoundError):
    """There is no file, folder or model of that name."""


class InternalError(SpikeletError, RuntimeError):
    """A defect of spikelet itself. Please report it with the message."""
