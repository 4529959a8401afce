"""What every part of a topology document is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class Part(BaseModel):
    """One part: no field that is not known, and never changed once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
