from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.policy.samples import ACTIONS

from tenantry.policy import request, source
from tenantry.policy.obligations import RETENTION_DAYS_MAX
from tenantry.policy.schema import GROUPS, READY_PROFILES
from tenantry.policy.validate import check

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "write-a-policy.md").read_text("utf-8")
BLOCKS = re.findall(r"```cedar\n(.*?)```", GUIDE, re.DOTALL)
EXAMPLES = [
    example
    for line in GUIDE.splitlines()
    if line.count("|") >= 4 and line.startswith("|")
    for example in re.findall(
        r"`((?:principal|action|resource|context) ?[^`]* [^`]+|[^`]*contains\([^`]*)`", line
    )
]


@pytest.mark.parametrize("block", BLOCKS)
def test_each_policy_of_the_guide_holds(block: str) -> None:
    assert check({"tenant": block}, {}) == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_expression_of_the_guide_holds(example: str) -> None:
    text = f'@id("it") permit (principal, action, resource) when {{ {example} }};'
    assert check({"tenant": text}, ACTIONS) == []


def test_the_guide_has_what_it_should() -> None:
    assert len(BLOCKS) >= 5
    assert len(EXAMPLES) >= 10
    assert all(f"`{name}`" in GUIDE for name in READY_PROFILES)
    assert all(f"`{group.partition('/')[2]}`" in GUIDE for group in GROUPS if group != "reach/web")
    bounds = (
        source.TEXT_CHARS_MAX,
        source.POLICIES_MAX,
        source.LAYER_TOKENS_MAX,
        source.TOKENS_MAX,
        source.BRACKETS_MAX,
        source.LITERAL_CHARS_MAX,
        source.PATTERN_CHARS_MAX,
        request.RECORD_CHARS_MAX,
        request.FIELD_CHARS_MAX,
        request.LABELS_MAX,
    )
    assert all(f"{bound:,}" in GUIDE for bound in bounds)
    assert str(RETENTION_DAYS_MAX) in GUIDE
