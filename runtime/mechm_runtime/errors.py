"""Every exception the library raises on purpose.

MechmError
├── InputError                the caller's input cannot be used (exit code 2)
│   ├── MediaError            a recording or clip that cannot be decoded, or breaks a limit
│   ├── TranscriptError       a transcript or conversation file that cannot be read or contradicts itself
│   └── LabelError            an emotion or pair that is outside the label set
├── BundleError               a bundle that is incomplete, changed, newer than this library or unsafe (exit code 2)
├── WeightsError              base or trained weights that are missing, changed or of another preset (exit code 2)
├── ProviderError             an execution provider was asked for and did not load
├── LlmUnavailableError       the Llama's server does not answer, not in time, or not what it should
├── MissingExtraError         an optional package is needed; the message names the extra (exit code 2)
└── VerificationError         an exported or converted part does not match its reference
"""

from __future__ import annotations


class MechmError(Exception):
    """Base of the library's errors.

    `hint` is one line telling what to do next (a command where there is one); the command line prints it under the
    message. `exit_code` is what the command line exits with.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InputError(MechmError):
    """The caller's input cannot be used."""

    exit_code = 2


class MediaError(InputError):
    """A recording or clip that cannot be decoded, or that breaks a limit."""


class TranscriptError(InputError):
    """A transcript or conversation file that cannot be read or contradicts itself."""


class LabelError(InputError):
    """An emotion or a pair outside the label set or the conversation."""


class BundleError(MechmError):
    """A bundle that is incomplete, changed, newer than this library or unsafe."""

    exit_code = 2


class WeightsError(MechmError):
    """Base or trained weights that are missing, changed or of another preset."""

    exit_code = 2


class ProviderError(MechmError):
    """An execution provider was asked for and did not load."""


class LlmUnavailableError(MechmError):
    """The Llama's server does not answer, not in time, or not what it should."""


class MissingExtraError(MechmError):
    """An optional package is needed.

    `extra` is the name of mechm's extra that brings it, for example `media`.
    """

    exit_code = 2

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"{package} is not installed", hint=f"pip install 'mechm[{extra}]'")
        self.extra = extra


class VerificationError(MechmError):
    """An exported or converted part does not match its reference."""
