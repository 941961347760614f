"""A secret value shows itself to nobody who did not ask."""

from __future__ import annotations

import copy
import io
import json
import logging
import pickle
import traceback
from collections.abc import Callable

import msgspec
import pytest
from rich.console import Console
from rich.pretty import pretty_repr
from rich.traceback import Traceback

from tenantry.broker.secrets import Credential, SecretValue
from tenantry.core.errors import InvalidInputError

PLAIN = "hunter2-tr\u00e8s-secret"


def test_it_reveals_and_compares() -> None:
    assert SecretValue(PLAIN).reveal() == PLAIN
    assert SecretValue(PLAIN) == SecretValue(PLAIN)
    assert SecretValue(PLAIN) != SecretValue(PLAIN + "x")
    assert SecretValue(PLAIN) != PLAIN
    with pytest.raises(TypeError):
        hash(SecretValue(PLAIN))


SHOWS: dict[str, Callable[[SecretValue], object]] = {
    "repr": repr,
    "str": str,
    "format": lambda value: f"{value} {value!r} {value!s} {value:>40}",
    "percent": lambda value: "%s %r" % (value, value),  # noqa: UP031
    "list": lambda value: repr([value, {"a": value}]),
    "credential": lambda value: f"{Credential(3, value)}",
    "credential repr": lambda value: repr(Credential(3, value)),
    "pretty": lambda value: pretty_repr([Credential(3, value)]),
    "json default": lambda value: json.dumps({"a": value}, default=str),
    "dir": lambda value: repr([repr(getattr(value, name)) for name in dir(value) if "value" not in name]),
}


@pytest.mark.invariant(8)
@pytest.mark.parametrize("name", SHOWS)
def test_it_does_not_show(name: str) -> None:
    assert "hunter2" not in str(SHOWS[name](SecretValue(PLAIN)))


WRITES: dict[str, Callable[[SecretValue], object]] = {
    "pickle": pickle.dumps,
    "pickle inside": lambda value: pickle.dumps([Credential(1, value)]),
    "json": json.dumps,
    "msgspec": msgspec.json.encode,
    "msgspec inside": lambda value: msgspec.json.encode(Credential(1, value)),
    "builtins": lambda value: msgspec.to_builtins(Credential(1, value)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "vars": vars,
}


@pytest.mark.invariant(8)
@pytest.mark.parametrize("name", WRITES)
def test_it_is_not_written(name: str) -> None:
    with pytest.raises(TypeError) as refused:
        WRITES[name](SecretValue(PLAIN))
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.invariant(8)
def test_tracebacks_with_locals_do_not_show_it() -> None:
    def fault(credential: Credential) -> None:
        value = credential.value
        raise RuntimeError(f"failed with {value}")

    def make() -> RuntimeError:
        try:
            fault(Credential(1, SecretValue(PLAIN)))
        except RuntimeError as error:
            return error
        raise AssertionError

    error = make()
    detailed = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    out = io.StringIO()
    Console(file=out, width=200).print(
        Traceback.from_exception(RuntimeError, error, error.__traceback__, show_locals=True)
    )
    log = io.StringIO()
    logger = logging.getLogger("tests.unit.broker")
    logger.propagate = False
    logger.addHandler(logging.StreamHandler(log))
    logger.error("failed: %s", Credential(1, SecretValue(PLAIN)), exc_info=error)
    for text in (detailed, out.getvalue(), log.getvalue()):
        assert "SecretValue(hidden)" in text
        assert "hunter2" not in text


@pytest.mark.parametrize("bad", ["", "hunter2\0", "hunter2\ud800", "hunter2" * 10_000])
def test_bad_values_are_refused_without_being_shown(bad: str) -> None:
    held = [bad]
    with pytest.raises(InvalidInputError) as refused:
        SecretValue(held[0])
    # Skip this test's own frame: it holds the text on purpose.
    assert refused.value.__traceback__ is not None
    inner = refused.value.__traceback__.tb_next
    shown = "".join(
        traceback.TracebackException(type(refused.value), refused.value, inner, capture_locals=True).format()
    )
    assert "hunter2" not in shown
    assert refused.value.__cause__ is None and refused.value.__context__ is None
