"""Every wrong setting is refused when the recipe is loaded, by its key, and all of them at once."""

import copy
import math
import re
from pathlib import Path

import pytest

from mav.errors import UserError
from mav.recipes.identity import values
from mav.recipes.reader import RecipeError, _assign, _read_tree, load_recipe, recipe_from_dict
from mav.recipes.rules import KEY

RN50 = ["clip.architecture=RN50", "clip.pretrained=weights.pt", "train_prior.network.text_context=77"]
WRONG = [
    # Numbers out of their range.
    ("cluster.parallel_stages=0", "cluster.parallel_stages"),
    ("image_download.threads=-3", "image_download.threads"),
    ("image_download.timeout_seconds=0", "image_download.timeout_seconds"),
    ("image_download.deadline_seconds=.inf", "image_download.deadline_seconds"),
    ("image_download.success_floor=1.5", "image_download.success_floor"),
    ("video_shards.shard_floor=-0.1", "video_shards.shard_floor"),
    ("image_download.proxy=proxy:3128", "image_download.proxy"),
    ("video_shards.proxy='http://proxy'", "video_shards.proxy"),
    ("cluster.quarantine_floor=2", "cluster.quarantine_floor"),
    ("train_prior.optimisation.learning_rate=.nan", "train_prior.optimisation.learning_rate"),
    ("train_prior.optimisation.learning_rate=-1.0e-3", "train_prior.optimisation.learning_rate"),
    ("train_prior.optimisation.betas=[0.9, 1.0]", "train_prior.optimisation.betas.1"),
    ("train_decoder.optimisation.ema_decay=1.5", "train_decoder.optimisation.ema_decay"),
    ("train_decoder.optimisation.batch_size=0", "train_decoder.optimisation.batch_size"),
    ("train_decoder.optimisation.samples=1e30", "train_decoder.optimisation.samples"),
    ("generate.count=-1", "generate.count"),
    ("generate.decoder.steps=0", "generate.decoder.steps"),
    ("generate.prior_candidates=0", "generate.prior_candidates"),
    ("generate.frame_rates=[4, 0]", "generate.frame_rates.1"),
    ("seed=-1", "seed"),
    ("world.port=70000", "world.port"),
    ("world.shapes=[]", "world.shapes"),
    ("world.kind=digits", "world.files"),
    ("world={kind: digits, files: data/mnist, objects: 2}", "world.objects"),
    ("image_download.proxy='http://proxy:65536'", "image_download.proxy"),
    # What is drawn does not suffice.
    ("world.clip_frames=7", "world.clip_frames"),
    ("cascade.frames=50", "world.clip_frames"),
    # Other kinds of values.
    ("video_shards.reencode='no'", "video_shards.reencode"),
    ("screening.word_lists=en", "screening.word_lists"),
    ("image_metadata.sources=part.parquet", "image_metadata.sources"),
    ("cluster.attempts=true", "cluster.attempts"),
    ("generate.count='3'", "generate.count"),
    ("generate=3", "generate"),
    # Sizes that contradict one another.
    ("cascade.low_size=40", "cascade.low_size"),
    ("cascade.base_size=4096", "cascade.base_size"),
    ("cascade.high_size=32", "cascade.high_size"),
    ("train_decoder.network.levels=[{channels: 8}, {channels: 8}, {channels: 8}, {channels: 8}, {channels: 8}, "
     "{channels: 8}]", "train_decoder.network.levels"),
    ("train_decoder.network.out_channels=6", "train_decoder.network.out_channels"),
    ("train_decoder.objective.prediction=eps_learned_sigma", "train_decoder.objective.prediction"),
    ("train_prior.objective.prediction=eps_learned_sigma", "train_prior.objective.prediction"),
    ("train_prior.objective={prediction: eps, zero_terminal_snr: true}", "train_prior.objective.zero_terminal_snr"),
    ("train_prior.network.embedding_dim=32", "train_prior.network.embedding_dim"),
    ("train_decoder.network.embedding_dim=32", "train_decoder.network.embedding_dim"),
    ("train_prior.network.text_context=77", "train_prior.network.text_context"),
    ("train_prior.network.heads=5", "train_prior.network.width"),
    ("train_decoder.network.head_channels=7", "train_decoder.network.head_channels"),
    ("train_sr_low.network.embedding_dim=64", "train_sr_low.network.embedding_dim"),
    ("train_sr_low.network.low_resolution=false", "train_sr_low.network.low_resolution"),
    ("train_decoder.crop=0.5", "train_decoder.crop"),
    ("train_decoder.enlarged=false", "train_decoder.enlarged"),
    ("train_interpolation.frames=9", "train_interpolation.frames"),
    ("train_decoder_video.fps.low=40", "train_decoder_video.fps.low"),
    # A CLIP that would not be what the recipe says.
    ("clip.architecture=ViT-L-14", "clip.architecture"),
    ("clip.pretrained=weights.pt", "clip.pretrained"),
    ("clip.optimisation.samples=0", "clip.optimisation.samples"),
    ("clip.optimisation.held_out=8", "clip.optimisation.held_out"),
    # Lengths.
    ("train_prior.optimisation.samples=1", "train_prior.optimisation.samples"),
    ("train_prior.optimisation.warmup_samples=100000", "train_prior.optimisation.warmup_samples"),
    ("train_decoder.optimisation.accumulation=3", "train_decoder.optimisation.batch_size"),
    ("train_decoder.optimisation.export=best", "train_decoder.optimisation.export"),
    ("train_decoder_video.temporal_first_samples=100000", "train_decoder_video.temporal_first_samples"),
    ("generate.decoder.steps=1001", "generate.decoder.steps"),
    ("generate.interpolation.steps=400", "generate.interpolation.steps"),  # of 300: it starts at 0.3 of the schedule
    # The rest.
    ("screening.min_caption=3000", "screening.min_caption"),
    ("screening.max_aspect=0.5", "screening.max_aspect"),
    ("evaluate.features=published", "evaluate.features"),
    ("evaluate.card_clips=7", "evaluate.card_clips"),
    ("world.evaluation_clips=7", "world.evaluation_clips"),
    ("video_shards.shot_weights=shots.pth", "video_select.cut"),  # whose default is no probability
    ("generate.frame_rates=[4, 4.0]", "generate.frame_rates"),
    ("generate.prompts=$HOME/prompts.txt", "generate.prompts"),
    ("world=null", "image_metadata.sources"),
]  # fmt: skip


