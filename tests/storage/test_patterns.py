"""A name is a name: brackets and other signs in it are letters, and `*` is a pattern where nothing is called so."""

import pickle

import pytest

from flows.engine.stage import file_identity
from mav.data.images.laion import source_parts
from mav.errors import UserError
from mav.storage import Folder
from mav.storage.patterns import matching_paths

NAMES = [
    "films [2024]",
    "data[1]",
    "a?b",
    "a*b",
    "100 %",
    "#1",
    "über",
    "-x",
    "a b",
    "[!a]",
    "{a,b}",
    "a%20b",
    "[",
    "x]",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_any_name(tmp_path, name):
    folder = tmp_path / name / "tables"
    (folder / "deep").mkdir(parents=True)
    for file in ("part-0.parquet", "part-1.parquet", "other.csv", "deep/part-2.parquet", f"{name}.parquet"):
        (folder / file).write_text(file)
    decoy = tmp_path / "films 2" / "tables"
    decoy.mkdir(parents=True)
    (decoy / "part-9.parquet").write_text("")
    for find in (matching_paths, lambda pattern: source_parts([pattern])):
        assert find(f"{folder}/part-*.parquet") == [f"{folder}/part-0.parquet", f"{folder}/part-1.parquet"]
        assert find(f"{folder}/{name}.parquet") == [f"{folder}/{name}.parquet"]
        assert f"{folder}/deep/part-2.parquet" in find(f"{folder}/**/*.parquet")
        assert find(f"{folder}/part-[1]*.parquet") == [f"{folder}/part-1.parquet"]
    assert [size for _, size, _ in file_identity(f"{folder}/part-*.parquet")] == [14, 14]
    assert len(file_identity(f"{folder}/{name}.parquet")) == 1
    inside = Folder(str(tmp_path / name))
    inside.write_bytes(f"{name}/{name}.mp4", b"x")
    assert inside.read_bytes(f"{name}/{name}.mp4") == b"x"
    inside.remove(name)
    assert not inside.exists(name)
    assert (folder / "part-0.parquet").exists()


def test_patterns_on_other_storages(s3):
    folder = Folder(f"{s3}/films [2024]")
    for name in ("a.parquet", "b.parquet", "[ab].parquet"):
        folder.write_bytes(name, b"x")
    assert matching_paths(f"{s3}/films [2024]/*.parquet") == [
        f"{s3}/films [2024]/{n}.parquet" for n in ("[ab]", "a", "b")
    ]
    folder.remove("[ab].parquet")
    assert folder.names() == ["a.parquet", "b.parquet"]
    folder.remove()
    assert folder.names() == []


def test_a_star_matches_nothing_hidden(tmp_path):
    names = ["a.parquet", "._a.parquet", "__MACOSX/a.parquet", ".ipynb_checkpoints/a.parquet", "deep/b.parquet"]
    for name in names:
        Folder(str(tmp_path / ".home")).write_bytes(name, b"x")
    home = f"{tmp_path}/.home"
    hidden = []
    assert matching_paths(f"{home}/*.parquet", hidden) == [f"{home}/a.parquet"]
    assert hidden == ["._a.parquet"]
    assert matching_paths(f"{home}/**/*.parquet") == [f"{home}/a.parquet", f"{home}/deep/b.parquet"]
    assert matching_paths(f"{home}/.*.parquet") == [f"{home}/._a.parquet"]
    (tmp_path / ".home/a.parquet").unlink()
    assert matching_paths(f"{home}/*.parquet") == []


@pytest.mark.parametrize("name", ["a::b", "zip::c", "::", "memory::x", "s3::y"])
def test_two_colons_in_a_name_are_letters(tmp_path, name):
    for folder in (Folder(f"{tmp_path}/{name}"), Folder(f"file://{tmp_path}/{name}")):
        folder.write_bytes("deep::er/a.parquet", b"x")
        assert (tmp_path / name / "deep::er/a.parquet").read_bytes() == b"x"
        assert pickle.loads(pickle.dumps(folder)).url == str(tmp_path / name)
        assert matching_paths(f"{folder.url}/deep::er/*.parquet") == [f"{tmp_path}/{name}/deep::er/a.parquet"]


def test_no_match_is_said(tmp_path):
    with pytest.raises(UserError, match="No file matches"):
        source_parts([f"{tmp_path}/[x]/*.parquet"])
