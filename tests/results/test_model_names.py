"""Models of one name are told apart by as little as it takes."""

import pytest

from harness.results.model_names import distinct_names


def model(name, pretrained, fingerprint):
    return {"name": name, "pretrained": pretrained, "fingerprint": fingerprint}


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["runs/alice/checkpoint-10"], ["checkpoint-10"]),
        (["runs/alice/checkpoint-10", "runs/bob/checkpoint-10/"], ["alice/checkpoint-10", "bob/checkpoint-10"]),
        (["meta/checkpoint-10", "other/checkpoint-10"], ["meta/checkpoint-10", "other/checkpoint-10"]),
        (["a/out/checkpoint-10", "b/out/checkpoint-10"], ["a/out/checkpoint-10", "b/out/checkpoint-10"]),
    ],
)
def test_a_name_has_as_much_of_the_place_as_tells_models_apart(places, names):
    models = [model("checkpoint-10", place, str(number)) for number, place in enumerate(places)]
    alone = model("pocket", "pocket", "x")
    assert distinct_names([*models, alone]) == {str(n): name for n, name in enumerate(names)} | {"x": "pocket"}


def test_the_longer_name_of_one_is_not_the_name_of_another():
    places = {"1": "runs/alice/m", "2": "runs/bob/m"}
    models = [model("m", place, number) for number, place in places.items()] + [model("alice/m", "x", "3")]
    names = distinct_names(models)
    assert len(set(names.values())) == 3
    assert names["2"] == "bob/m"


def test_one_model_in_two_places_has_one_name():
    models = [model("m", "here/m", "1"), model("m", "./deeper/there/m", "1")]
    assert distinct_names(models) == {"1": "m"}


@pytest.mark.parametrize("places", [["m", "m"], ["1/2/3/4/5/m", "9/2/3/4/5/m"]])
def test_where_places_are_alike_the_weights_tell(places):
    names = distinct_names([model("m", place, f"weights {number}") for number, place in enumerate(places)])
    assert len(set(names.values())) == 2
    assert all(name.startswith("m (") for name in names.values())
