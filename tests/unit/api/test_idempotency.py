from __future__ import annotations

import asyncio

import pytest
from tests.unit.identity.manual_clock import ManualClock

from tenantry.api.idempotency import ANSWERS_MAX, KEPT_S, Answer, Answers
from tenantry.core.errors import InvalidInputError, KeyReuseError
from tenantry.core.ids import KeyId, PrincipalId, TenantId
from tenantry.core.principal import Principal, Role


def person(key: str = "key_1") -> Principal:
    return Principal(PrincipalId("prn_1"), KeyId(key), Role.TENANT_ADMIN, TenantId("acme"), None)


class Work:
    def __init__(self) -> None:
        self.done = 0

    async def __call__(self) -> Answer:
        await asyncio.sleep(0)
        self.done += 1
        return Answer(200, str(self.done).encode())


async def test_the_same_request_is_worked_out_once_however_many_ask() -> None:
    answers, work = Answers(ManualClock()), Work()
    got = await asyncio.gather(*(answers.once(person(), "k", b"r", work) for _ in range(20)))
    assert {answer.body for answer in got} == {b"1"}
    assert (await answers.once(person(), "k", b"r", work)).body == b"1"
    assert work.done == 1


async def test_a_key_is_its_holders_and_one_request_s() -> None:
    answers, work = Answers(ManualClock()), Work()
    await answers.once(person(), "k", b"r", work)
    assert (await answers.once(person("key_2"), "k", b"r", work)).body == b"2"
    with pytest.raises(KeyReuseError):
        await answers.once(person(), "k", b"other", work)


async def test_what_failed_may_be_tried_again_and_those_who_waited_are_told() -> None:
    answers = Answers(ManualClock())

    async def fail() -> Answer:
        await asyncio.sleep(0)
        raise ValueError("no")

    got = await asyncio.gather(
        *(answers.once(person(), "k", b"r", fail) for _ in range(3)), return_exceptions=True
    )
    assert [type(error) for error in got] == [ValueError] * 3
    assert (await answers.once(person(), "k", b"r", Work())).body == b"1"


async def test_who_goes_away_takes_nothing_from_the_others() -> None:
    answers, hold = Answers(ManualClock()), asyncio.Event()

    async def slow() -> Answer:
        await hold.wait()
        return Answer(200, b"slow")

    first = asyncio.create_task(answers.once(person(), "k", b"r", slow))
    await asyncio.sleep(0)
    second = asyncio.create_task(answers.once(person(), "k", b"r", slow))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait({second})
    hold.set()
    assert (await first).body == b"slow"
    third = asyncio.create_task(answers.once(person(), "k2", b"r", slow))
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.wait({third})


async def test_answers_are_kept_for_a_while_and_not_without_end() -> None:
    clock = ManualClock()
    answers, work = Answers(clock), Work()
    await answers.once(person(), "k", b"r", work)
    clock.advance(KEPT_S + 1)
    assert (await answers.once(person(), "k", b"r", work)).body == b"2"
    for number in range(ANSWERS_MAX + 5):
        await answers.once(person(), f"n{number}", b"r", work)
    assert len(answers._kept) <= ANSWERS_MAX


@pytest.mark.parametrize("key", ["", "x" * 201, "\u00e9", "a\nb"])
async def test_a_key_has_a_shape(key: str) -> None:
    with pytest.raises(InvalidInputError):
        await Answers(ManualClock()).once(person(), key, b"r", Work())
