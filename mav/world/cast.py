"""What a demo world shows: which objects its scenes have, which classes there are, and how they are described."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from mav.recipes import World
from mav.world.digits import DigitCast
from mav.world.drawing import SENTENCES, Kind, Scene, Sentences, random_scene, world_scene


class Cast(Protocol):
    """Draws the scenes of a world; all of each comes from the generator that is given.

    colours, shapes: of all objects; digits have no colours, and their names are the shapes. kinds: the objects of each
    class, in the order of the evaluation sets and of the prompts. sentences: how a scene is described
    (`mav.world.drawing.describe`).
    """

    @property
    def colours(self) -> Sequence[str]: ...

    @property
    def shapes(self) -> Sequence[str]: ...

    @property
    def kinds(self) -> Sequence[Sequence[Kind]]: ...

    @property
    def sentences(self) -> Sentences: ...

    def scene(self, rng: np.random.Generator) -> Scene:
        """Returns a scene drawn uniformly, to train on."""

    def held_out(self, rng: np.random.Generator, index: int) -> Scene:
        """Returns a scene of an evaluation set: the classes in turn, all else drawn."""

    def another(self, rng: np.random.Generator, first: Scene) -> Scene:
        """Returns a scene to train on whose object differs from the first one's, where the world has others."""


class ShapeCast:
    """Coloured shapes over textured grounds, one or two in a frame."""

    sentences = SENTENCES

    def __init__(self, world: World) -> None:
        self.world, self.colours, self.shapes, self.kinds = world, world.colours, world.shapes, _kinds(world)

    def scene(self, rng: np.random.Generator) -> Scene:
        """Returns a scene drawn uniformly."""
        return world_scene(self.world, rng)

    def held_out(self, rng: np.random.Generator, index: int) -> Scene:
        """Returns a scene of the colours and shapes in turn."""
        kinds = self.kinds[index % len(self.kinds)]
        scene = random_scene(rng, self.colours, self.shapes, len(kinds))
        (colour, shape), (other, form) = kinds[0], kinds[-1]
        second = scene.second and replace(scene.second, colour=other, shape=form)
        return replace(scene, colour=colour, shape=shape, second=second)

    def another(self, rng: np.random.Generator, first: Scene) -> Scene:
        """Returns a scene whose first object has another colour, where there is one left."""
        second = world_scene(self.world, rng)
        free = [colour for colour in self.colours if second.second is None or colour != second.second.colour]
        return replace(second, colour=str(rng.choice([colour for colour in free if colour != first.colour] or free)))


def _kinds(world: World) -> list[list[Kind]]:
    """Returns what held-out clips and prompts show, in turn: every colour with every shape.

    With two objects a frame, each of them is followed by a pair of which it is the first, and an early end leaves no
    colour and no shape out.
    """
    colours, shapes = world.colours, world.shapes
    if world.objects == 1:
        return [[(colour, shape)] for colour in colours for shape in shapes]
    kinds: list[list[Kind]] = []
    for index in range(len(colours) * len(shapes)):
        colour, shape = index % len(colours), (index + index // math.lcm(len(colours), len(shapes))) % len(shapes)
        # All distances between two colours and between two shapes occur.
        other = (colour + 1 + index % (len(colours) - 1)) % len(colours)
        first, second = (colours[colour], shapes[shape]), (colours[other], shapes[(shape + index // 2) % len(shapes)])
        kinds += [[first], [first, second]]
    return kinds


def cast_of(world: World, seed: int) -> Cast:
    """Returns the cast of a world. Raises UserError where the files of a world of digits hold none."""
    return DigitCast.of(world, seed) if world.kind == "digits" else ShapeCast(world)
