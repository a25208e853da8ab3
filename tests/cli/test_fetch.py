"""``harness fetch``: real downloads from a hub on this machine, carried as one file to a cache that has nothing."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from harness.evaluate import archive
from tests.cli.small_hub import COMMIT, small_hub
from tests.conftest import Harness, Machine

ANIMALS = """
task: animals
dataset_path: our/Animals
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
SNAPSHOT = f"hub/models--our--tiny/snapshots/{COMMIT}"


@pytest.fixture
def served(tmp_path: Path, tiny_folder: Path) -> Path:
    """What the hub has: a data set and a model, one with code in its repository."""
    root = tmp_path / "served"
    rows = [{"question": f"animal {index}", "choices": ["cat", "dog"], "answer": index % 2} for index in range(4)]
    for split in ("train", "test"):
        path = root / "datasets" / "our" / "Animals" / "data" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "datasets" / "our" / "Animals" / "README.md").write_text("# Animals\n")
    model = root / "models" / "our" / "tiny"
    model.mkdir(parents=True)
    for file in tiny_folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "modeling.py").write_text("raise SystemExit('code of a stranger')\n")
    return root


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "animals.yaml").write_text(ANIMALS)
    return folder


@pytest.mark.slow
def test_fetched_carried_and_used(machine: Machine, served: Path, tasks: Path, tmp_path: Path) -> None:
    here, there = str(tmp_path / "here"), str(tmp_path / "there")
    fetch = ["fetch", "animals", "--include_path", tasks, "--model", "our/tiny"]
    with small_hub(served) as address:
        online = {"HF_HOME": here, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
        packed, again = machine([*fetch, "--pack", "data.tar.gz"], fetch, **online)
    assert packed.out.count("fetched") == 2
    assert "fetched" not in again.out
    assert again.out.count("here") == 2

    unpack = ["fetch", "--unpack", "data.tar.gz"]
    run = ["run", "--task", "animals", "--include_path", tasks, "--pretrained", "our/tiny", "--limit", 2, "--json"]
    unpacked, again, done = machine(unpack, unpack, run, HF_HOME=there)
    assert unpacked.out.count("unpacked") == 2
    assert again.out.count("here already") == 2
    (record,) = done.json()
    assert record["model"]["fingerprint"] == f"hub:our/tiny@{COMMIT}"
    assert record["scores"][0]["n"] == 2


@pytest.mark.slow
def test_a_hub_that_does_not_answer(machine: Machine, tasks: Path, tmp_path: Path) -> None:
    with small_hub(tmp_path / "empty") as address:
        env = {"HF_HOME": str(tmp_path / "here"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address}
        (done,) = machine(["fetch", "animals", "--include_path", tasks, "--model", "our/tiny"], **env)
    assert "could not be fetched: animals (" in done.err
    assert done.code == 2
    assert "Traceback" not in done.err


@pytest.mark.slow
@pytest.mark.hub
def test_real_data_gives_the_same_run_elsewhere(machine: Machine, hub: Path, tiny_folder: Path, tmp_path: Path) -> None:
    plan = ["run", "--task", "arc_easy", "--pretrained", tiny_folder, "--dry_run", "--json"]
    packed, here = machine(["fetch", "arc_easy", "--pack", "arc.tar.gz"], plan, HF_HOME=str(hub))
    assert packed.code == 0
    unpack = ["fetch", "--unpack", "arc.tar.gz"]
    missing, unpacked, there = machine(plan, unpack, plan, HF_HOME=str(tmp_path / "there"))
    assert (missing.code, unpacked.code) == (2, 0)
    (plan_here,), (plan_there,) = here.json(), there.json()
    assert plan_here["id"] == plan_there["id"]
    assert plan_here["documents"] == 2376


def prepared(empty_caches: Path) -> list[Path]:
    """A data set and a model's snapshot, with what surrounds them in real caches."""
    data = empty_caches / "datasets" / "our___animals" / "default" / "0.0.0" / COMMIT
    data.mkdir(parents=True)
    (data / "dataset_info.json").write_text('{"config_name": "default"}')
    (data / "animals-test.arrow").write_bytes(b"rows")
    (data / "cache-0123.arrow").write_bytes(b"made by map()")
    (data.parent / f"{COMMIT}_builder.lock").touch()
    model = empty_caches / SNAPSHOT
    blobs = model.parent.parent / "blobs"
    for folder in (model, blobs):
        folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "modeling.py", "pytorch_model.bin"):
        (blobs / name).write_text(name)
        (model / name).symlink_to(f"../../blobs/{name}")
    (model / "same.json").hardlink_to(blobs / "config.json")
    return [data, model]


def test_an_archive_holds_plain_files_alone(empty_caches: Path, tmp_path: Path) -> None:
    folders = prepared(empty_caches)
    archive.pack([*folders, folders[0]], tmp_path / "data.tar.gz")
    with tarfile.open(tmp_path / "data.tar.gz") as tar:
        members = tar.getmembers()
    data = f"datasets/our___animals/default/0.0.0/{COMMIT}"
    expected = {f"{data}/animals-test.arrow", f"{data}/dataset_info.json"}
    expected |= {f"{SNAPSHOT}/{name}" for name in ("config.json", "model.safetensors", "same.json")}
    assert sorted(member.name for member in members) == sorted(expected)
    assert all(member.isreg() and not member.uname and not member.uid for member in members)


def test_unpacked_where_the_libraries_look(empty_caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants, snapshot_download

    archive.pack(prepared(empty_caches), tmp_path / "data.tar.gz")
    other = tmp_path / "other"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(other / "datasets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(other / "hub"))
    assert set(archive.unpack(tmp_path / "data.tar.gz").values()) == {True}
    folder = Path(snapshot_download("our/tiny", cache_dir=other / "hub", local_files_only=True))
    assert (folder / "model.safetensors").read_text() == "model.safetensors"
    (folder / "config.json").write_text("changed by the user")
    assert set(archive.unpack(tmp_path / "data.tar.gz").values()) == {False}
    assert (folder / "config.json").read_text() == "changed by the user"


def written(path: Path, *members: tuple[str, bytes | None]) -> Path:
    """An archive of these members; a content of None is a symbolic link to /etc."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    return path


GOOD = (f"{SNAPSHOT}/config.json", b"{}")


@pytest.mark.parametrize(
    "bad",
    [
        ("notes.txt", b""),
        ("/etc/passwd", b""),
        (f"../{SNAPSHOT}/config.json", b""),
        (f"{SNAPSHOT}/../../../../../config.json", b""),
        (f"datasets/../default/0.0.0/{COMMIT}/a.arrow", b""),
        (f"datasets/a/./0.0.0/{COMMIT}/a.arrow", b""),
        (f"{SNAPSHOT}/a\\..\\b.json", b""),
        (f"{SNAPSHOT}/modeling.py", b"import os"),
        (f"{SNAPSHOT}/pytorch_model.bin", b""),
        (f"{SNAPSHOT}/model.safetensors", None),
        ("hub/models--our--tiny/refs/main", b"x"),
        ("modules/evaluate_modules/a.py", b""),
    ],
)
def test_a_foreign_member_stops_everything(
    harness: Harness, empty_caches: Path, tmp_path: Path, bad: tuple[str, bytes | None]
) -> None:
    path = written(tmp_path / "bad.tar.gz", GOOD, bad)
    sentence = harness("fetch", "--unpack", path).sentence
    assert "is not an archive of `harness fetch --pack`" in sentence
    assert not empty_caches.exists()


def test_damaged_and_empty_files(harness: Harness, empty_caches: Path, tmp_path: Path) -> None:
    whole = written(tmp_path / "good.tar.gz", (GOOD[0], bytes(range(256)) * 400)).read_bytes()
    for name, content in {"torn": whole[: len(whole) // 2], "text": b"no archive", "nothing": b""}.items():
        (tmp_path / name).write_bytes(content)
        assert f"{name} cannot be read as an archive" in harness("fetch", "--unpack", tmp_path / name).sentence
    assert "it is empty" in harness("fetch", "--unpack", written(tmp_path / "empty.tar.gz")).sentence
    assert "cannot be read" in harness("fetch", "--unpack", "absent.tar.gz").sentence
    assert not empty_caches.exists()


def test_said_in_a_sentence(harness: Harness, empty_caches: Path) -> None:
    assert "nothing to fetch" in harness("fetch").sentence
    assert "give it alone" in harness("fetch", "arc_easy", "--unpack", "a.tar.gz").sentence
    assert "try a.zip.tar.gz" in harness("fetch", "arc_easy", "--pack", "a.zip").sentence
    assert "Did you mean 'arc_easy'" in harness("fetch", "arc_eazy").sentence
    done = harness("fetch", "pocket", "quick")
    assert done.code == 0
    assert done.out.count("bundled") == 3


def test_missing_without_a_network(harness: Harness, empty_caches: Path) -> None:
    done = harness("fetch", "llm-drop", "pocket_text")
    assert done.code == 2
    assert done.out.count("not here") == 9
    for expected in ("mmlu (cais/mmlu, abstract_algebra and 56 more)", "fetch llm-drop pocket_text --pack", "--unpack"):
        assert expected in done.err


def test_a_model_and_a_task_of_ones_own_are_missing(harness: Harness, empty_caches: Path, tasks: Path) -> None:
    done = harness("fetch", "animals", "--include_path", tasks, "--model", "our/tiny")
    assert done.code == 2
    for expected in ("switched off", "animals (our/Animals)", "our/tiny", "fetch animals --model our/tiny --pack"):
        assert expected in done.err
