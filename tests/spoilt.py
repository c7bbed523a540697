"""Values that were read back, each spoilt in one place."""

from hypothesis import strategies as st

ODD = [None, True, -5, 0, 1, 2**63, 10**30, 0.5, -0.5, "", "x", "nan", "-inf", [], {}, [1], {"a": 1}, [[]], "\ud800"]


def places(value, path=()):
    """The way to every value within a value."""
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, (list, tuple)) else ():
        yield from places(value[key], (*path, key))


def at(value, path):
    for key in path:
        value = value[key]
    return value


def changed(value, path, change):
    """A copy that differs in one place."""
    if not path:
        return change(value)
    if isinstance(value, dict):
        return {key: changed(each, path[1:], change) if key == path[0] else each for key, each in value.items()}
    return type(value)(changed(each, path[1:], change) if i == path[0] else each for i, each in enumerate(value))


def without(owner, key):
    if isinstance(owner, dict):
        return {name: each for name, each in owner.items() if name != key}
    return type(owner)(each for i, each in enumerate(owner) if i != key)


def more(owner):
    return {**owner, "more": 1} if isinstance(owner, dict) else [*owner, *owner[:1]]


def spoilt(content, draw, odd=ODD):
    """One value is another, or gone, or there is one more."""
    path = draw(st.sampled_from(list(places(content))))
    kind = draw(st.sampled_from(["other", "gone", "more"]))
    if kind == "gone" and path:
        return changed(content, path[:-1], lambda owner: without(owner, path[-1]))
    if kind == "more" and isinstance(at(content, path), (dict, list)):
        return changed(content, path, more)
    return changed(content, path, lambda _: draw(st.sampled_from(odd)))
