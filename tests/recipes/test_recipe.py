"""Recipes: a mistake is one sentence that names the key; equal choices give equal digests."""

from pathlib import Path

import pytest

from mav.errors import UserError
from mav.recipes import Recipe, digest, to_plain
from mav.recipes.reader import load_recipe, recipe_from_dict, shipped_recipes


def test_every_shipped_recipe_loads() -> None:
    assert {"demo", "tiny", "paper"} <= set(shipped_recipes())
    for name in shipped_recipes():
        assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("generate.cuont=4", "generate.cuont"),
        ("generate.count=many", "generate.count"),
        ("cascade.frames=1", "cascade.frames"),
        ("screening.punsafe_threshold=2", "screening.punsafe_threshold"),
        ("screening.unknown_scores=maybe", "screening.unknown_scores"),
        ("train_prior.optimisation.samples=1", "train_prior.optimisation.samples"),
        ("cascade.base_size=4096", "cascade.base_size"),
    ],
)
def test_a_mistake_names_its_key(override: str, key: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("demo", [override])
    sentence = str(caught.value)
    assert key in sentence
    assert "\n" not in sentence


def test_set_needs_key_and_value() -> None:
    with pytest.raises(UserError, match="key=value"):
        load_recipe("demo", ["generate.count"])
    assert load_recipe("demo", ["generate.count=3"]).generate.count == 3


def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No recipe"):
        load_recipe(str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1, 2\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_recipe(str(broken))
    broken.write_text("seed: 1\nimage_metadata:\n   sources:\n    - a\n  - b\n")
    with pytest.raises(UserError) as error:
        load_recipe(str(broken))
    assert "line 5, column 3 is not valid YAML (expected <block end>, but found '" in str(error.value)
    broken.write_text("just a sentence")
    with pytest.raises(UserError, match="not a mapping"):
        load_recipe(str(broken))


def test_a_text_that_may_be_empty_is_not_told_to_be_more() -> None:
    with pytest.raises(UserError) as error:
        load_recipe("demo", ["video_shards.files="])
    assert "is null, but must be text (folder of" in str(error.value)
    assert str(error.value).endswith("): give it, or leave the key out.")
    assert load_recipe("demo", ['video_shards.files=""']).video_shards.files == ""


def test_extends_gives_only_what_differs(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: demo\ngenerate: {count: 2}\n")
    recipe, parent = load_recipe(str(child)), load_recipe("demo")
    assert (recipe.name, recipe.about, recipe.generate.count) == ("child", "", 2)
    assert recipe.train_decoder == parent.train_decoder
    circle = tmp_path / "circle.yaml"
    circle.write_text(f"extends: {circle}\n")
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(str(circle))


def test_plain_data_makes_the_same_recipe(small_recipe: Recipe) -> None:
    data = to_plain(load_recipe("demo"))
    assert recipe_from_dict(data) == load_recipe("demo")
    assert digest(data) == digest(to_plain(recipe_from_dict(data)))
    assert digest(small_recipe) != digest(data)


def test_a_run_without_world_needs_sources(small_recipe: Recipe) -> None:
    with pytest.raises(UserError, match=r"image_metadata\.sources"):
        recipe_from_dict(to_plain(small_recipe))


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("generate: {count: 3}\nseed: 5\ngenerate: {batch_size: 2}\n", "generate", (2, 4)),
        ("generate:\n  count: 3\n  count: 4\n", "count", (3, 4)),
        ("generate: {count: 3, count: 3}\n", "count", (2, 2)),
        ('seed: 1\n"seed": 2\n', "seed", (2, 3)),
        ("screening:\n  word_lists: [en]\n  min_side: 1\n  word_lists: [de]\n", "word_lists", (3, 5)),
    ],
)
def test_a_key_stands_once(tmp_path: Path, text: str, key: str, lines: tuple[int, int]) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"extends: tiny\n{text}")
    with pytest.raises(UserError, match=f"`{key}` stands in line {lines[0]} and again in line {lines[1]}"):
        load_recipe(str(path))


def test_keys_of_several_sections_and_merges_are_no_repetition(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "extends: tiny\nimage_download: &floors {success_floor: 0.1, shard_floor: 0.2}\n"
        "video_shards: {<<: *floors, success_floor: 0.3}\n"
    )
    recipe = load_recipe(str(path))
    assert (recipe.video_shards.success_floor, recipe.video_shards.shard_floor) == (0.3, 0.2)
    with pytest.raises(UserError, match="stands in line 1"):
        load_recipe("tiny", ["generate={count: 1, count: 2}"])
