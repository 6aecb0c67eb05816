"""`mav validate|schema`: what is wrong with a recipe, and what an editor should know of one."""

import json

import typer

from flows.cli.options import Json, RecipeName, Set
from mav.recipes.reader import RecipeError, load_recipe

app = typer.Typer()


@app.command()
def validate(recipe: RecipeName, json_: Json = False, set_: Set = None) -> None:
    """Check a recipe and the files that it names, and say everything that is wrong. Exit 1 on a mistake."""
    problems: list[dict[str, object]] = []
    try:
        loaded = load_recipe(recipe, set_ or ())
    except RecipeError as error:
        problems = [vars(problem) | {"sentence": str(problem)} for problem in error.problems]
    else:
        from flows.engine.stage import absent_files
        from flows.make_a_video import make_a_video

        graph = make_a_video(loaded)
        for key, path in absent_files(graph.nodes.values()):
            why, remedy = "it does not exist", "correct the path or bring the file"
            sentence = f"`{key}` is {path!r}, but {why}: {remedy}."
            problems.append({"key": key, "value": path, "why": why, "remedy": remedy, "sentence": sentence})
    if json_:
        print(json.dumps({"recipe": recipe, "problems": problems}, indent=1, default=str))
    else:
        for problem in problems:
            print(problem["sentence"])
        if not problems:
            print(f"{recipe} is right: {len(graph.nodes)} stages.")
            for name, reason in graph.left_out.items():
                print(f"{name} is left out: {reason}.")
    if problems:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of recipes, with which editors complete and check them."""
    from mav.recipes.schema import json_schema

    print(json.dumps(json_schema(), indent=1))