@pytest.mark.parametrize("key", ["image_metadata.sources", "video_shards.sources", "screening.word_lists"])
def test_a_source_that_is_missing_is_one_sentence_that_does_not_ask_for_quotes_or_brackets(key: str) -> None:
    for value, said in (
        ("['']", f"`{key}.0` is '', but must be text and not empty: give it, or leave it out."),
        ("[null]", f"`{key}.0` is null, but must be text and not empty: give it, or leave it out."),
        ("[parts.csv, '']", f"`{key}.1` is '', but must be text and not empty: give it, or leave it out."),
        ("null", ": leave the key out, or write []."),
        ("''", ": leave the key out, or write []."),
        ("[' ']", "names ' ', which is blank: name a file, or leave it out."),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe("demo", [f"{key}={value}"])
        assert str(caught.value).endswith(said)
        assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("override", "key"), WRONG)
def test_a_wrong_setting_is_refused_by_key(override: str, key: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", [override])
    named = [name for problem in caught.value.problems for name in (problem.key, *KEY.findall(problem.why))]
    assert key in named
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("train_prior.optimisation.steps", ": it has samples, batch_size, "),  # and not: did you mean eps?
        ("train_prior.optimisation.warmup", ": did you mean warmup_samples?"),
        ("train_prior.samples", "; elsewhere there is train_prior.optimisation.samples."),
        ("Train-Prior.optimisation.samples", "a recipe has no such key: did you mean train_prior?"),
        ("generate.frames", "; elsewhere there is cascade.frames, train_decoder_video.frames, "),
        ("prior.optimisation.samples", "a recipe has no such key: it has name, "),
        ("train_decoder.network.levels.0.channels", "`train_decoder.network.levels` is a list: give all of it"),
    ],
)
def test_a_wrong_key_is_met_with_a_near_one_or_with_all(key: str, remedy: str) -> None:
    with pytest.raises(UserError, match=re.escape(remedy)):
        load_recipe("demo", [f"{key}=5"])


def test_levels_divide_a_crop() -> None:
    three = "train_sr_low.network.levels=[{channels: 8}, {channels: 8}, {channels: 8}]"
    with pytest.raises(RecipeError, match="do not divide a crop of 10 of 32 pixels") as caught:
        load_recipe("demo", ["train_sr_low.crop=0.3", three])
    assert {problem.key for problem in caught.value.problems} == {"train_sr_low.crop"}


def test_a_learned_cut_wants_a_probability_for_its_threshold() -> None:
    weights = "video_shards.shot_weights=shots.pth"
    for cut in ("1", "2.7"):
        with pytest.raises(RecipeError, match=r"`video_select.cut` is .* none of which is above 1: give 0.5\."):
            load_recipe("tiny", [weights, f"video_select.cut={cut}"])
    assert load_recipe("tiny", [weights, "video_select.cut=0.5"]).video_select.cut == 0.5


