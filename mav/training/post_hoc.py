"""Choosing how long weights are averaged after they were trained (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of
Diffusion Models", section 3).

A power-function average after T steps weighs the weights of step t by t^gamma. Its width, the standard deviation of that profile as a
share of T, stays as it is while training goes on, where an exponential average forgets at a fixed rate. Two of them, kept at some moments
of the training, span the others well: the average of any width is a sum of what was kept, whose coefficients are a small least-squares
problem. The one of the lowest loss on held-out samples is handed on.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mav.recipes import Optimisation
from mav.training.checkpoint import Checkpoints, Tensors
from mav.training.ema import Ema, local

KEPT = (0.05, 0.10)  # widths that are kept
MOMENTS = (
    16  # of the training at which they are kept: enough for the widths below to come out within 4 % of their profiles
)
OFFERED = (0.03, 0.04, 0.05, 0.065, 0.08, 0.10, 0.125, 0.15, 0.20)
WIDEST = 12**-0.5  # of an average that weighs all steps alike

Moment = tuple[float, int]  # an average's width, and the steps it was taken after


def exponent(width: float) -> float:
    """gamma of a relative width: width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), which falls as gamma grows. Widths in (0, 0.288]."""
    if not 0 < width <= WIDEST:
        raise ValueError(f"the relative width of an average is above 0 and at most {WIDEST:.3f}, not {width}")
    low, high = 0.0, 1 / width  # width < 1 / (gamma + 2)
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
    """float64 (kept,): what the kept averages are multiplied by so that their sum is closest to the wanted one."""

    def products(some: Sequence[Moment], others: Sequence[Moment]) -> Tensor:
        """Of the weights as functions of the step: the integral over what both cover of (g + 1) t^g / T^(g + 1) times the other's."""
        one = torch.tensor([[exponent(width), steps] for width, steps in some], dtype=torch.float64)[:, None]
        two = torch.tensor([[exponent(width), steps] for width, steps in others], dtype=torch.float64)[None]
        (a, s), (b, t) = one.unbind(-1), two.unbind(-1)
        both = torch.minimum(s, t)
        return (a + 1) * (b + 1) / (a + b + 1) * (both / s) ** a * (both / t) ** b / torch.maximum(s, t)

    return torch.linalg.lstsq(products(kept, kept), products(kept, [wanted]), driver="gelsd").solution[:, 0]


class PostHoc:
    """The power-function averages of a training, and what was kept of them in `work`. Every rank calls every method."""

    def __init__(
        self, network: nn.Module, moving: Sequence[nn.Parameter], o: Optimisation, checkpoints: Checkpoints
    ) -> None:
        """moving: the parameters to average. checkpoints: where averages are kept, all of them."""
        names = {id(p): name for name, p in network.named_parameters()}
        self.averages = {width: Ema(moving, power_decay(width)) for width in KEPT}
        self.tensors: Tensors = {
            f"average.{width}.{names[id(p)]}": shadow
            for width, average in self.averages.items()
            for p, shadow in zip(moving, average.shadows, strict=True)
        }
        self.o, self.checkpoints = o, checkpoints

    def update(self, steps: int) -> None:
        for average in self.averages.values():
            average.update(steps)

    def keep(self, samples: int) -> None:
        """Keeps the averages if the training's checkpoint of so many samples is one of the moments and they are not there yet.

        Whatever was kept before is whole when this returns. So a run that goes on from a checkpoint lacks at most what belongs to it.
        """
        self.checkpoints.wait()
        o = self.o
        planned = due(samples, o.checkpoint_every, o.batch_size)  # unlike the checkpoint of a run that was told to end
        moment = planned and due(samples, max(1, o.samples // MOMENTS), o.checkpoint_every)
        if (moment or samples >= o.samples) and samples not in self.checkpoints.finished():
            self.checkpoints.save(samples, self.tensors, {})

    def choose(self, into: Sequence[Tensor], loss: Callable[[], float]) -> dict[float, float]:
        """Fills tensors, in the parameters' order, with the average of the lowest loss, asked when they hold one. Returns loss by width."""
        self.checkpoints.wait()
        losses = {}
        for width in OFFERED:
            self._rebuild(width, into)
            losses[width] = loss()
        self._rebuild(min(losses, key=losses.__getitem__), into)
        return losses

    @torch.no_grad()
    def _rebuild(self, width: float, into: Sequence[Tensor]) -> None:
        """The average of this width at the end. Memory is that of training: the running averages give their place to what was kept."""
        steps = {samples: samples // self.o.batch_size for samples in self.checkpoints.finished()}
        kept = [(each, count) for count in steps.values() for each in KEPT]
        factors = iter(coefficients(kept, (width, max(steps.values()))).tolist())
        target = [local(tensor) for tensor in into]
        torch._foreach_zero_(target)
        for samples in steps:
            self.checkpoints.load(samples, self.tensors)
            for average in self.averages.values():
                torch._foreach_add_(target, [local(shadow) for shadow in average.shadows], alpha=next(factors))


def due(samples: int, every: int, step: int) -> bool:
    """True once in every `every` samples, for steps of `step`."""
    return samples // every != (samples - step) // every
