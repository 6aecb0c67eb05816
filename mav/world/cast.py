"""What a demo world shows: whom its scenes have in them, which classes there are, and how they are described."""

from dataclasses import replace
from typing import Protocol

import numpy as np

from mav.recipes import World
from mav.world.digits import DigitCast
from mav.world.drawing import SENTENCES, Scene, random_scene

PLAIN = 2  # the number of the sentence of a cast that says what there is and no more


class Cast(Protocol):
    """Draws the scenes of a world; all of each comes from the generator that is given.

    kinds: (colour, shape) of each class, in the order of the evaluation sets; the colour of a digit is None. sentences:
    how a scene is described, with {colour}, {shape} and {ground}.
    """

    kinds: tuple[tuple[str | None, str], ...]
    sentences: tuple[str, ...]

    def scene(self, rng: np.random.Generator) -> Scene:
        """Returns a scene drawn uniformly, to train on."""

    def held_out(self, rng: np.random.Generator, index: int) -> Scene:
        """Returns a scene of an evaluation set: the classes in turn, all else drawn."""

    def another(self, rng: np.random.Generator, first: Scene) -> Scene:
        """Returns a scene to train on whose object differs from the first one's, where the world has others."""


class ShapeCast:
    """Coloured shapes over textured grounds."""

    sentences = SENTENCES

    def __init__(self, world: World) -> None:
        self.colours, self.shapes = world.colours, world.shapes
        self.kinds: tuple[tuple[str | None, str], ...] = tuple((c, s) for c in self.colours for s in self.shapes)

    def scene(self, rng: np.random.Generator) -> Scene:
        """Returns a scene drawn uniformly."""
        return random_scene(rng, self.colours, self.shapes)

    def held_out(self, rng: np.random.Generator, index: int) -> Scene:
        """Returns a scene of the colours and shapes in turn."""
        colour, shape = self.kinds[index % len(self.kinds)]
        return replace(self.scene(rng), colour=colour, shape=shape)

    def another(self, rng: np.random.Generator, first: Scene) -> Scene:
        """Returns a scene of another colour, where there are two."""
        others = [colour for colour in self.colours if colour != first.colour] or list(self.colours)
        return replace(self.scene(rng), colour=str(rng.choice(others)))


def cast_of(world: World, seed: int) -> Cast:
    """Returns the cast of a world. Raises UserError where the files of a world of digits hold none."""
    return DigitCast.of(world, seed) if world.kind == "digits" else ShapeCast(world)
