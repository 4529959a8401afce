"""What a block keeps in memory between calls, such as a login."""

from __future__ import annotations

import threading
from typing import Any, Self


class Kept(dict[Any, Any]):
    """
    A dictionary with a lock that is never copied, pickled or shown.

    A copy of a block may have other credentials, and so begins with nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()

    def __repr__(self) -> str:
        return "Kept()"

    def __copy__(self) -> Self:
        return type(self)()

    def __deepcopy__(self, _memo: object) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), ())
