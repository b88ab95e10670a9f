"""What a process has open of the releases that are asked for: the newest two, so that one can take the other's place."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

MOST = 2
T = TypeVar("T")


class Kept(Generic[T]):
    """Opens what is asked for once, and lets go of what was asked for longest ago. Safe to share between threads."""

    def __init__(self, open_one: Callable[[str], T]) -> None:
        self.open_one = open_one
        self.values: dict[str, T] = {}
        self.lock, self.opening = threading.Lock(), threading.Lock()

    def __contains__(self, key: str) -> bool:
        """Whether `key` is open, so that `get` costs nothing."""
        return key in self.values

    def get(self, key: str) -> T:
        """What `key` names. Raises what opening it raises. While one is opened, those that are open are given out."""
        with self.lock:
            if key in self.values:
                return self._newest(key, self.values.pop(key))
        with self.opening:
            if key not in self.values:  # another thread may have opened it meanwhile
                value = self.open_one(key)
                with self.lock:
                    self._newest(key, value)
                    for old in list(self.values)[:-MOST]:
                        del self.values[old]
                return value
        return self.get(key)

    def _newest(self, key: str, value: T) -> T:
        self.values[key] = value  # the last is the newest
        return value

    def all(self) -> list[T]:
        """Everything that is open."""
        with self.lock:
            return list(self.values.values())
