"""How large networks may be, as types of their settings: far above any that there is, and small
enough that a card with other numbers is refused before hours go into making what it describes."""

from typing import Annotated

from pydantic import Field

LARGEST = 1 << 16
LARGEST_FILTER = 64

Side = Annotated[int, Field(ge=4, le=LARGEST)]  # of an image, in pixels
Width = Annotated[int, Field(ge=1, le=LARGEST)]  # channels
Multiplier = Annotated[int, Field(ge=1, le=1024)]  # of a width
Levels = Annotated[tuple[Multiplier, ...], Field(min_length=1, max_length=12)]
Blocks = Annotated[int, Field(ge=1, le=64)]  # of a level
