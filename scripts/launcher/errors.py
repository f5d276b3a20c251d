"""Every error of the launcher; each is one sentence that says what was found and what to do.

    LaunchError
    ├── SettingError     an argument or an environment variable is missing or wrong: exit code 2
    ├── ServiceError     AWS refused a call, or could not be reached; owns the code that AWS gave
    └── OutcomeError     AWS did as asked, and the job, endpoint or transform failed

Knows no other module. An exception outside this tree is a fault of ours and keeps its traceback.
"""

from __future__ import annotations


class LaunchError(Exception):
    """Base of everything below. The command ends with ``exit_code`` and the message."""

    exit_code = 1


class SettingError(LaunchError):
    """An argument or a variable is missing, or cannot be used as it is; nothing was sent."""

    exit_code = 2


class ServiceError(LaunchError):
    """A call was refused, or did not get through.

    Attributes:
        code: the code that AWS gave, `ValidationException` say; the exception's name when nothing was answered.
        not_found: what the call names does not exist.
        name_taken: something of that name exists already.
        passing: throttled or not reached; the same call may succeed later.
    """

    def __init__(
        self, message: str, *, code: str, not_found: bool = False, name_taken: bool = False, passing: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.not_found = not_found
        self.name_taken = name_taken
        self.passing = passing


class OutcomeError(LaunchError):
    """What was started has failed; the first line of the message is the reason that AWS gives."""
