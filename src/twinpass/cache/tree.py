"""A radix tree over token ids: which prefixes are held, and in which slots. It knows no tensors.

Every key begins with a weights version (any hashable), so that a prefix is only ever found under the weights it was
computed with. Edges hold whole pages of ``page_size`` tokens; a tail shorter than a page is not held.
"""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from twinpass.core import Tokens

Slots = NDArray[np.int64]
NONE: Slots = np.empty(0, np.int64)


@dataclass(eq=False, slots=True)
class Node:
    """An edge of the tree and its end: ``tokens`` held in ``slots``. ``leases`` counts readers here and below."""

    tokens: Tokens
    slots: Slots
    parent: "Node | None" = None
    children: dict[Tokens, "Node"] = field(default_factory=dict)
    leases: int = 0
    used: int = 0
    stale: bool = False

    def path(self) -> Iterator["Node"]:
        """This node and its ancestors."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


@dataclass(frozen=True, slots=True)
class Match:
    """The longest held prefix: its last node and its slots, one a token."""

    node: Node
    slots: Slots


class RadixTree:
    """Prefixes by weights version.

    Args:
        page_size: tokens are held, split and evicted in whole pages of this many.
    """

    def __init__(self, page_size: int = 1) -> None:
        self.page_size = page_size
        self._roots: dict[Hashable, Node] = {}
        self._owned: set[int] = set()
        self._clock = 0

    def __len__(self) -> int:
        """Slots held, those of invalidated nodes that are still leased included."""
        return len(self._owned)

    def match(self, version: Hashable, tokens: Tokens) -> Match:
        """The longest prefix of ``tokens`` held under ``version``; an edge that it ends inside of is split."""
        node = self._roots.get(version) or Node((), NONE)
        self._clock += 1
        found, start = [NONE], 0
        while (child := node.children.get(tokens[start : start + self.page_size])) is not None:
            length = self._common(child.tokens, tokens, start)
            node = child if length == len(child.tokens) else self._split(child, length)
            node.used = self._clock
            found.append(node.slots)
            start += length
            if node is not child:
                break
        return Match(node, np.concatenate(found))

    def insert(self, version: Hashable, tokens: Tokens, slots: Slots) -> Slots:
        """Hold ``tokens`` in ``slots`` (one a token); returns the slots that the tree owns from now on.

        What is held already stays in its old slots. A page is not held if one of its slots is owned already.
        """
        self._roots.setdefault(version, Node((), NONE))
        match = self.match(version, tokens)
        start, stop = len(match.slots), len(match.slots)
        while stop + self.page_size <= len(tokens):
            page = slots[stop : stop + self.page_size].tolist()
            if not self._owned.isdisjoint(page):
                break
            stop += self.page_size
        if stop == start:
            return NONE
        new = np.array(slots[start:stop], np.int64)
        child = Node(tokens[start:stop], new, match.node, used=self._clock)
        match.node.children[child.tokens[: self.page_size]] = child
        self._owned.update(new.tolist())
        return new

    def lease(self, node: Node) -> None:
        """Pin a node and its ancestors: they are not evicted until :meth:`release`."""
        for step in node.path():
            step.leases += 1

    def release(self, node: Node) -> Slots:
        """Undo one :meth:`lease`; returns the slots that fell free because their version was invalidated meanwhile."""
        freed = [NONE]
        for step in node.path():
            step.leases -= 1
            if step.stale and not step.leases:
                freed.append(self._disown(step))
        return np.concatenate(freed)

    def evict(self, count: int) -> Slots:
        """Give up unleased leaves, least recently used first, until ``count`` slots are free or none is left."""
        freed, total = [NONE], 0
        leaves = sorted((node for node in self._nodes() if not node.children), key=lambda node: node.used, reverse=True)
        while total < count and leaves:
            leaf = leaves.pop()
            parent = leaf.parent
            if leaf.leases or parent is None:
                continue
            del parent.children[leaf.tokens[: self.page_size]]
            freed.append(self._disown(leaf))
            total += len(freed[-1])
            if not parent.children and parent.parent is not None:
                place = next((i for i, other in enumerate(leaves) if other.used < parent.used), len(leaves))
                leaves.insert(place, parent)
        return np.concatenate(freed)

    def invalidate(self, version: Hashable) -> Slots:
        """Forget a version. Its unleased slots are free at once, leased ones when they are released."""
        root = self._roots.pop(version, None)
        freed = [NONE]
        for node in _below(root) if root is not None else ():
            node.stale = True
            if not node.leases:
                freed.append(self._disown(node))
        return np.concatenate(freed)

    @property
    def evictable(self) -> int:
        """Slots that :meth:`evict` could free now."""
        return sum(len(node.slots) for node in self._nodes() if not node.leases)

    def _nodes(self) -> Iterator[Node]:
        for root in self._roots.values():
            yield from _below(root)

    def _common(self, edge: Tokens, tokens: Tokens, start: int) -> int:
        """How many tokens, in whole pages, ``edge`` shares with ``tokens[start:]``."""
        length = min(len(edge), len(tokens) - start)
        if edge[:length] != tokens[start : start + length]:
            length = next(i for i in range(length) if edge[i] != tokens[start + i])
        return length - length % self.page_size

    def _split(self, node: Node, length: int) -> Node:
        """Cut an edge after ``length`` tokens; returns the upper part, the node itself becomes the lower one."""
        parent = node.parent
        assert parent is not None
        upper = Node(node.tokens[:length], node.slots[:length], parent, leases=node.leases, used=node.used)
        parent.children[upper.tokens[: self.page_size]] = upper
        node.tokens, node.slots, node.parent = node.tokens[length:], node.slots[length:], upper
        upper.children[node.tokens[: self.page_size]] = node
        return upper

    def _disown(self, node: Node) -> Slots:
        self._owned.difference_update(node.slots.tolist())
        slots, node.slots = node.slots, NONE
        return slots


def _below(node: Node) -> Iterator[Node]:
    """A node and all its descendants."""
    todo: list[Node] = [node]
    while todo:
        node = todo.pop()
        yield node
        todo.extend(node.children.values())
