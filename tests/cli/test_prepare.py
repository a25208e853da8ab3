"""``harness prepare``: a state in a folder, what was found in words or as JSON, refusals in one sentence."""

from tests.conftest import Harness

METHOD = "dr-llm:questions=4,simulations=4,goal=likelihood,epochs=2,hidden=8"


def test_a_state_is_written_and_used(harness: Harness, tiny: list[object]) -> None:
    [found] = harness("prepare", *tiny, "-m", METHOD, "-t", "tiny_letters", "-o", "state", "--json").json()
    assert found["method"].startswith("dr-llm:")
    assert (found["task"], found["state"][0]["questions"]) == ("tiny_letters", 4)
    done = harness("run", *tiny, "-m", "dr-llm:state=state", "-t", "tiny_letters", "-L", 2, "--no_baseline")
    assert done.code == 0
    assert "preparing" not in done.err
    assert "is there already" in harness("prepare", *tiny, "-m", METHOD, "-t", "tiny_letters", "-o", "state").sentence


def test_what_was_found_is_told(harness: Harness, tiny: list[object]) -> None:
    done = harness(
        "prepare",
        *tiny,
        "-m",
        "polar:questions=4,simulations=4,goal=likelihood,epochs=1",
        "-t",
        "tiny_letters",
        "-o",
        "paths",
    )
    assert done.code == 0
    for word in ("kept", "oracle", "polar:state=paths"):
        assert word in done.out


def test_refusals(harness: Harness, tiny: list[object]) -> None:
    several = ("-m", METHOD, "-m", "polar", "-t", "tiny_letters", "-o", "state")
    assert "one state goes into a folder" in harness("prepare", *tiny, *several).sentence
    drop = ("-m", "layer-drop:count=1", "-t", "tiny_letters", "-o", "state")
    assert "layer-drop takes no state" in harness("prepare", *tiny, *drop).sentence
    nothing = harness("prepare", *tiny, "-m", "random-skip", "-t", "tiny_letters").sentence
    assert nothing == "random-skip needs no preparation: run it"
