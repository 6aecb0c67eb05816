"""What every call finds in the process that Ray runs it in."""

import os
import time

import pytest

from flows.engine.pool import ActorPool, TaskPool


def _threads(change_to: int) -> tuple[int, str, int]:
    """Returns torch's threads, what a later import would take, and the process; leaves other threads behind."""
    import torch

    found = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"], os.getpid()
    torch.set_num_threads(change_to)
    time.sleep(0.05)
    return found


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_call_has_the_threads_of_its_processors_whatever_ran_before(cpus: int) -> None:
    import ray

    before, after = TaskPool(_threads, "before", 3 - cpus), TaskPool(_threads, "after", cpus)
    ray.get([before.submit(str(i), 7) for i in range(4)])
    found = ray.get([after.submit(str(i), 7) for i in range(4)])
    assert {tuple(each[:2]) for each in found} == {(cpus, str(cpus))}
    actors = ActorPool(_threads, "actors", cpus, 0, slots=1, most=1)
    ray.get(actors.ready())
    assert ray.get(actors.submit("0", cpus))[0] == cpus
