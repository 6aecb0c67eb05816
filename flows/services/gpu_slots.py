"""GPU slots: how many GPU stages may run at once, over all runs on one Prefect server."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import PrefectException

LIMIT = "make-a-video-gpu"  # the name of Prefect's global concurrency limit
SLOT_SECONDS = 60.0  # a flow that was killed gives its slot back after this time
SERVER_AWAY = (httpx.HTTPError, PrefectException, ConcurrencySlotAcquisitionError)


@contextmanager
def gpu_slot(slots: int, waits: Callable[[], None], server_away: Callable[[], None]) -> Iterator[None]:
    """Holds one of the `slots` while the block runs, once one is free.

    `waits` is called before every attempt and may raise; `server_away` is called once when the server does not answer.
    A server that does not answer is waited for, and one that goes away while the slot is held stops nothing.
    """
    reported = False
    with ExitStack() as held:
        while True:
            waits()
            slot = concurrency(
                LIMIT, timeout_seconds=5, lease_duration=SLOT_SECONDS, strict=True, raise_on_lease_renewal_failure=False
            )
            try:
                with get_client(sync_client=True) as client:
                    client.upsert_global_concurrency_limit_by_name(LIMIT, slots)
                held.enter_context(slot)
                break
            except TimeoutError:
                continue
            except SERVER_AWAY:
                if not reported:
                    server_away()
                reported = True
                time.sleep(1.0)
        try:
            yield
        finally:  # what ended the block says more than a slot that cannot be given back
            with suppress(*SERVER_AWAY):
                held.close()
