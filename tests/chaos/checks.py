"""What must hold in the end: every artifact has the bytes of an undisturbed run, no row is lost or there twice, nothing
is left behind."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from flows.engine.stage import Node
from flows.engine.store import Store
from mav.data.shards import read_tar
from mav.storage import TEMPORARY
from mav.storage.counts import unbalanced


@dataclass
class Account:
    """How a run differs from the undisturbed one."""

    lost: int = 0
    doubled: int = 0
    differing: list[str] = field(default_factory=list)  # artifacts
    problems: list[str] = field(default_factory=list)


def samples(nodes: Sequence[Node], store: Store) -> Counter[tuple[str, str]]:
    """How often each sample is there, over all tars of all finished stages."""
    found: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        artifact = store.find(node)
        if artifact:
            for name in artifact.files(suffix=".tar"):
                found.update((node.name, key) for key, _ in read_tar(artifact.folder, name))
    return found


def compare(nodes: Sequence[Node], calm: Store, after: Store) -> Account:
    """A disturbed run, resumed to its end, beside the calm one: of these stages."""
    account = Account()
    was, now = samples(nodes, calm), samples(nodes, after)
    account.lost, account.doubled = (was - now).total(), (now - was).total()
    for node in nodes:
        one, two = calm.find(node), after.find(node)
        assert one is not None
        if two is None:
            account.differing.append(f"{node.name} is not there")
            continue
        account.problems += list(unbalanced(two.manifest.counts))
        if (one.manifest.content, one.manifest.counts) != (two.manifest.content, two.manifest.counts):
            was_there, is_there = dict(one.entries()), dict(two.entries())
            names = {n for n in was_there.keys() | is_there.keys() if was_there.get(n) != is_there.get(n)}
            account.differing.append(f"{node.name} ({', '.join(sorted(names)) or 'counts'})")
    return account


def left_behind(store: Store) -> list[str]:
    """Unfinished work and half-written files."""
    work = [f"work/{name}" for name in store.root.child("work").sizes(temporary=True)]
    return work + [name for name in store.root.child("artifacts").sizes(temporary=True) if TEMPORARY in name]
