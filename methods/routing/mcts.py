"""Search for a short path that answers a question: Monte Carlo tree search with a length penalty.

The root of the tree is the full path; an edit skips one layer, or two adjacent ones, or repeats a layer; every path is
one node. Selection is by UCB with the penalty of Dr.LLM (arXiv:2510.12773, equation 5),

    Q / v + c sqrt(ln V / v) - lambda |path| / L,

V the visits of the parent. The released code gives every node one child, so that it never selects; here a node that
has been visited V times may have ceil(w sqrt(V)) children (progressive widening), drawn in random order.
"""

import math
import random
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from harness.model.paths.routed_cache import LayerPath


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        simulations: paths tried for a question, beside the full one.
        exploration: c in UCB.
        length_penalty: lambda in UCB; it acts in selection alone.
        random_child: probability of selecting a random child.
        widening: w, children per square root of visits.
        stop_early: stop at the first path that corrects a wrong answer, or is right and saves ``least_saved`` layers.
        least_saved: layers that a right path must save to stop the search; the released code asks for 2.
    """

    simulations: int = 50
    exploration: float = 1.8
    length_penalty: float = 3.0
    random_child: float = 0.1
    widening: float = 2.0
    stop_early: bool = True
    least_saved: int = 1


@dataclass(frozen=True)
class Reward:
    """What a path earned.

    Attributes:
        right: whether the answer is right.
        margin: by how much, in nats per token or character; larger is preferred between equally short paths.
    """

    right: bool
    margin: float = 0.0


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        path: the shortest right path, of several the one with the largest margin; None where no path was right.
        dense_right: whether the full path was right.
        evaluations: how many paths were evaluated.
    """

    path: LayerPath | None
    dense_right: bool
    evaluations: int


@dataclass
class Node:
    """A path with the visits and rewards of its subtree.

    Attributes:
        untried: paths one edit away that are not in the tree yet.
        value: how many visits of the subtree were right.
    """

    path: LayerPath
    untried: list[LayerPath]
    visits: int = 0
    value: float = 0.0
    children: list["Node"] = field(default_factory=list)


Search = Generator[LayerPath, Reward, SearchResult]
"""Yields a path to evaluate, is sent its reward, and returns the result."""


def edits(path: LayerPath) -> Iterator[LayerPath]:
    """Paths one edit away: one or two adjacent layers skipped, or one repeated."""
    for width in (1, 2):
        for first in range(len(path) - width + 1):
            if all(path[first : first + width]):
                yield (*path[:first], *(0,) * width, *path[first + width :])
    for layer, count in enumerate(path):
        if count == 1:
            yield (*path[:layer], 2, *path[layer + 1 :])


def search(layers: int, settings: Settings, seed: str) -> Search:
    """Search one question's path; every path is asked for at most once, the full one first."""
    tree = Tree(layers, settings, random.Random(seed))
    reward = yield tree.root.path
    tree.record([tree.root], reward)
    dense_right = reward.right
    for _ in range(settings.simulations):
        trail = tree.select()
        if trail is None:  # every path has been tried
            break
        tree.record(trail, (yield trail[-1].path))
        improved = tree.best is not None and (not dense_right or sum(tree.best) <= layers - settings.least_saved)
        if settings.stop_early and improved:
            break
    return SearchResult(tree.best, dense_right, len(tree.rewards))


class Tree:
    """The search's memory.

    Attributes:
        rewards: the reward of every path that was evaluated.
        best: the shortest right path.
    """

    def __init__(self, layers: int, settings: Settings, rng: random.Random) -> None:
        self._layers, self._settings, self._rng = layers, settings, rng
        self._known: set[LayerPath] = set()
        self.rewards: dict[LayerPath, Reward] = {}
        self.best: LayerPath | None = None
        self.root = self._node((1,) * layers)

    def select(self) -> list[Node] | None:
        """The nodes from the root to a path not yet tried; None where every path has been tried."""
        trail = [self.root]
        while True:
            node = trail[-1]
            node.untried = [path for path in node.untried if path not in self._known]
            if node.untried and (len(node.children) < self._width(node) or not node.children):
                child = self._node(node.untried.pop())
                node.children.append(child)
                return [*trail, child]
            open_children = [child for child in node.children if self._open(child)]
            if not open_children:
                return None
            trail.append(self._choose(node, open_children))

    def record(self, trail: list[Node], reward: Reward) -> None:
        """Credit a reward to every node of the trail."""
        path = trail[-1].path
        self.rewards[path] = reward
        for node in trail:
            node.visits += 1
            node.value += reward.right
        if reward.right and (self.best is None or self._rank(path) < self._rank(self.best)):
            self.best = path

    def ucb(self, child: Node, parent: Node) -> float:
        """What selection maximises."""
        settings = self._settings
        explored = settings.exploration * math.sqrt(math.log(parent.visits) / child.visits)
        return child.value / child.visits + explored - settings.length_penalty * sum(child.path) / self._layers

    def _rank(self, path: LayerPath) -> tuple[int, float]:
        return sum(path), -self.rewards[path].margin

    def _node(self, path: LayerPath) -> Node:
        self._known.add(path)
        untried = list(edits(path))
        self._rng.shuffle(untried)
        return Node(path, untried)

    def _width(self, node: Node) -> int:
        return math.ceil(self._settings.widening * math.sqrt(max(node.visits, 1)))

    def _open(self, node: Node) -> bool:
        """Whether anything below is left to try."""
        return any(path not in self._known for path in node.untried) or any(map(self._open, node.children))

    def _choose(self, node: Node, children: list[Node]) -> Node:
        if self._rng.random() < self._settings.random_child:
            return self._rng.choice(children)
        return max(children, key=lambda child: self.ucb(child, node))
