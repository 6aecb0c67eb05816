"""Lists of prompts as they are published and passed around: the same prompts for what is made, judged and rated."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mav.data.prompts import read_prompts, text_lines
from mav.errors import UserError
from mav.evaluation import sets
from mav.evaluation.protocols import load_protocol
from mav.generation import write
from mav.recipes.reader import load_recipe
from mav.storage import Folder

BOTH = [("a boat", "Vehicles"), ("two hills, far", "Outdoor")]
ROWS = [dict(zip(("prompt", "category"), pair, strict=True)) for pair in BOTH]
CSV = 'Prompt,Category\na boat,Vehicles\n"two hills, far",Outdoor\n'
TSV = "Prompt\tCategory\tChallenge\tNote\na boat\tVehicles\tBasic\t\ntwo hills, far\tOutdoor\tBasic\t\n"
VBENCH = [{"prompt_en": text, "dimension": [kind], "auxiliary_info": {"color": "red"}} for text, kind in BOTH]
CRAFTER = {f"{i:04d}": {"prompt": text, "attributes": {}} for i, (text, _) in enumerate(BOTH)}
LISTS = {
    "DrawBench.csv": (CSV, True), "drawbench-s.csv": (CSV.replace("Prompt,", "Prompts,"), True),
    "PROMPTS.CSV": (CSV.upper().replace("A BOAT", "a boat").replace("TWO HILLS, FAR", "two hills, far"), None),
    "bom.csv": ("\ufeff" + CSV, True), "crlf.csv": (CSV.replace("\n", "\r\n"), True),
    "semicolons.csv": (CSV.replace(",", ";").replace("hills; far", "hills, far"), True),
    "PartiPrompts.tsv": (TSV, True), "parti.TSV": (TSV, True), "parti.txt": (TSV, True),
    "list.json": (json.dumps(ROWS), True), "LIST.JSON": (json.dumps(ROWS, indent=1), True),
    "texts.json": (json.dumps([text for text, _ in BOTH]), False),
    "lines.jsonl": ("\n".join(map(json.dumps, ROWS)), True), "LINES.JSONL": ("\r\n".join(map(json.dumps, ROWS)), True),
    "lines.ndjson": ("\n".join(map(json.dumps, ROWS)), True), "lines.json": ("\n".join(map(json.dumps, ROWS)), True),
    "jsonl.txt": ("\n".join(map(json.dumps, ROWS)), True),
    "VBench_full_info.json": (json.dumps(VBENCH, indent=4), True),
    "metadata.json": (json.dumps(CRAFTER), False), "prompt700.txt": ("a boat\ntwo hills, far\n", False),
    "pipes.csv": (CSV.replace(",", "|").replace("hills| far", "hills, far"), True),
    "one.csv": ("Prompt\na boat\ntwo hills, far\n", False),
    "joined.txt": ("a boat\n\ufefftwo hills, far\n\ufeff", False),
    "spreadsheet.csv": (f"\n{CSV},\n,\n", True), "nulls.json": ('[{"prompt": NaN}, "a boat", "two hills, far"]', False),
    "prompts": ("a boat\r\n\r\n  two hills, far", False), "list.prompts": ("a boat\rtwo hills, far\r", False),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_as_they_are_published(tmp_path, name):
    content, categories = LISTS[name]
    path = tmp_path / name
    path.write_bytes(content.encode())
    found = read_prompts(Folder(str(path)))
    assert [prompt for prompt, _ in found] == [prompt for prompt, _ in BOTH]
    if categories is not None:
        assert [kind for _, kind in found] == ([kind for _, kind in BOTH] if categories else ["", ""])
    everywhere(path, [prompt for prompt, _ in BOTH])


def everywhere(path, expected):
    """Checks that what is generated and what is evaluated are these prompts."""
    recipe = load_recipe("tiny")
    told = dataclasses.replace(recipe, generate=dataclasses.replace(recipe.generate, prompts=str(path)))
    assert [row["prompt"] for row in write.read_prompts(told, {})] == expected
    assert list(sets.read_set(load_protocol("prompts-clip"), None, 0, Folder(str(path))).prompts) == expected
    assert sets.read_prompts is read_prompts


def test_a_first_prompt_that_begins_like_a_header_is_a_prompt(tmp_path):
    for first in ("text, painted on a wall", "caption; a cat", "prompt"):
        (tmp_path / "list.txt").write_text(f"{first}\na boat\n")
        assert [prompt for prompt, _ in read_prompts(Folder(str(tmp_path / "list.txt")))] == [first, "a boat"]


def test_a_lone_surrogate_is_repaired(tmp_path):
    (tmp_path / "list.json").write_text('["a \\ud83d boat", "\\ud83d\\ude00"]')
    (first, _), (second, _) = read_prompts(Folder(str(tmp_path / "list.json")))
    assert first.encode().startswith(b"a ")
    assert second == "\U0001f600"


SIGNS = "ab \x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029,;\t\"'{[<-"


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text(SIGNS, min_size=1, max_size=12), min_size=1, max_size=6))
def test_prompts_of_any_signs_are_one_a_line(tmp_path_factory, prompts):
    prompts = [f"x{prompt}x" for prompt in prompts]
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    for end in ("\n", "\r\n", "\r"):
        path.write_bytes(end.join(prompts).encode())
        everywhere(path, prompts)
    assert text_lines("\n".join(prompts)) == prompts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("latin.txt", b"a boat\na caf\xe9\n", "line 2"), ("list.xlsx", b"PK\x03\x04\0\0", "give a text"),
        ("list.parquet", b"PAR1\0\0", "give a text"), ("list.yaml", b"- a boat\n- a hill\n", "unknown format"),
        ("page.html", b"<html><body>a boat", "unknown format"), ("other.csv", b"id,link\n1,2\n", "names no column"),
        ("cut.json", b'[{"prompt": "a boat"}, {"pro', "no JSON"),
        ("mixed.jsonl", b'{"prompt": "a"}\n{"pro\n', "no JSON"),
        ("empty.csv", b"Prompt,Category\n", "holds no prompt"), ("blank.txt", b"\n \n", "holds no prompt"),
        ("comma.csv", b"Prompt,Category\na boat,V\ntwo hills, far,O\n", "row 2 has 3 fields"),
        ("gap.csv", b"Prompt,Category\na boat,V\n,O\na hill,O\n", "no prompt in its row 2"),
        ("deep.json", b"[" * 100_000, "nested too deeply"),
        ("other.json", b'[{"caption_id": 1}]', "no prompt"), ("number.json", b"7", "no JSON"),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_one_sentence(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_prompts(Folder(str(tmp_path / name)))
    assert name in str(caught.value)


def test_a_stray_quote_takes_no_prompt_with_it(tmp_path):
    lines = [f"prompt {i},Kind" for i in range(50)]
    lines[7] = '"prompt 7,Kind'
    (tmp_path / "a.csv").write_text("Prompt,Category\n" + "\n".join(lines) + "\n")
    found = read_prompts(Folder(str(tmp_path / "a.csv")))
    assert len(found) == 50
    assert found[8] == ("prompt 8", "Kind")


def test_real_lists(real_data):
    assert len(read_prompts(Folder(str(real_data / "prompts/drawbench_200.csv")))) == 200
    lines = (real_data / "prompts/make_a_video_gallery.txt").read_text().splitlines()
    assert [p for p, _ in read_prompts(Folder(str(real_data / "prompts/make_a_video_gallery.txt")))] == [
        line.strip() for line in lines if line.strip()
    ]
