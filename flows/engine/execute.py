"""TODO-DOC flows/engine/execute.py"""

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from flows.engine.build import build
from flows.engine.remote import SAVE_SECONDS
from flows.engine.run import Run
from flows.engine.stage import Graph, Node
from flows.services.ray_cluster import job_server
from mav.errors import UserError
from mav.recipes import digest
from mav.storage import Artifact

GPU_LIMIT = "make-a-video-gpu"  # the name of Prefect's global concurrency limit
SLOT_SECONDS = 60.0


def execute(plan: Graph, run: Run, wanted: Iterable[Node], fresh: Iterable[str] = ()) -> dict[str, Artifact]:
    """Builds the wanted nodes in order as tasks of the present Prefect flow run, independent ones side by side.

    Of several ready stages the one with the longest way to the end starts first. A failed stage stops what needs it, nothing
    else; the first failure is raised when all that could be done is done.
    """
    from prefect.futures import PrefectFuture, as_completed

    waiting = list(wanted)
    names, again = {node.name for node in waiting}, set(fresh)
    running: dict[PrefectFuture[Any], Node] = {}
    futures: dict[str, PrefectFuture[Any]] = {}
    built: dict[str, Artifact] = {}
    failed: dict[str, BaseException] = {}
    while waiting or running:
        waiting = [node for node in waiting if not any(up.name in failed for up in node.upstream())]
        ready = [node for node in waiting if all(up.name in built or up.name not in names for up in node.inputs)]
        ready.sort(key=lambda node: -plan.length_after(node))
        for node in ready[: max(0, run.recipe.cluster.parallel_stages - len(running))]:
            waiting.remove(node)
            after = [futures[up.name] for up in node.inputs if up.name in futures]
            futures[node.name] = _task(node, run, node.name in again).submit(wait_for=after)
            running[futures[node.name]] = node
        if not running:
            break
        try:
            future: PrefectFuture[Any] = next(iter(as_completed(list(running))))
        except BaseException:  # Ctrl-C, or a signal: a stage whose Ray goes away under it must not start another
            run.stopping.set()
            until = time.monotonic() + SAVE_SECONDS
            for future in running:  # Ray goes away behind this: a training saves first
                with suppress(Exception):
                    future.wait(max(until - time.monotonic(), 0.0))
            raise
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


def _task(node: Node, run: Run, fresh: bool) -> Any:
    """The Prefect task of a node. Its cache key is our fingerprint, and is believed only while the artifact is there."""
    from prefect import task

    from flows.engine.jobs import build_on_cluster
    from flows.services.prefect_artifacts import Bar, show

    present = not fresh and run.store.find(node) is not None
    make = build_on_cluster if job_server() else build
    anew = [fresh]
    key = f"{node.name}-{digest([node.fingerprint, run.store.root.url])}"

    @task(
        name=node.name,
        description=node.stage.about,
        task_run_name=node.name,  # without tags: each task run with some asks the server for a slot, and fails when it is away
        persist_result=True,
        cache_key_fn=lambda context, parameters: key,
        refresh_cache=not present,
        retries=1,
        retry_delay_seconds=2,
        retry_condition_fn=_worth_another_try,
    )
    def stage_task() -> dict[str, str]:
        with gpu_slot(node, run), Bar(node, run):
            artifact = make(
                node, run, fresh=bool(anew) and anew.pop()
            )  # a retry goes on from what the first try finished
        show(node, artifact)
        return {"fingerprint": node.fingerprint, "url": artifact.folder.url}

    return stage_task


@contextmanager
def gpu_slot(node: Node, run: Run) -> Iterator[None]:
    """One of the `cluster.gpu_stages` slots that all runs on a Prefect server share; free for a stage that asks for no GPU.

    A server that is away is waited for; one that goes away while the slot is held stops nothing. A flow that was killed gives its slot
    back after `SLOT_SECONDS`.
    """
    if not (node.stage.gpu and run.recipe.cluster.gpus_per_worker):
        yield
        return
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency

    from flows.services.prefect_artifacts import AWAY

    told = False
    with ExitStack() as held:
        while True:
            run.go_on()
            slot = concurrency(
                GPU_LIMIT,
                timeout_seconds=5,
                lease_duration=SLOT_SECONDS,
                strict=True,
                raise_on_lease_renewal_failure=False,
            )
            try:
                with get_client(sync_client=True) as client:
                    client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, run.recipe.cluster.gpu_stages)
                held.enter_context(slot)
                break
            except TimeoutError:
                continue
            except AWAY:
                if not told:
                    told = True
                    run.screen.say(f"  {node.name:<22} waits for the Prefect server, which hands out GPU slots")
                time.sleep(1.0)
        yield
        with suppress(*AWAY):
            held.close()


def _worth_another_try(task: Any, run: Any, state: Any) -> bool:
    """A user's error stays one however often it is tried; a lost worker or node may not."""
    try:
        state.result()
    except (UserError, ValueError, TypeError, AssertionError):
        return False
    except Exception:
        return True
    return False
