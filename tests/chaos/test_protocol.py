"""Stages and trainings under thousands of random fault schedules, in process: files, markers, ledger, manifest, lease,
checkpoints, two writers on one or two machines.

The file system is a store in memory whose calls fail (`fallible`). In the middle of a call another writer may run to
its end, whatever that is, and on another machine it takes over who is silent: so two writers interleave without
threads, and every schedule can be repeated by its seed. MAV_SCHEDULES says how many there are.
"""

from collections.abc import Iterator

import pytest
from protocol import SCHEDULES, TRAININGS, Account, in_process, stage_under, table, training_under

from mav.recipes import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    with in_process():
        yield


def judge(account: Account, least: int) -> None:
    print(table(account))
    assert account.problems == []
    assert (account.lost, account.doubled, account.differing, account.late) == (0, 0, 0, 0)
    assert account.struck.total() >= least
    assert len(account.struck) == 9, "every kind of fault struck"


@pytest.mark.slow
def test_a_stage_under_any_schedule_of_faults_ends_in_the_same_bytes(small_recipe: Recipe) -> None:
    account = Account()
    for seed in range(SCHEDULES):
        stage_under(seed, small_recipe, account)
    judge(account, least=SCHEDULES)


def test_a_training_under_any_schedule_of_faults_ends_in_the_same_weights() -> None:
    account = Account()
    for seed in range(TRAININGS):
        training_under(seed, account)
    judge(account, least=TRAININGS)
