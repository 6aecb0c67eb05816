"""Builds a graph within a Prefect flow run: one task for each stage, never one for each shard; shards are Ray's."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

from flows.engine.build import build
from flows.engine.function import save_seconds
from flows.engine.jobs import build_on_cluster
from flows.engine.run import Run
from flows.engine.stage import Graph, Node
from flows.services.ray_cluster import job_server
from mav.errors import UserError
from mav.storage import Artifact, Folder

# Shows a stage in the Prefect UI while it is built: called with the stage's name, its description and its work folder,
# it yields a function that is called with the finished artifact.
Shown = Callable[[str, str, Folder], AbstractContextManager[Callable[[Artifact], None]]]


def execute(graph: Graph, run: Run, wanted: Iterable[Node], fresh: Iterable[str], shown: Shown) -> dict[str, Artifact]:
    """Builds the wanted stages in order as tasks of the present Prefect flow run, independent ones at the same time.

    Of several stages that are ready, the one with the longest path to an end starts first. A failed stage stops only
    the stages that need it; the first failure is raised when everything else is done. `fresh` stages are built again.
    """
    from prefect.futures import PrefectFuture, as_completed

    waiting = list(wanted)
    names, again = {node.name for node in waiting}, set(fresh)
    running: dict[PrefectFuture[Any], Node] = {}
    futures: dict[str, PrefectFuture[Any]] = {}
    built: dict[str, Artifact] = {}
    failed: dict[str, BaseException] = {}
    while waiting or running:
        # Start what is ready, as far as `parallel_stages` allows.
        waiting = [node for node in waiting if not any(up.name in failed for up in node.upstream())]
        ready = [node for node in waiting if all(up.name in built or up.name not in names for up in node.inputs)]
        ready.sort(key=lambda node: -graph.length_after(node))
        for node in ready[: max(0, run.recipe.cluster.parallel_stages - len(running))]:
            waiting.remove(node)
            after = [futures[up.name] for up in node.inputs if up.name in futures]
            futures[node.name] = _task(node, run, node.name in again, shown).submit(wait_for=after)
            running[futures[node.name]] = node
        if not running:
            break

        # Wait for a stage to end. On Ctrl-C or a signal, running stages get the time to save before Ray is shut down.
        try:
            future: PrefectFuture[Any] = next(iter(as_completed(list(running))))
        except BaseException:
            run.stopping.set()
            until = time.monotonic() + max(save_seconds(run.store.work(node)) for node in running.values())
            for future in running:
                with suppress(Exception):
                    future.wait(max(until - time.monotonic(), 0.0))
            raise

        # The artifact in storage decides, not the state that Prefect reports.
        node = running.pop(future)
        try:
            future.result()
            artifact = run.store.find(node)
            if artifact is None:
                raise UserError(
                    f"{node.name} ended without an artifact at {run.store.artifact(node).url}: run it again."
                )
            built[node.name] = artifact
        except Exception as error:
            failed[node.name] = error
    if failed:
        raise next(iter(failed.values()))
    return built


def _task(node: Node, run: Run, fresh: bool, shown: Shown) -> Any:
    """Returns the Prefect task of a stage. Prefect caches nothing: `build` finds an artifact by its fingerprint."""
    from prefect import task

    from flows.services.gpu_slots import gpu_slot

    make = build_on_cluster if job_server() else build
    again = [fresh]

    def server_away() -> None:
        run.terminal.say("waits for the Prefect server, which hands out GPU slots", node.name)

    @task(
        name=node.name,
        description=node.stage.about,
        task_run_name=node.name,  # it has no tags: a task run with tags needs a slot of the server, and fails without
        retries=1,
        retry_delay_seconds=2,
        retry_condition_fn=_worth_another_try,
    )
    def stage_task() -> dict[str, str]:
        with ExitStack() as around:
            if node.stage.gpu and run.recipe.cluster.gpus_per_worker:
                around.enter_context(gpu_slot(run.recipe.cluster.gpu_stages, run.require_running, server_away))
            show = around.enter_context(shown(node.name, node.stage.about, run.store.work(node)))
            artifact = make(node, run, fresh=bool(again) and again.pop())  # a retry goes on from what is finished
        show(artifact)
        return {"fingerprint": node.fingerprint, "url": artifact.folder.url}

    return stage_task


def _worth_another_try(task: Any, run: Any, state: Any) -> bool:
    """Says whether a failure may pass: a lost worker or node may, a user's error does not."""
    try:
        state.result()
    except (UserError, ValueError, TypeError, AssertionError):
        return False
    except Exception:
        return True
    return False
