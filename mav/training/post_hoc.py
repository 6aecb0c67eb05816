"""Averages of the weights whose width is chosen after the training (Karras et al. 2024, section 3, arXiv 2312.02696).

A power-function average after T steps weighs the weights of step t by t^gamma. Its width, the standard deviation of
that profile as a share of T, is constant during training, while an exponential average forgets at a fixed rate. Two
such averages are saved at some moments of the training. The average of any other width is nearly a weighted sum of the
saved ones, and the coefficients are a small least-squares problem. The average of the lowest loss on held-out samples
is exported.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mav.errors import UserError
from mav.recipes import Optimisation
from mav.training.checkpoint import Checkpoints, Tensors
from mav.training.ema import Ema, local_shards

KEPT = (0.05, 0.10)  # widths that are saved
MOMENTS = 16  # times in the training at which they are: enough for the widths below to be within 4 % of their profiles
OFFERED = (0.03, 0.04, 0.05, 0.065, 0.08, 0.10, 0.125, 0.15, 0.20)
WIDEST = 12**-0.5  # of an average that weighs all steps alike

Moment = tuple[float, int]  # an average's width, and the number of steps after which it was saved


def exponent(width: float) -> float:
    """gamma of a relative width in (0, 0.288]: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), by bisection."""
    if not 0 < width <= WIDEST:
        raise ValueError(f"the relative width of an average is above 0 and at most {WIDEST:.3f}, not {width}")
    low, high = 0.0, 1 / width  # because width < 1 / (gamma + 2)
    for _ in range(80):
        middle = (low + high) / 2
        wider = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
        low, high = (middle, high) if wider else (low, middle)
    return (low + high) / 2


def power_decay(width: float) -> Callable[[int], float]:
    """The decay of the n-th step that makes a running average a power-function one: (1 - 1/n)^(gamma + 1)."""
    power = exponent(width) + 1
    return lambda steps: float((1 - 1 / steps) ** power)


def coefficients(kept: Sequence[Moment], wanted: Moment) -> Tensor:
    """The factors, float64 (kept,), with which the sum of the saved averages is closest to the wanted one.

    They are divided by their sum, as in the paper's appendix C.2: with few moments the least-squares solution has a sum
    of 0.67 to 1.03, by which a weight that never changed would be scaled.
    """

    def products(some: Sequence[Moment], others: Sequence[Moment]) -> Tensor:
        """Scalar products of profiles (g + 1) t^g / T^(g + 1), as integrals over the steps t that both cover."""
        one = torch.tensor([[exponent(width), steps] for width, steps in some], dtype=torch.float64)[:, None]
        two = torch.tensor([[exponent(width), steps] for width, steps in others], dtype=torch.float64)[None]
        (a, s), (b, t) = one.unbind(-1), two.unbind(-1)
        both = torch.minimum(s, t)
        return (a + 1) * (b + 1) / (a + b + 1) * (both / s) ** a * (both / t) ** b / torch.maximum(s, t)

    solution = torch.linalg.lstsq(products(kept, kept), products(kept, [wanted]), driver="gelsd").solution[:, 0]
    return solution / solution.sum()


class PostHoc:
    """The power-function averages of a training, running and saved. Every rank calls every method."""

    def __init__(
        self, network: nn.Module, trained: Sequence[nn.Parameter], o: Optimisation, checkpoints: Checkpoints
    ) -> None:
        """trained: the parameters to average. checkpoints: where the averages are saved; none may be removed."""
        names = {id(p): name for name, p in network.named_parameters()}
        self.averages = {width: Ema(trained, power_decay(width)) for width in KEPT}
        self.tensors: Tensors = {
            f"average.{width}.{names[id(p)]}": shadow
            for width, average in self.averages.items()
            for p, shadow in zip(trained, average.shadows, strict=True)
        }
        self.o, self.checkpoints = o, checkpoints

    def update(self, steps: int) -> None:
        """Updates both averages after optimiser step number `steps`."""
        for average in self.averages.values():
            average.update(steps)

    def keep(self, samples: int) -> None:
        """Saves the averages, if the training's checkpoint at `samples` is one of the moments and they are not saved.

        What was saved before is whole when this returns. So a run that continues from a checkpoint lacks at most the
        averages of that one.
        """
        self.checkpoints.wait()
        o = self.o
        planned = due(samples, o.checkpoint_every, o.batch_size)  # unlike the checkpoint of a run that was asked to end
        moment = planned and due(samples, max(1, o.samples // MOMENTS), o.checkpoint_every)
        if (moment or samples >= o.samples) and samples not in self.checkpoints.finished():
            self.checkpoints.save(samples, self.tensors, {})

    def choose(self, into: Sequence[Tensor], loss: Callable[[], float]) -> dict[float, float]:
        """Fills tensors, in the parameters' order, with the average of the lowest loss. Returns the loss by width.

        `loss` is called once for each width, when the tensors hold its average.
        """
        self.checkpoints.wait()
        for samples in self.checkpoints.finished():
            if not self.checkpoints.try_load(samples, self.tensors):
                self.checkpoints.tell(f"the averages saved after {samples} samples are damaged and left out.")
                self.checkpoints.forget(samples)
        if not self.checkpoints.finished():
            raise UserError(f"All averages in {self.checkpoints.work.url} are damaged: rerun the stage.")
        losses = {}
        for width in OFFERED:
            self._rebuild(width, into)
            losses[width] = loss()
        self._rebuild(min(losses, key=losses.__getitem__), into)
        return losses

    @torch.no_grad()
    def _rebuild(self, width: float, into: Sequence[Tensor]) -> None:
        """Computes the final average of a width. It takes no memory: saved averages are read over the running ones."""
        steps = {samples: samples // self.o.batch_size for samples in self.checkpoints.finished()}
        kept = [(each, count) for count in steps.values() for each in KEPT]
        factors = iter(coefficients(kept, (width, max(steps.values()))).tolist())
        target = local_shards(into)
        torch._foreach_zero_(target)
        for samples in steps:
            self.checkpoints.load(samples, self.tensors)
            for average in self.averages.values():
                torch._foreach_add_(target, local_shards(average.shadows), alpha=next(factors))


def due(samples: int, every: int, step: int) -> bool:
    """True once in every `every` samples, for steps of `step`."""
    return samples // every != (samples - step) // every
