"""`mav plan`: the paper's size, counted tables, given rates, and a word for what cannot be."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import plan as cli_plan
from flows.cli.plan import clips, image_rows
from flows.engine.store import Store
from flows.make_a_video import make_a_video
from mav.errors import UserError
from mav.recipes import ImageMetadata, Recipe, VideoShards
from mav.recipes.plan import RATES, StagePlan, plan_stages, with_rates
from mav.recipes.reader import load_recipe
from mav.storage import Artifact


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_plan, "MEASURED_ROWS", 2000)
    monkeypatch.setattr(cli_plan, "MEASURED_SECONDS", 0.05)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli_plan.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_papers_size() -> None:
    facts = json.loads(run("paper", "--json"))
    stages = {stage["stage"]: stage for stage in facts["stages"]}
    assert stages["image-metadata"]["rows_in"] == 2_300_000_000
    assert stages["image-download"]["shards"] == 230_000
    assert 50e12 < stages["image-download"]["bytes"] < 1e15
    assert all(stage["days"] > 0 for stage in facts["stages"])
    assert stages["image-screen"]["gpu_hours"] > 0 == stages["image-screen"]["cpu_hours"]
    assert {name: rate["origin"] for name, rate in facts["rates"].items() if rate["origin"] != "assumed"} == {
        "screened": "measured",
        "fetched": "measured",
        "encoded": "measured",
    }


def test_the_demo_is_estimated_from_its_own_clips() -> None:
    """240 clips of 64 pixels became 4.1 MB, and 1,100 pictures 5.3 MB, in half a minute of two cores."""
    facts = json.loads(run("demo", "--json"))
    stages = {stage["stage"]: stage for stage in facts["stages"]}
    assert 2e6 < stages["video-shards"]["bytes"] < 8e6
    assert 2.5e6 < stages["image-download"]["bytes"] < 1e7
    assert facts["rates"]["clip_bytes"]["origin"] == "measured"
    assert "<0.001" in run("demo")


def test_the_screen_tells_assumptions() -> None:
    shown = " ".join(run("paper", "--rate", "reached=0.5").split())
    assert "2,300,000,000" in shown
    assert "230,000" in shown
    assert all(origin in shown for origin in ("given", "measured", "assumed"))


def test_rows_are_counted_where_tables_are(small_recipe: Recipe, tmp_path: Path) -> None:
    for name, rows in (("a", 7), ("b", 5)):
        pq.write_table(pa.table({"URL": ["u"] * rows, "TEXT": ["t"] * rows}), tmp_path / f"rows-{name}.parquet")
    (tmp_path / "clips.csv").write_text('videoid,url,name\n1,u,"a caption\nof two lines"\n2,u,b\n')
    pq.write_table(pa.table({"url": ["u", "v", "w"]}), tmp_path / "clips.parquet")
    (tmp_path / "clips.jsonl").write_text('{"video_id": "a", "url": "u", "clip": []}\n')
    recipe = dataclasses.replace(
        small_recipe,
        image_metadata=ImageMetadata(sources=(str(tmp_path / "rows-*.parquet"),)),
        video_shards=VideoShards(sources=(str(tmp_path / "clips.*"),)),
    )
    assert image_rows(recipe) == 12
    assert clips(recipe) == 2 + 3 + 3, "rows of tables, three spans of each of HD-VILA's videos"
    with pytest.raises(UserError, match="No file matches"):
        image_rows(dataclasses.replace(recipe, image_metadata=ImageMetadata(sources=(str(tmp_path / "*.nothing"),))))


def test_given_rates_and_wrong_ones() -> None:
    rates = with_rates({"fetched": 10.0}, {"fetched": 99.0, "screened": 5.0})
    assert (rates["fetched"].value, rates["fetched"].origin) == (10.0, "given")
    assert (rates["screened"].value, rates["screened"].origin) == (5.0, "measured")
    for wrong in ("speed=3", "fetched=fast", "fetched=-1", "fetched=nan", "fetched=inf", "fetched"):
        with pytest.raises(UserError, match="NAME=VALUE"):
            run("demo", "--rate", wrong)


def test_days_are_of_what_is_scarcest() -> None:
    recipe = load_recipe("paper")
    slow_line = plan_stages(recipe, with_rates({"bandwidth": 1e6}, {}), 10**9, 0)[1]
    slow_cores = plan_stages(recipe, with_rates({"fetched": 0.1}, {}), 10**9, 0)[1]
    kept = 10**9 * RATES["kept"].value
    assert slow_line.days == pytest.approx(
        kept * RATES["reached"].value * RATES["source_bytes"].value / (64 * 1e6) / 86_400
    )
    assert slow_cores.days == pytest.approx(kept / 0.1 / (64 * 8) / 86_400)
    assert slow_cores.cpu_hours == pytest.approx(kept / 0.1 / 3600)


def test_selections_are_planned_by_what_they_keep_and_compare() -> None:
    def planned(*overrides: str) -> dict[str, StagePlan]:
        stages = plan_stages(
            load_recipe("paper", overrides), with_rates({"compared": 10.0, "chosen": 0.25}, {}), 10**6, 800
        )
        return {stage.stage: stage for stage in stages}

    off, on = planned(), planned("image_select.near_duplicate=0.95")
    rows = off["image-embed"].rows_out
    assert off["image-select"].rows_in == off["image-select"].rows_out == rows
    assert on["image-select"].rows_out == pytest.approx(rows * RATES["distinct"].value, abs=1)
    assert on["image-select"].cpu_hours == pytest.approx(rows / 10 / 3600, rel=1e-5)
    assert off["image-select"].cpu_hours < on["image-select"].cpu_hours / 100
    clips = on["video-shards"].rows_out
    assert (on["video-select"].rows_in, on["video-select"].rows_out) == (clips, clips // 4)


def test_shares_of_stages_that_are_done_are_known(tmp_path: Path) -> None:
    graph, store = make_a_video(load_recipe("tiny")), Store(str(tmp_path))
    for stage, rows in {"image-metadata": (200, 50), "image-download": (50, 40), "video-shards": (0, 0)}.items():
        node = graph.node(stage)
        counts = {"rows_in": rows[0], "rows_out": rows[1], "dropped": {}, "failed": {"dns": rows[0] - rows[1]}}
        Artifact.publish(
            store.artifact(node), stage=stage, version=1, fingerprint=node.fingerprint, recipe="tiny", config={},
            inputs={}, counts=counts, metrics={}, seconds=1.0, finished="", software={},
        )  # fmt: skip
    rates = json.loads(run("tiny", "--json", "--runs", str(tmp_path), "--rate", "reached=0.7"))["rates"]
    found = {name: (rates[name]["value"], rates[name]["origin"]) for name in ("kept", "reached", "clip_reached")}
    assert found == {"kept": (0.25, "measured"), "reached": (0.7, "given"), "clip_reached": (0.8, "assumed")}
