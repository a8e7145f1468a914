"""Every error is in the family, and its tree is drawn truthfully."""

import inspect

from toolkit import errors


def test_every_error_is_a_toolkit_error_and_named_in_the_tree():
    family = [item for _, item in inspect.getmembers(errors, inspect.isclass) if item.__module__ == errors.__name__]
    assert len(family) > 5
    for item in family:
        assert issubclass(item, errors.ToolkitError)
        assert item.__name__ in (errors.__doc__ or "")


def test_known_puts_the_nearest_first_and_cuts_long_lists():
    assert errors.suggest(["alpha", "beta", "alpine"], "alpin").split(", ")[0] == "alpine"
    assert errors.suggest(range(25)).endswith("and 15 more")