def test_an_unknown_architecture_is_met_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean ViT-L-14-CLIPA"):
        load_recipe("demo", ["clip.architecture=ViT-L-14-CLIPPA", "clip.pretrained=weights.pt"])
    with pytest.raises(RecipeError, match=r"that of the CLIP \(RN50\) is 1024: say 1024"):
        load_recipe("demo", RN50)


@pytest.mark.parametrize("number", [-1, math.nan, math.inf, 10**19, True, "many", [1], {"a": 1}])
def test_no_number_takes_what_is_none(number: object) -> None:
    """Of every number of the recipe. A learning rate may be any: a training that diverges says so."""
    tree, keys = copy.deepcopy(_read_tree("demo", ())), set()
    for value in values(load_recipe("demo")):
        if type(value.value) in (int, float) and not (number == 10**19 and value.key.endswith("learning_rate")):
            _assign(tree, value.key.split("."), number, "")
            keys.add(value.key)
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(tree, "demo")
    assert keys - {problem.key for problem in caught.value.problems} == set()


def test_all_mistakes_are_told_at_once() -> None:
    wrong = ["cascade.low_size=40", "cluster.attempts=true", "generate.cuont=3", "generate.decoder.steps=0",
             "image_download.threads=0", "clip.architecture=ViT-L-14"]  # fmt: skip
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", wrong)
    assert {override.partition("=")[0] for override in wrong} <= {problem.key for problem in caught.value.problems}
    assert "concurrent fetches of one shard" in str(caught.value), "the field's own comment says what it is"


def test_a_mistake_within_a_list_is_told_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("demo", ["train_decoder.network.levels=[{chanels: 3}]"])
    assert [problem.key.rpartition(".")[2] for problem in caught.value.problems] == ["chanels", "channels"]


def test_the_paper_s_clip_needs_its_weights() -> None:
    with pytest.raises(RecipeError, match=r"`clip.architecture` is 'ViT-L-14', but its weights are not named in"):
        load_recipe("paper", ["clip.pretrained=''"])


def test_tabs_and_alias_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("extends: tiny\ngenerate:\n\tcount: 3\n")
    with pytest.raises(UserError, match="a tab in line 3: YAML takes spaces only"):
        load_recipe(str(path))
    bomb = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 9))
    path.write_text(f"extends: tiny\nx0: &x0 [lol]\n{bomb}")
    with pytest.raises(UserError, match="its aliases stand for more than"):
        load_recipe(str(path))
    path.write_text("extends: tiny\ngenerate: &all {prior: *all}\n")
    with pytest.raises(UserError, match="its aliases stand for more than"):
        load_recipe(str(path))


def test_a_circle_of_other_spellings_is_one(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("extends: ./sub/../b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: ././a.yaml\n")
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize("text", ["seed: 010\n", "seed: 1:30\n", "train_decoder: {crop: 00.5}\n"])
def test_numbers_that_are_others_than_they_show_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(f"extends: tiny\n{text}")
    with pytest.raises(UserError, match="in line 2 means another number"):
        load_recipe(str(tmp_path / "my.yaml"))
    (tmp_path / "my.yaml").write_text("extends: tiny\nseed: 0\nvideo_shards: {max_seconds: 0.5e1}\n")
    assert load_recipe(str(tmp_path / "my.yaml")).video_shards.max_seconds == 5


@pytest.mark.parametrize("code", ["utf-16", "latin-1"])
def test_a_recipe_of_another_encoding_is_told_so(code: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes("extends: tiny\nabout: caf\xe9\n".encode(code))
    with pytest.raises(UserError, match="save it as UTF-8"):
        load_recipe(str(tmp_path / "my.yaml"))


def test_extends_is_relative_to_the_file_that_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "base.yaml").write_text("extends: demo\ngenerate: {count: 7}\n")
    (tmp_path / "a" / "child.yaml").write_text("extends: ../base.yaml\nseed: 3\n")
    monkeypatch.chdir(tmp_path / "a")
    assert load_recipe("child.yaml").generate.count == 7
    monkeypatch.chdir(tmp_path)
    assert load_recipe("a/child.yaml").generate.count == 7
    (tmp_path / "a" / "child.yaml").write_text("extends: base.yaml\n")
    with pytest.raises(UserError, match=r"No recipe 'a/base.yaml', which a/child.yaml extends"):
        load_recipe("a/child.yaml")
