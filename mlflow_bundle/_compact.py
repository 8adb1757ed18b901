"""Long lists of ids and digests in little memory: an archive may have millions of owners."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Final, overload

__all__ = ["Digests", "Texts"]

_DIGEST: Final = 32


class Texts(Sequence[str]):
    """Strings, kept as UTF-8 one after the other. They can only be appended."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add one at the end."""
        self._data += text.encode()
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        data, ends = self._data, self._ends
        if isinstance(place, slice):
            return [data[ends[number] : ends[number + 1]].decode() for number in range(*place.indices(len(self)))]
        number = place if 0 <= place < len(ends) - 1 else range(len(self))[place]
        return data[ends[number] : ends[number + 1]].decode()


class Digests(Sequence[str]):
    """SHA-256 digests, given and read in hex, kept as 32 bytes each. They can only be appended."""

    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, digest: str) -> None:
        """Add one, in hex, at the end."""
        self._data += bytes.fromhex(digest)

    def raw(self, number: int) -> bytes:
        """The 32 bytes of one."""
        return bytes(self._data[_DIGEST * number : _DIGEST * (number + 1)])

    def __len__(self) -> int:
        return len(self._data) // _DIGEST

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self._data[_DIGEST * n : _DIGEST * (n + 1)].hex() for n in range(*place.indices(len(self)))]
        return self.raw(range(len(self))[place]).hex()
