"""Deployments: the file in infra/ is the graph, every parameter is a field with a description, and each entry loads."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows import deploy
from flows.make_a_video import make_a_video
from mav.recipes.reader import load_recipe

FILE = Path(__file__).parents[2] / "infra" / "prefect.yaml"


@pytest.fixture(scope="module")
def entries() -> dict[str, dict[str, Any]]:
    """The file's deployments by entrypoint."""
    return {entry["entrypoint"]: entry for entry in yaml.safe_load(FILE.read_text())["deployments"]}


def test_the_file_is_what_the_graph_says() -> None:
    assert FILE.read_text() == deploy.prefect_yaml(), "write it anew: python -m flows.deploy > infra/prefect.yaml"


def test_the_graph_and_each_stage_have_a_deployment_that_loads(entries: dict[str, dict[str, Any]]) -> None:
    flows = {entrypoint: load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False) for entrypoint in entries}
    names = {f"{flows[entrypoint].name}/{entry['name']}" for entrypoint, entry in entries.items()}
    assert names == {"make-a-video/whole-graph", *(f"stage/{name}" for name in make_a_video(load_recipe("demo")).nodes)}
    for entrypoint, entry in entries.items():
        assert entry["schedules"] == []
        assert entry["work_pool"] == {"name": "make-a-video"}
        assert entry["tags"]
        assert flows[entrypoint].description == entry["description"]


def test_tags_say_what_a_stage_belongs_to_and_what_it_needs(entries: dict[str, dict[str, Any]]) -> None:
    assert entries["flows.deploy.train_prior"]["tags"] == ["training", "gpu"]
    assert entries["flows.deploy.video_shards"]["tags"] == ["videos"]


def test_every_parameter_is_a_field_of_the_form() -> None:
    whole = parameter_schema(deploy.make_a_video_flow).properties
    names = list(make_a_video(load_recipe("demo")).nodes)
    assert list(whole) == ["recipe", "runs", "until", "only", "fresh", "overrides"]
    assert whole["until"]["enum"] == ["", *names]
    assert whole["only"]["items"]["enum"] == whole["fresh"]["items"]["enum"] == names
    stage = parameter_schema(deploy.train_prior).properties
    assert list(stage) == ["recipe", "runs", "fresh", "overrides"]
    assert stage["fresh"]["type"] == "boolean"
    for schema in (whole, stage):
        assert all(field["description"] for field in schema.values())
        assert schema["overrides"]["items"]["pattern"] == r"^[\w.-]+="
