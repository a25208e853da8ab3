"""The search: a real tree that asks for no path twice, keeps within its limits, and finds a known optimum."""

import math

import pytest

from harness.methods.routing.mcts import Reward, SearchResult, Settings, Tree, edits, search

LAYERS = 6


def solve(reward, settings=None, seed="0", layers=LAYERS):
    """Run a search against a function of the path; what it found and what it asked."""
    searching, asked = search(layers, settings or Settings(), seed), []
    path = next(searching)
    try:
        while True:
            asked.append(path)
            path = searching.send(reward(path))
    except StopIteration as finished:
        return finished.value, asked


def test_a_known_optimum_is_found():
    """Right as long as layers 0 and 5 run: the shortest path leaves out the four between."""
    found, _ = solve(lambda path: Reward(bool(path[0] and path[5])), Settings(simulations=200, stop_early=False))
    assert found.path == (1, 0, 0, 0, 0, 1)
    assert found.dense_right


def test_a_wrong_answer_is_corrected_by_repeating():
    found, asked = solve(lambda path: Reward(path[3] == 2), Settings(simulations=200))
    assert found.path is not None
    assert found.path[3] == 2
    assert not found.dense_right
    assert found.evaluations == len(asked)


def test_the_search_stops_at_the_first_improvement_and_goes_on_where_asked():
    always = lambda path: Reward(True)  # noqa: E731
    assert len(solve(always)[1]) < 10
    found, asked = solve(always, Settings(simulations=60, stop_early=False))
    assert len(asked) == 61
    assert sum(found.path) < sum(solve(always)[0].path)


def test_the_search_may_have_to_save_two_layers_before_it_stops():
    reward = lambda path: Reward(path[0] == 1)  # noqa: E731
    for least in (1, 2, 3):
        found, asked = solve(reward, Settings(simulations=200, least_saved=least))
        assert sum(found.path) <= LAYERS - least
        assert all(sum(path) > LAYERS - least or not reward(path).right for path in asked[:-1])
    found, asked = solve(lambda path: Reward(path[3] == 2), Settings(simulations=200, least_saved=2))
    assert found.path[3] == 2  # a corrected answer needs to save nothing
    assert asked[-1][3] == 2


def test_no_path_is_right():
    assert solve(lambda path: Reward(False), Settings(simulations=20))[0] == SearchResult(None, False, 21)


def test_no_path_is_asked_for_twice_and_all_are_legal():
    _, asked = solve(lambda path: Reward(sum(path) % 2 == 0), Settings(simulations=300, stop_early=False))
    assert len(asked) == len(set(asked)) == 301
    for path in asked:
        assert set(path) <= {0, 1, 2}
        assert sum(path) <= 2 * LAYERS
    assert asked[0] == (1,) * LAYERS


def test_a_small_space_is_searched_to_its_end():
    _, asked = solve(lambda path: Reward(False), Settings(simulations=1000), layers=2)
    assert len(asked) == 9


def test_nodes_have_several_children_and_visits_add_up():
    tree = Tree(LAYERS, Settings(), __import__("random").Random(0))
    tree.record([tree.root], Reward(True))
    for _ in range(100):
        trail = tree.select()
        tree.record(trail, Reward(bool(trail[-1].path[2])))
    nodes, stack = [], [tree.root]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack += node.children
        assert node.visits == 1 + sum(child.visits for child in node.children)
        own = tree.rewards[node.path].right
        assert node.value == own + sum(child.value for child in node.children)
        assert len(node.children) <= max(1, math.ceil(2 * math.sqrt(node.visits)))
    assert sum(len(node.children) > 1 for node in nodes) > 5
    assert max(len(node.children) for node in nodes) > 5
    assert len(nodes) == 101


def test_ucb_is_the_papers():
    tree = Tree(4, Settings(exploration=1.8, length_penalty=3.0), __import__("random").Random(0))
    tree.record([tree.root], Reward(True))
    trail = tree.select()
    tree.record(trail, Reward(True))
    child = trail[1]
    expected = 1.0 + 1.8 * math.sqrt(math.log(2)) - 3.0 * sum(child.path) / 4
    assert tree.ucb(child, tree.root) == pytest.approx(expected)


def test_of_two_equally_short_paths_the_surer_is_kept():
    found, _ = solve(
        lambda path: Reward(sum(path) >= LAYERS - 1, margin=float(path[4] == 0)),
        Settings(simulations=200, stop_early=False),
    )
    assert found.path == (1, 1, 1, 1, 0, 1)


def test_the_seed_decides_the_search():
    runs = [solve(lambda path: Reward(path[1] == 2), Settings(simulations=30), seed)[1] for seed in ("a", "a", "b")]
    assert runs[0] == runs[1] != runs[2]


def test_edits_skip_one_or_two_neighbours_or_repeat_one():
    assert set(edits((1, 1, 0))) == {(0, 1, 0), (1, 0, 0), (0, 0, 0), (2, 1, 0), (1, 2, 0)}
