"""How much one association may bring, and the data set of a message that is refused while it comes in."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST_INSTANCE = 4 * 2**30
LARGEST_OTHER = 16 * 2**20
"""The most bytes of a data set that is not an instance, such as the references of a commitment request."""


@dataclass(frozen=True)
class Limits:
    """How much is taken before a sender is refused with 0xA700 (out of resources); None: any amount.

    Attributes:
        instances: Number of instances of one association.
        association_bytes: Bytes of all data sets of one association, as they come over the wire.
        instance_bytes: Bytes of one data set.

    Raises:
        ValueError: A limit is less than 1.
    """

    instances: int | None = None
    association_bytes: int | None = None
    instance_bytes: int | None = LARGEST_INSTANCE

    def __post_init__(self) -> None:
        for name, most in vars(self).items():
            if most is not None and most < 1:
                raise ValueError(
                    f"the limit of {name} is {most}; at least 1 is needed, or None for any amount; correct it"
                )


class IncomingDataSet(io.BytesIO):
    """The data set of one message while it comes in.

    Attributes:
        refused: Why the data set is dropped; empty while it is kept.
    """

    def __init__(self, refuse_start: Callable[[], str], refuse_fragment: Callable[[int, int], str]) -> None:
        """An empty data set.

        Args:
            refuse_start: Called before the first fragment is kept; returns the reason to drop the data set, or "".
            refuse_fragment: Called before each fragment with the bytes of the data set so far, this fragment included, and
                the bytes of the fragment; returns the same.
        """
        super().__init__()
        self.refused, self._is_begun = "", False
        self._refuse_start, self._refuse_fragment = refuse_start, refuse_fragment

    def write(self, content: Any, /) -> int:
        """Keeps a fragment, or drops the whole data set."""
        if not self._is_begun:
            self._is_begun, self.refused = True, self._refuse_start()
        self.refused = self.refused or self._refuse_fragment(self.tell() + len(content), len(content))
        if not self.refused:
            return super().write(content)
        # The bytes are given up at once. The rest of the message is still read off the wire, so that the association
        # stays open and the sender gets a status.
        self.seek(0)
        self.truncate()
        return len(content)


class Budget:
    """The instances and bytes of one association, compared with its limits."""

    def __init__(self, limits: Limits, check_room: Callable[[], str], is_instance: Callable[[], bool]) -> None:
        """Nothing has come yet.

        Args:
            limits: How much the association may bring.
            check_room: Called when an instance begins to come in; returns why there is no room, or "".
            is_instance: Whether the message that is coming in is a C-STORE request.
        """
        self._limits, self._check_room, self._is_instance = limits, check_room, is_instance
        self._instances = self._bytes = 0

    def refuse_start(self) -> str:
        """Reason why the data set that begins may not come in; empty if it may come in."""
        if not self._is_instance():
            return ""
        if self._limits.instances is not None and self._instances >= self._limits.instances:
            return f"more than {self._limits.instances} instances in one association"
        try:
            reason = self._check_room()
        except Exception as error:  # without an answer it is unknown whether there is room
            reason = f"it is not known whether there is space ({type(error).__name__})"
        self._instances += not reason
        return reason

    def refuse_fragment(self, size: int, added: int) -> str:
        """Reason why a data set may not grow to `size` bytes by `added` bytes; empty if it may grow."""
        if not self._is_instance():
            return f"a data set of more than {LARGEST_OTHER} bytes" if size > LARGEST_OTHER else ""
        self._bytes += added
        largest, total = self._limits.instance_bytes, self._limits.association_bytes
        if largest is not None and size > largest:
            return f"an instance of more than {largest} bytes"
        return f"more than {total} bytes in one association" if total is not None and self._bytes > total else ""
