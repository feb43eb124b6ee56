"""The ledger: 56 claims, each with a criterion that cannot change unseen."""

import re

import pytest
import yaml

from counterprobe import ledger
from counterprobe.progress import UserError


@pytest.fixture(scope="module")
def claims():
    return ledger.load()


def written(tmp_path, **changes):
    """The real ledger with keys of C10 changed."""
    content = yaml.safe_load(ledger.LEDGER.read_text(encoding="utf-8"))
    content["claims"]["C10"] |= changes
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_every_claim_has_its_row_in_order(claims):
    assert list(claims) == [f"C{number:02}" for number in range(1, 57)]
    kinds = {kind: [name for name, claim in claims.items() if claim["kind"] == kind] for kind in ("sanity", "optional")}
    assert kinds == {"sanity": ["C11", "C37", "C42"], "optional": ["C17", "C20", "C45", "C54", "C56"]}


def test_what_has_no_criterion_says_why(claims):
    assert all(claim["why"] for claim in claims.values() if not claim["legs"])
    assert all(claim["fixed"] for claim in claims.values() if claim["legs"])


def test_a_criterion_that_changed_does_not_load_without_a_line_that_says_why(tmp_path, claims):
    legs = [claims["C10"]["legs"][0] | {"test": {"above": 0.4}}]
    with pytest.raises(UserError, match="C10: its criterion is not the one that was fixed") as refused:
        ledger.load(written(tmp_path, legs=legs))
    digest = re.search(r"digest: (\w{12})", str(refused.value))[1]
    revised = [{"date": "2030-01-01", "why": "the old one was too strict", "digest": digest}]
    loaded = ledger.load(written(tmp_path, legs=legs, revised=revised))
    assert ledger.current(loaded["C10"]) == digest != claims["C10"]["fixed"]


def test_words_may_change_freely(tmp_path):
    assert ledger.load(written(tmp_path, claim="the same in other words"))["C10"]["claim"].startswith("the same")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "guess"}, "claims.C10.kind: 'guess' is not one of"),
        ({"page": "somewhere"}, "claims.C10.page"),
        ({"legs": [{"says": "x", "table": "t", "where": {}, "test": {"near": 1}}]}, "claims.C10.legs.0.test"),
    ],
)
def test_what_is_not_in_the_vocabulary_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        ledger.load(written(tmp_path, **changes))
