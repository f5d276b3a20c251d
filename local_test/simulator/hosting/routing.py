"""Which instance gets a request: a session's own, else the one with the fewest requests under way.

Knows counts; neither time nor sockets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence


def choose(
    outstanding: Mapping[str, int],
    *,
    own: str | None = None,
    preferred: Collection[str] = (),
    at_most: int | None = None,
    last: Sequence[str] = (),
) -> str | None:
    """The name of an instance; None when every one is full, or there is none.

    Args:
        outstanding: requests under way at each instance in service.
        own: of the session that the request belongs to; taken whenever it is in service.
        preferred: instances that hold the model asked for; taken before the others unless all of them are full.
        at_most: requests at one instance.
        last: names in the order of their last request, oldest first; decides between equals, so that idle instances
            take turns.
    """
    free = {name: count for name, count in outstanding.items() if at_most is None or count < at_most}
    if own in free:
        return own
    among = [name for name in free if name in preferred] or list(free)
    turn = {name: place for place, name in enumerate(last)}
    return min(among, key=lambda name: (free[name], turn.get(name, -1), name), default=None)
