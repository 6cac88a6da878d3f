"""`batchfree lint`: mistakes in a recipe."""

from __future__ import annotations

import argparse

from batchfree.cli.parsing import parse_fields

FOUND = 1


def lint(args: list[str]) -> int:
    """`batchfree lint RECIPE [--FIELD VALUE ...]`; exit code 1 where something is found."""
    parser = argparse.ArgumentParser(
        prog="batchfree lint",
        description="Names the mistakes in a recipe that users of small batches report. Fields are "
        "given as for batchfree train. Exits with 0 where there are none, 1 where there are, 2 for "
        "a wrong command line.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="batchfree train --list names them")
    options, fields = parse_fields(parser, args, plain=("batch_size", "seed", "name"))
    from batchfree.recipes import get_recipe
    from batchfree.recipes.lint import lint as run
    from batchfree.train.build import build_network
    from batchfree.train.config import Config, field_types, unknown_field

    recipe = get_recipe(options.recipe)
    settings = recipe.to_dict()
    for name, value in fields.items():
        if name not in field_types(type(recipe)):
            raise unknown_field(name, type(recipe))
        section, _, field = name.rpartition(".")
        (settings[section] if section else settings)[field] = value
    config = type(recipe).from_dict(settings)
    if isinstance(config, Config):
        found = run(config, build_network(config.model, num_classes=10), recipe=recipe)
    else:
        from batchfree.train.detection_build import build_random

        found = run(config, build_random(config.model, num_categories=80), recipe=recipe)
    for item in found:
        print(f"{item.rule}: {item.field}: {item.message}")
        print(f"    {item.advice} ({item.source})")
    print(f"{config.name}: {len(found) or 'no'} finding{'s' * (len(found) != 1)}")
    return FOUND if found else 0
