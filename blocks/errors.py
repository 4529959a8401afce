"""
What can go wrong, named by what the operator does next.

    MeshError
      + Transient        wait; the step retries it by itself
        - Unreachable        no answer in time
        - NoLeader           the cluster is electing
        - BadAnswer          it answered, but not what the API answers
      + Refused          a person must fix access or input
        - Forbidden          the credential may not do this
        - Untrusted          the server cannot prove who it is
        - Invalid            the server or the runbook rejects the request
        - Absent             the thing asked for does not exist
      + NotConverged     we acted, looked again, and it was not so in time
      + Unsafe           a gate said no; nothing was changed
      + BadInput         what the operator gave is wrong; nothing was touched
      + Defect           the runbook itself is wrong

No message ever holds a secret: the text of an exception reaches logs, states
and Prefect's database.
"""

from __future__ import annotations

from collections.abc import Iterable


class MeshError(Exception):
    """Base of all: `except MeshError` is the widest a runbook may catch."""

    safe_to_rerun = True  # set to False on an error after which a rerun must not come first

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; do: {self.remedy}" if self.remedy else text

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling, and Prefect
        # pickles exceptions that leave a flow.
        return (_rebuild, (type(self), self.message, self.where, self.remedy))


class Transient(MeshError):
    """Likely to pass by itself; the only kind a step retries."""

    repeated = False  # set once a step has retried it in vain


class Unreachable(Transient):
    """No answer: refused, reset, timed out, or the overall deadline passed."""


class NoLeader(Transient):
    """The cluster has no leader at this moment."""


class BadAnswer(Transient):
    """An answer whose shape is not the API's: a proxy's page, a cut body."""


class Refused(MeshError):
    """A person must fix access or input; a retry would change nothing."""


class Forbidden(Refused):
    """The credential is unknown, expired, or lacks the permission."""


class Untrusted(Refused):
    """A certificate or host key is expired, unknown, or another than the pinned one."""


class Invalid(Refused):
    """The server rejects the request as it stands."""


class Absent(Refused):
    """What was asked for does not exist."""


class NotConverged(MeshError):
    """The deadline passed and the world is not as it was to become."""


class Unsafe(MeshError):
    """A gate refused before anything was changed."""


class BadInput(MeshError):
    """Wrong input: one line a problem, nothing touched, exit status 2."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[object, ...]:
        return (BadInput, (self.problems,))


class Defect(MeshError):
    """
    The runbook itself is wrong: an error nobody foresaw.

    Named by its kind and its place and never by its text, which may hold a secret.
    """

    @classmethod
    def of(cls, error: BaseException) -> Defect:
        """The defect that an unforeseen error shows, with the way to it innermost last."""
        import traceback  # not with every `mesh --help`

        way = [
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno} in {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)[-3:]
        ]
        return cls(
            f"a defect in the runbook: {type(error).__name__}",
            where=" -> ".join(way),
            remedy="report it with these lines; what was done so far stands",
        )


def _rebuild(kind: type[MeshError], message: str, where: str, remedy: str) -> MeshError:
    return kind(message, where=where, remedy=remedy)
