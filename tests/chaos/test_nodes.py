"""What `make chaos-nodes` takes for the samples of a training."""

import json
from pathlib import Path

import pytest
from nodes import in_order, lives


def write(folder: Path, life: str, begun: float, ranks: list[list[int]]) -> None:
    """The lines of a life whose ranks took these samples, one at a time."""
    for rank, numbers in enumerate(ranks):
        with (folder / f"stage.{life}.{rank}.jsonl").open("w") as file:
            for at, number in enumerate(numbers):
                line = {"stage": "stage", "life": life, "rank": rank, "world": len(ranks), "time": begun + at}
                file.write(json.dumps(line | {"first": abs(number), "counts": number >= 0, "seen": [f"{abs(number)}"]}))
                file.write("\n")


def test_lives_are_joined_where_each_begins_and_the_step_that_was_cut_is_left_out(tmp_path):
    write(tmp_path, "b", 20.0, [[3, 5, 6, 8], [4, -3, 7, -6]])  # two, the second of which repeats what does not count
    write(tmp_path, "a", 10.0, [[0, 3, 6], [1, 4], [2, 5]])
    write(tmp_path, "c", 30.0, [[9], [10], [11]])
    (tmp_path / "stage-video.d.0.jsonl").write_text("another stage's")
    found = lives(tmp_path, "stage", 3)
    assert [(life.workers, life.first, life.end) for life in found] == [(3, 0, 6), (2, 3, 9), (3, 9, 12)]
    assert in_order("stage", found) == ([str(number) for number in range(12)], [3, 0])


@pytest.mark.parametrize(("ranks", "problem"), [([[0, 2], [1, 2]], "twice"), ([[0, 3, 6], [1, 7]], "left out")])
def test_a_sample_that_is_taken_twice_or_left_out_is_told(tmp_path, ranks, problem):
    write(tmp_path, "a", 10.0, ranks)
    with pytest.raises(ValueError, match=problem):
        lives(tmp_path, "stage", 3)


def test_samples_between_two_lives_are_missed(tmp_path):
    write(tmp_path, "a", 10.0, [[0, 3], [1, 4], [2, 5]])
    write(tmp_path, "b", 20.0, [[9], [10], [11]])
    with pytest.raises(ValueError, match="samples 6 to 8 were left out"):
        in_order("stage", lives(tmp_path, "stage", 3))
