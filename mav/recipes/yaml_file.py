"""Reads YAML, and refuses what YAML libraries take without a word.

These are repeated keys, tabs, aliases that explode, and numbers that are not what they show.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from mav.errors import UserError

MOST_NODES = 10_000  # values of a file when every alias is written out; a recipe has a few hundred


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice: YAML libraries forget the first without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    first = lines[key.value]
                    raise yaml.YAMLError(f"`{key.value}` stands in line {first} and again in line {line}: keep one.")
                lines[key.value] = line
        return node

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        """Refuses numbers that YAML reads as others than they show: 010 is 8 to it, and 1:30 is 90."""
        text = node.value.lstrip("+-")
        if ":" in text or re.match("0[0-9_]", text):
            remedy = "write a plain number, or put it in quotes"
            raise yaml.YAMLError(f"{node.value} in line {node.start_mark.line + 1} means another number: {remedy}.")
        is_whole = node.tag.endswith(":int")
        number: int | float = self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)
        return number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def parse_yaml(text: str, what: str) -> Any:
    """Returns the data of a YAML text. Raises UserError that names `what`, and the line."""
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line.partition("#")[0]:
            raise UserError(f"{what} has a tab in line {number}: YAML takes spaces only.")
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        if _size(root, {}) > MOST_NODES:
            raise yaml.YAMLError(f"its aliases stand for more than {MOST_NODES} values: write out what you need.")
        return loader.construct_document(root)
    except RecursionError:
        raise UserError(f"{what} is not valid YAML: its values are nested too deeply.") from None
    except yaml.MarkedYAMLError as error:
        mark, said = error.problem_mark or error.context_mark, error.problem or error.context or "it cannot be read"
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        remedy = "see to the indentation, colons, brackets and quotes there and above"
        raise UserError(f"{what}{where} is not valid YAML ({said}): {remedy}.") from None
    except Exception as error:  # beside its own, the library raises what dates and numbers raise that are none
        raise UserError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns the number of values below a node. Each is visited once, however often it is named."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # a node that is within itself has no end
        known[id(node)] = 1 + sum(_size(below, known) for below in _below(node))
    return known[id(node)]


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value
