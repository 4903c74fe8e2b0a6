"""What the fuzz harness knows of a decoder: good bytes, how to break one rule at a time, and who judges the rest.

- `decode` is the code under test: it returns a value or raises one of `refusals`, nothing else;
- `judge` reads the same bytes another way and says why they should not have been accepted, or "" if they should;
- each `Broken` makes bytes that break exactly one rule: accepting one of them is wrong whatever the judge thinks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from wire_contract.errors import ContractError


@dataclass(frozen=True, slots=True)
class Broken:
    """Bytes that break one `rule` of one `field`; `make` draws a new instance each time."""

    field: str
    rule: str
    make: Callable[[Random], bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder. `share` is how many inputs it gets, relative to others: cheap decoders get more."""

    name: str
    seeds: tuple[bytes, ...]
    decode: Callable[[bytes], object]
    judge: Callable[[bytes, object], str]
    broken: tuple[Broken, ...]
    share: float = 1.0
    refusals: tuple[type[Exception], ...] = (ContractError,)
