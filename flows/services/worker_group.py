"""How Ray Train starts and ends the workers of a training: those that are begun again as more or fewer save first."""

from collections.abc import Callable
from typing import Any


def torch_config(backend: str, timeout: float, save_seconds: Callable[[], float]) -> Any:
    """Returns Ray Train's way of starting torch.distributed, which also lets workers save before they are ended.

    timeout: seconds after which a worker that waits for another gives up, so that a lost one ends all. save_seconds:
    says how long they may take to save.

    A worker trains in a thread, where no signal can be caught, so it is done where Ray Train sets the workers up.
    """
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    from mav.training.process.preemption import catch_sigterm, end_training

    class Saving(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            super().on_start(worker_group, backend_config)
            worker_group.execute(catch_sigterm)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            """Also called when Ray Train takes new workers in, by ending the present ones and starting all again."""
            status = worker_group.get_latest_poll_status()
            if status and not status.errors and not status.finished:
                worker_group.execute(end_training, save_seconds())
            super().on_shutdown(worker_group, backend_config)

    class SavingConfig(TorchConfig):
        backend_cls = Saving

    return SavingConfig(backend=backend, timeout_s=int(timeout))
