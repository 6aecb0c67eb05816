"""The deployable flows `make-a-video/whole-graph` and `stage/NAME`, and `infra/prefect.yaml`, which deploys them.

    python -m flows.deploy > infra/prefect.yaml  # after a change of the graph; a test compares
    prefect --no-prompt deploy --prefect-file infra/prefect.yaml --all

A parameter's type and description become its field in the Prefect UI's form. All deployments go to one work pool, whose
type says where flows run: in processes of a worker's machine, or in pods.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from prefect import flow
from pydantic import Field

from flows.engine.stage import STAGES
from flows.engine.store import recipe_owner
from flows.make_a_video import make_a_video, run_pipeline
from flows.services.environment import configure_environment
from mav.errors import refuse_secret
from mav.recipes.reader import load_recipe

WORK_POOL = "make-a-video"
WHOLE = "The whole Make-A-Video pipeline, from raw tables and clips to a report; what is done already is left alone."

NAMES = tuple(make_a_video(load_recipe("demo")).nodes)  # in the graph's order

if TYPE_CHECKING:
    StageName = str
    LastStage = str
else:
    StageName = Literal[NAMES]
    LastStage = Literal[("", *NAMES)]
Override = Annotated[str, Field(pattern=r"^[\w.-]+=")]


@flow(name="make-a-video", description=WHOLE, flow_run_name="{recipe}", validate_parameters=False)
def make_a_video_flow(
    recipe: str = "demo",
    runs: str = "runs",
    until: LastStage = "",
    only: Sequence[StageName] = (),
    fresh: Sequence[StageName] = (),
    overrides: Sequence[Override] = (),
) -> list[str]:
    """Builds what is missing of a recipe within this flow run.

    Args:
        recipe: A shipped recipe, such as demo or paper, or the path of a YAML file.
        runs: Where artifacts are: a folder, or an fsspec URL such as s3://bucket/runs.
        until: Stop when this stage is done; empty: build everything.
        only: Build just these, from inputs that are there; empty: whatever is needed.
        fresh: Build these anew, even if they are done.
        overrides: Recipe values to change, each as key=value, such as generate.count=4.
    """
    configure_environment()
    refuse_secret(runs, "`runs`")
    chosen, owner = load_recipe(recipe, overrides), recipe_owner(recipe)
    return sorted(run_pipeline(chosen, runs, owner=owner, until=until, only=only, fresh=fresh))


def stage_flow(name: str, about: str) -> Any:
    """Returns the flow of one stage, which takes its inputs from storage and fails when one is missing or stale."""

    @flow(name="stage", description=about, flow_run_name=f"{name} of {{recipe}}", validate_parameters=False)
    def one_stage(
        recipe: str = "demo", runs: str = "runs", fresh: bool = False, overrides: Sequence[Override] = ()
    ) -> list[str]:
        """Builds one stage within this flow run.

        Args:
            recipe: A shipped recipe, such as demo or paper, or the path of a YAML file.
            runs: Where artifacts are: a folder, or an fsspec URL such as s3://bucket/runs.
            fresh: Build it anew, even if it is done.
            overrides: Recipe values to change, each as key=value, such as generate.count=4.
        """
        configure_environment()
        refuse_secret(runs, "`runs`")
        chosen, owner = load_recipe(recipe, overrides), recipe_owner(recipe)
        return sorted(run_pipeline(chosen, runs, owner=owner, only=[name], fresh=[name] if fresh else []))

    return one_stage


STAGE_FLOWS = {name.replace("-", "_"): stage_flow(name, STAGES[name].about) for name in NAMES}


def __getattr__(name: str) -> Any:
    """Finds a stage's flow under the name in its entrypoint, such as `flows.deploy.train_prior`."""
    if name in STAGE_FLOWS:
        return STAGE_FLOWS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def deployments() -> list[dict[str, Any]]:
    """Returns the entries of `prefect.yaml`: one for the graph and one for each stage."""
    whole = {
        "name": "whole-graph",
        "entrypoint": f"{__name__}.make_a_video_flow",
        "description": WHOLE,
        "tags": ["all"],
    }
    entries: list[dict[str, Any]] = [whole]
    for name, variable in zip(NAMES, STAGE_FLOWS, strict=True):
        about, tags = STAGES[name].about, STAGES[name].tags
        entries.append({"name": name, "entrypoint": f"{__name__}.{variable}", "description": about, "tags": tags})
    return [entry | {"work_pool": {"name": WORK_POOL}, "schedules": []} for entry in entries]


def prefect_yaml() -> str:
    """Returns the text of `infra/prefect.yaml`."""
    head = "# Written by `python -m flows.deploy > infra/prefect.yaml`. See infra/README.md for how to deploy it.\n"
    body = {"name": "make-a-video-system", "build": None, "push": None, "pull": None, "deployments": deployments()}
    return head + yaml.safe_dump(body, sort_keys=False, width=120)


if __name__ == "__main__":
    from flows import deploy  # under its own name, which the entrypoints carry

    sys.stdout.write(deploy.prefect_yaml())
