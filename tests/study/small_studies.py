"""Small studies in memory, and simulated raters that call the votes directly."""

from mav.storage import Folder
from mav.study.study import Pair, freeze
from mav.study.votes import Study


def made_up(clips, count, systems=("ours", "theirs")):
    """Pairs that share a few clips, so that many of them cost nothing."""
    kinds = ("people", "animals")
    return [Pair(f"prompt {i}", kinds[i % 2], systems, (clips[i % 3], clips[3 + i % 3])) for i in range(count)]


def freeze_made_up(tmp_path, clips, count, session=24, systems=("ours", "theirs")):
    folder = Folder(str(tmp_path / "study"))
    freeze(made_up(clips, count, systems), folder, seed=3, session=session)
    return folder, Study.load(folder)


def rate(votes, token, choose, most=10_000):
    """Answers what is asked until the end; choose(item, question) -> side. Returns the code."""
    state = votes.next(token)
    for _ in range(most):
        if state["state"] == "end":
            return state["code"]
        state = votes.vote(
            token, state["item"], state["question"]["id"], choose(state["item"], state["question"]["id"]), 900
        )
    return None


def prefers(study, system):
    """A rater who sees well: the intact copy, and this system's video wherever it is."""
    return lambda item, question: next(
        (side for side in ("left", "right") if study.key[item][side] in ("intact", system)), "left"
    )  # fmt: skip
